"""What state.json of a checkpoint says, and what cannot be it."""

from __future__ import annotations

import math
import os
from typing import Any, Iterator, Mapping

from ipu_bert import sealed_json
from ipu_bert.json_file import is_count, is_line
from ipu_bert.stopwatch import PHASES

FORMAT = 1

# What the weights knew when the run began (heldout_before), since a model that it began with may be gone later.
TEXTS_BEFORE = "texts_before"
LINES_BEFORE = "trained_before"  # what an earlier version kept: lines that it told

_ALWAYS = ("format", "step", "files")
_TYPES: Mapping[str, type] = {  # of what state.json says, and a run that goes on reads
    **{"format": int, "step": int, "files": dict, "config": dict, "identity": dict, "conditions": dict},
    **{
        "seconds": dict,
        "elapsed_seconds": float,
        "heldout_loss": float,
        "heldout_batches": int,
        "skipped_in_a_row": int,
        "held_out": dict,
        TEXTS_BEFORE: dict,
        LINES_BEFORE: list,
    },
}

KNOWN = {*_TYPES, "config_hash", "next_batch", sealed_json.KEY}


def problem(state: Mapping[str, Any]) -> str:
    """Why this cannot be what `save` wrote into state.json; empty where it can."""
    for key, kind in _TYPES.items():
        if type(state.get(key, kind())) is not kind or (key in _ALWAYS and key not in state):
            return f"expected {key} of type {kind.__name__}, found {state.get(key)!r:.60}"
    for key in ("step", "skipped_in_a_row"):
        if not is_count(state.get(key, 0)):
            return f"expected {key} of 0 or more, found {state[key]!r:.60}"
    for text in (*state.get("held_out", {}).values(), *state.get(TEXTS_BEFORE, {}).values()):
        if not is_line(text):
            return f"expected lines in held_out and {TEXTS_BEFORE}, found {text!r:.60}"
    for phase, seconds in {**state.get("seconds", {}), "elapsed_seconds": state.get("elapsed_seconds", 0.0)}.items():
        known = phase in PHASES or phase == "elapsed_seconds"
        if not known or type(seconds) not in (int, float) or seconds < 0:
            return f"expected seconds of 0 or more of a phase of a run, found {phase!r:.60}: {seconds!r:.60}"
    for name, entry in state["files"].items():
        beside = os.path.basename(name) == name and name.endswith(".safetensors")
        entry_as_written = isinstance(entry, dict) and is_count(entry.get("bytes")) and "sha256" in entry
        if not beside or not entry_as_written:
            return f"expected bytes and sha256 of a safetensors file beside it, found {name!r:.60}: {entry!r:.60}"
    return ""


def not_finite(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """(place, number) of the numbers in it that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from not_finite(item, f"{where}.{key}".lstrip("."))
