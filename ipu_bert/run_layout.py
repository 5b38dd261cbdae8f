"""How a run's folder is laid out, which checkpoints it has, and to which folders a checkpoint may belong."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from ipu_bert.hub_files import is_hub_name

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
BEST = "best"  # the checkpoint of the lowest held-out loss
BRANCHES = "branches"  # what a run went back from, or put aside: folders with checkpoints of their own
STATE = "state.json"  # a checkpoint's last file: with it, it is complete
STEP = re.compile(r"step_(\d+)")  # a checkpoint's name


def complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the complete checkpoints in a folder, oldest first by number.

    Raises OSError for a link to nothing, as to a disk that is not mounted: what is there is not known.
    """
    not_dangling(folder)
    if not folder.is_dir():
        return []
    named = ((STEP.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in named if match and (path / STATE).is_file())


def newest(where: Path) -> Path | None:
    """The checkpoint that a path means: itself, or the newest complete one of a run or of a checkpoints folder.

    What a run saves is in its checkpoints/ alone: a copy that somebody keeps beside that is none of the run's.
    Raises OSError as `complete`.
    """
    own = where / CHECKPOINTS
    is_run = own.is_dir() or own.is_symlink()
    if (where / STATE).is_file() and not is_run:
        return where
    found = complete(own if is_run else where)
    return found[-1][1] if found else None


def not_dangling(folder: Path) -> None:
    """OSError where a folder is a link to nothing, which names both."""
    if folder.is_symlink() and not folder.exists():
        found = f"expected a folder, found a link to {os.readlink(folder)}, where nothing is: is its disk mounted?"
        raise OSError(errno.ENOTDIR, found, str(folder))


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
    while first > 1 and (parts[first] in (CHECKPOINTS, BEST) or STEP.fullmatch(parts[first])):
        first -= 1
    return "/".join(parts[first:])
