"""Whether a run judges itself on what the model that it starts from was trained on.

Every checkpoint keeps which texts its weights knew before its own run, and hands them on: {checksum of a text's
documents: the largest hash of one that was held out}, as `data.manifest.held_out` has them. "" is a text that is not
known, or a hash that is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from ipu_bert import checkpoint
from ipu_bert.checkpoint_info import LINES_BEFORE, TEXTS_BEFORE

_NOT_KNOWN = ""
_OF_NONE = {"documents": _NOT_KNOWN, "last": ""}


def texts_before(init: str, text: str) -> dict[str, str]:
    """What the model behind `model.init` was trained on by its own run and by those before it.

    text: the checksum of this run's prepared text. Of two runs that held out different documents of one text the
    smaller hash counts: what is above was trained on by one of them. A run on the same prepared text, whatever version
    prepared it, adds nothing.
    """
    info = _info(init)
    if "identity" not in info:
        return {_NOT_KNOWN: ""}
    before, own = of_checkpoint(info)
    if info["identity"].get("text") != text:
        documents = own["documents"]
        before[documents] = min(own["last"], before.get(documents, own["last"]))
    return before


def of_checkpoint(info: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What the weights of a checkpoint knew before its run, and which documents that held out.

    Those of earlier versions do not say what either was, or say of the first only that nothing was to be told.
    """
    started = _plain(_plain(info, "config"), "model").get("init") and info.get(LINES_BEFORE) != []
    before = info.get(TEXTS_BEFORE, {_NOT_KNOWN: ""} if started else {})
    held_out = _plain(info, "held_out")
    return dict(before), dict(held_out if held_out.keys() == _OF_NONE.keys() else _OF_NONE)


def told(before: Mapping[str, str], held_out: Mapping[str, str], init: str = "") -> list[str]:
    """A line where a model that began with such texts was, or may have been, trained on documents held out here.

    Nothing is said where all runs before held out at least the same. init: `model.init`, for those to whom the path
    says something.
    """
    start = f"{init}, where weights began," if init else "The model where weights began"
    knew = "trained on documents that are held out here, on which losses are lower than on new text"
    documents, last = held_out["documents"], held_out["last"]
    if "" < before.get(documents, "") < last:
        return [f"{start} was {knew}: less of the same text was held out there"]
    if _NOT_KNOWN in before:
        why = "what it was trained on is not known here"
    elif documents in before and not (last and before[documents]):
        why = "how much of the same text was held out there is not known here"
    elif before.keys() - {documents}:
        why = "it had another text, or the same one as other documents"
    else:
        return []
    return [f"{start} may have been {knew}: {why}"]


def _info(init: str) -> Mapping[str, Any]:
    """What the checkpoint says that a model was taken from; nothing where it is none of a run, or gone."""
    try:
        return checkpoint.read_info(checkpoint.find(Path(init)))
    except (ValueError, OSError):
        return {}


def _plain(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}
