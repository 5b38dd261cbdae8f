"""Whether a run judges itself on what the model that it starts from was trained on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping

from ipu_bert import checkpoint
from ipu_bert.checkpoint_info import TRAINED_BEFORE

_BEGAN = ", where weights began,"


def trained_before(init: str, held_out: Mapping[str, str], text: str | None) -> list[str]:
    """A line where a model behind `model.init` was, or may have been, trained on documents that are held out here.

    By what the checkpoints of runs say of their text, down to the first of which all is known. held_out: of
    this run's text, as TokenFiles.held_out; text: its checksum, by which older versions knew it, None where it is not
    prepared yet. Nothing is said where all of them held out at least the same documents.
    """
    lines: list[str] = []
    seen: set[str] = set()
    while init and os.path.realpath(init) not in seen:
        seen.add(os.path.realpath(init))
        info = _info(init)
        found = info.get("held_out")
        if not isinstance(found, dict) or found.keys() != held_out.keys():
            same = text is not None and _plain(info, "identity").get("text") == text
            lines += [] if same else [_may(init, "what its text was is not known here")]
        elif found["documents"] != held_out["documents"]:
            lines.append(_may(init, "it had another text, or the same one as other documents"))
        elif found["below"] < held_out["below"]:
            was = "was trained on documents that are held out here, on which losses are lower than on new text"
            return [f"{init}{_BEGAN} held out less of the same text: it {was}"]
        elif info.get(TRAINED_BEFORE) == []:  # what it began with held out as much as it, found when it began
            break
        init = str(_plain(_plain(info, "config"), "model").get("init", ""))
    return lines[:1]


def without_path(line: str) -> str:
    """A line of `trained_before` for others, to whom the path says nothing."""
    return f"The model where weights began{line.partition(_BEGAN)[2]}"


def _may(init: str, why: str) -> str:
    return (
        f"{init}{_BEGAN} may have been trained on documents that are held out here, on which losses are "
        f"lower than on new text: {why}"
    )


def _info(init: str) -> Mapping[str, Any]:
    """What the checkpoint says that a model was taken from; nothing where it is none of a run, or gone."""
    try:
        return checkpoint.read_info(checkpoint.find(Path(init)))
    except (ValueError, OSError):
        return {}


def _plain(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}
