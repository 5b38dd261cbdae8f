"""Whether a run goes on from a checkpoint: whether that is of the same run, and not beyond its end."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Mapping

from ipu_bert import checkpoint
from ipu_bert.checkpoint import CheckpointError
from ipu_bert.config import Begun, Config, identity
from ipu_bert.data.token_files import TOKENIZER
from ipu_bert.run_layout import STATE, runs_of
from sparse_ops.files import sha256_of
from sparse_ops.saying import say

_TEXT = ("tokenizer", "text")  # of a run's identity: what was prepared, which follows from the settings and the text


def check_goes_on(path: Path, expected: Mapping[str, Any], info: Mapping[str, Any], last: int) -> None:
    """CheckpointError where a run of these settings, to step `last`, does not go on from a checkpoint of this info.

    Of the text's entries those are compared that are in `expected`: before it is prepared not all are known.
    """
    found = info.get("identity")
    if found is not None:
        found = {key: value for key, value in found.items() if key not in _TEXT or key in expected}
    check_same_run(path, expected, found)
    if info["step"] > last:
        raise CheckpointError(f"checkpoint {path}: expected a step of at most {last}, found {info['step']}")


def check_same_run(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any] | None) -> None:
    """CheckpointError that lists every setting in which a checkpoint's run differs from this one, or names its text.

    Another precision is no other run: weights, moments and step are the same numbers on every engine. A setting that
    was added after the checkpoint was written counts as its default there. A tokenizer is what it holds, wherever it
    lies. A checkpoint of a version that did not record its prepared text is taken, with a warning.
    """
    if found is None:
        raise CheckpointError(f"checkpoint {path}: expected the settings of its run in {STATE}, found none")
    defaults = {key: value for key, value in identity(Config()).items() if key in expected}
    found = {**defaults, **found}
    free = free_settings(expected, found)
    named = sorted(key for key in {*expected, *found} if not key.startswith("precision.") and key not in free)
    differing = [key for key in named if expected.get(key) != found.get(key)]
    shown = {k: ["none" if one.get(k) is None else repr(one[k]) for one in (expected, found)] for k in differing}
    settings = [f"{k}: expected {mine}, found {its}" for k, (mine, its) in shown.items() if k not in _TEXT]
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


def free_settings(expected: Mapping[str, Any], found: Mapping[str, Any]) -> set[str]:
    """Settings that do not count between two runs: in both they do nothing (config/no_effect.py), or the tokenizer
    itself is compared. Who wrote one that does nothing is told so."""
    both, free = (expected, found), set()
    if all(one.get("optim.lr") != "auto" for one in both):
        free.add("optim.dense_lr")
    if all(one.get("data.source") != "files" for one in both):
        free |= {"data.column", "data.encoding"}
    if expected.get("data.tokenizer") or found.get("data.tokenizer"):
        free.add("data.vocab_size")  # it has no effect there
    if expected.get("tokenizer") is not None and expected["tokenizer"] == found.get("tokenizer"):
        free.add("data.tokenizer")
    return free


def begun(path: Path) -> Begun | None:
    """What the run of a checkpoint began with; None where that does not say it, as those of older versions.

    Raises CheckpointError where it cannot be read.
    """
    info = checkpoint.read_info(path)
    if "config" not in info:
        return None
    return Begun(f"checkpoint {path}", info["config"], _own_tokenizer(path, info.get("identity", {}).get("tokenizer")))


def _own_tokenizer(path: Path, sha256: object) -> str:
    """The tokenizer.json with this checksum in the folder of a checkpoint's run."""
    for folder in runs_of(path):
        with contextlib.suppress(OSError):
            if sha256_of(folder / TOKENIZER) == sha256:
                return str(folder / TOKENIZER)
    return ""
