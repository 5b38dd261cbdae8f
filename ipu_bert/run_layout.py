"""How a run's folder is laid out, and to which folders a checkpoint may belong."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ipu_bert.hub_files import is_hub_name

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
BEST = "best"  # the checkpoint of the lowest held-out loss
BRANCHES = "branches"  # what a run went back from, or put aside: folders with checkpoints of their own


def runs_of(checkpoint: Path) -> list[Path]:
    """The folders that a checkpoint's run may have: the one that it is in, and, where that is a branch, the run's."""
    found: list[Path] = []
    for place in ways_to(checkpoint):
        above = list(place.parents)
        found += above[1:2]
        if len(above) > 3 and above[2].name == BRANCHES:  # what lies above any other run is not its own
            found.append(above[3])
    return list(dict.fromkeys(found))


def ways_to(path: Path) -> tuple[Path, Path]:
    """A place by its name, on whose way may be links to another disk, and where it really is."""
    return Path(os.path.abspath(path)), path.resolve()


def name_for_others(where: str) -> str:
    """What a model that training began with is called, without the folders of whoever keeps it: on the hub by its name
    there, elsewhere by its folder's, which of a checkpoint is its run's, and its own.
    """
    if is_hub_name(where):
        return where
    parts = Path(os.path.abspath(where)).parts
    first = len(parts) - 1
    while first > 1 and (parts[first] in (CHECKPOINTS, BEST) or re.fullmatch(r"step_\d+", parts[first])):
        first -= 1
    return "/".join(parts[first:])
