"""Whether a run judges itself on what the run that it starts from was trained on."""

from __future__ import annotations

import os
from pathlib import Path

from ipu_bert import checkpoint
from ipu_bert.config import Config, from_dict


def trained_before(config: Config) -> list[str]:
    """A line where a run behind `model.init` held out less of the same text, so that some of what is held out is known.

    By settings alone: which documents are held out follows from their text and `data.heldout_fraction`. Nothing is said
    of other models and of runs whose checkpoint cannot be read.
    """
    seen: set[str] = set()
    where = config.model.init
    while where and os.path.realpath(where) not in seen:  # that run may have begun with another one
        seen.add(os.path.realpath(where))
        try:
            earlier = from_dict(checkpoint.read_info(checkpoint.find(Path(where)))["config"])
        except (ValueError, KeyError, OSError):
            break
        mine, its = config.data.heldout_fraction, earlier.data.heldout_fraction
        if its < mine and _share_text(earlier, config):
            return [
                f"{where}, where weights began, had data.heldout_fraction {its:g} of the same text, not {mine:g}: it "
                "was trained on documents that are held out here, on which losses are lower than on new text"
            ]
        where = earlier.model.init
    return []


def _share_text(one: Config, other: Config) -> bool:
    """Whether there is anything that both read, by its name: a source, or a file or folder of files, or one in it."""
    sources = {one.data.source, other.data.source}
    if sources != {"files"}:
        return len(sources) == 1 or sources == {"sotu", "mix"}
    pairs = [(mine, its) for mine in _paths(one) for its in _paths(other)]
    return any(mine == its or mine in its.parents or its in mine.parents for mine, its in pairs)


def _paths(config: Config) -> list[Path]:
    paths = [config.data.path] if isinstance(config.data.path, str) else config.data.path
    return [Path(os.path.realpath(path)) for path in paths]
