"""Whether a run goes on from a checkpoint: whether that is of the same run, and not beyond its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Mapping

from ipu_bert.checkpoint import STATE, CheckpointError
from ipu_bert.config import Config, identity
from sparse_ops.saying import say

_TEXT = ("tokenizer", "text")  # of a run's identity: what was prepared, which follows from the settings and the text


def check_goes_on(path: Path, expected: Mapping[str, Any], info: Mapping[str, Any], last: int) -> None:
    """CheckpointError where a run of these settings, to step `last`, does not go on from a checkpoint of this info.

    Without the text's entries in `expected`, as before it is prepared, the text is not compared.
    """
    found = info.get("identity")
    if found is not None and not any(key in expected for key in _TEXT):
        found = {key: value for key, value in found.items() if key not in _TEXT}
    check_same_run(path, expected, found)
    if info["step"] > last:
        raise CheckpointError(f"checkpoint {path}: expected a step of at most {last}, found {info['step']}")


def check_same_run(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any] | None) -> None:
    """CheckpointError that lists every setting in which a checkpoint's run differs from this one, or names its text.

    Another precision is no other run: weights, moments and step are the same numbers on every engine. A setting that
    was added after the checkpoint was written counts as its default there. A checkpoint of a version that did not
    record its prepared text is taken, with a warning.
    """
    if found is None:
        raise CheckpointError(f"checkpoint {path}: expected the settings of its run in {STATE}, found none")
    defaults = {key: value for key, value in identity(Config()).items() if key in expected}
    found = {**defaults, **found}
    named = sorted(key for key in {*expected, *found} if not key.startswith("precision."))
    differing = [key for key in named if expected.get(key) != found.get(key)]
    settings = [f"{k}: expected {expected.get(k)!r}, found {found.get(k)!r}" for k in differing if k not in _TEXT]
    if settings:
        raise CheckpointError(f"checkpoint {path} is of another run: " + "; ".join(settings))
    if "text" in expected and "text" not in found:
        say(f"checkpoint {path} does not say which text it has seen, which may have changed since", sys.stderr)
        differing.remove("text")
    if differing:
        of = "data.path" if expected.get("data.source") == "files" else f"data.source {expected.get('data.source')}"
        raise CheckpointError(
            f"checkpoint {path}: the text of {of}, or how it is prepared, changed since this was saved: a run goes on "
            "with the text that it began with; bring it back, or begin a new run without --resume"
        )
