"""Where a run may be: what is in a folder, who holds it, and which run may begin or go on there."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence, TextIO

from ipu_bert import checkpoint
from ipu_bert.config import Config
from ipu_bert.record.metrics import METRICS_FILE, Record, as_lines, read_metrics, split_at
from ipu_bert.run_layout import BEST, BRANCHES, CHECKPOINTS, CONFIG_FILE, not_dangling, ways_to
from sparse_ops import files
from sparse_ops.saying import say

ASIDE = re.compile(r"\..+\.\d+\.tmp")  # as sparse_ops.files.replacing names what it has not finished
_LOCK = ".lock"
_OWN = (CHECKPOINTS, BEST, "tensorboard")  # folders of a run that hold no other run; a branch may be gone on in
_DEEP = 4  # so many folders below a run's another run is looked for


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run goes on from, and its step. skipped: steps in a row that were passed over before it."""

    checkpoint: Path
    step: int
    skipped: int


@dataclass(frozen=True)
class Found:
    """What was in a run's folder when it was decided where the run goes on. newest: its newest checkpoint, if any."""

    newest: Path | None


def settle(path: Path) -> Found:
    """Undo what a killed process had half done, and find a run's newest checkpoint.

    Raises ValueError when another process is training there: what is its newest checkpoint is not decided yet.
    """
    if not (path / CONFIG_FILE).exists():
        return look(path)
    with hold(path):
        checkpoint.clean(path / CHECKPOINTS)
        return look(path)


def look(path: Path) -> Found:
    """What is in a run's folder now; OSError where that, or one of its folders of checkpoints, is a link to nothing."""
    for folder in (path, path / BEST):
        not_dangling(folder)
    checkpoints = checkpoint.complete(path / CHECKPOINTS)
    return Found(checkpoints[-1][1] if checkpoints else None)


def newest_checkpoint(config: Config) -> Path | None:
    """Of the run that the config names, if it has one."""
    return look(Path(config.run.dir)).newest


def check_as_found(path: Path, found: Found) -> None:
    """Raises ValueError where the newest checkpoint is another one by now: the run would go back, or begin, unasked.

    The caller holds the lock.
    """
    newest = look(path).newest
    if newest != found.newest:
        raise ValueError(
            f"run.dir {path}: expected {found.newest or 'no checkpoint'} to be its newest checkpoint, as it was when "
            f"this process began, found {newest or 'none'}: another process was there meanwhile; start again"
        )


def check_room(path: Path) -> None:
    """ValueError where a new run cannot begin, since something else than an earlier run is there, or more than it."""
    if not (path / CONFIG_FILE).exists():
        others = _others(path)
        if others:
            raise ValueError(
                f"run.dir {path}: expected a new or empty folder or an earlier run's, found other files in it: "
                f"{_first(others)}"
            )
        return
    inner = list(_runs_below(path))
    if inner:
        raise ValueError(
            f"run.dir {path}: expected an earlier run alone, which a new one moves aside with all that is in its "
            f"folder, found another run in it: {_first(inner)}; name a new folder with run.dir=FOLDER, or move that "
            "run elsewhere"
        )


def _first(found: Sequence[object]) -> str:
    return f"{found[0]} and {len(found) - 1} more" if found[1:] else str(found[0])


def _runs_below(path: Path, own: Sequence[str] = _OWN, deep: int = _DEEP) -> Iterator[Path]:
    """Other runs in a folder, but for those in folders `own` of it, or more than `deep` folders below it.

    Neither what a run found or a link holds is looked at, nor what may not be read.
    """
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(path))
    for folder in (path / name for name in names if name not in own and os.path.isdir(path / name)):
        if folder.is_symlink() and folder.resolve() in (path.resolve(), *path.resolve().parents):
            continue  # the run itself, or what it lies in
        if _has_run(folder):
            yield folder
        elif deep > 1 and not folder.is_symlink():
            yield from _runs_below(folder, (), deep - 1)


def _has_run(folder: Path) -> bool:
    """Whether a run can go on in a folder, or trains there and has not saved anything yet."""
    if os.path.isfile(folder / CONFIG_FILE) and os.path.lexists(folder / CHECKPOINTS):
        return True
    with contextlib.suppress(OSError):  # of a lock that may not be tried
        if (folder / _LOCK).is_file():
            try:
                files.lock(folder / _LOCK, wait=False).close()
            except BlockingIOError:
                return True
    return False


def make_room(path: Path, found: Found) -> None:
    """Move an earlier run aside; ValueError where that cannot be, or where something else is there."""
    check_room(path)
    if not _others(path):
        return
    folder = path.resolve()  # what a link stands for is moved, and stays on its disk
    with hold(path) as lock:  # nobody may be training there, or begin to before it is moved
        check_as_found(path, found)
        if files.is_worked_in(folder):
            raise _not_moved(path, "the one that this program works in")
        if os.name == "nt":  # no folder with an open file can be moved there, and a lock is none (sparse_ops/files.py)
            lock.close()
        aside = free_name(folder)
        try:
            folder.rename(aside)
        except OSError as error:  # a mount point, or in a folder that may not be written
            raise _not_moved(path, f"one that cannot become {aside}: {error.strerror or error}") from None
    folder.mkdir(exist_ok=True)  # another process may have begun there by now: then its lock is what counts
    say(f"an earlier run was in {path}; it is in {aside} now{_way_on(aside)}", sys.stdout)


def _not_moved(path: Path, found: str) -> ValueError:
    return ValueError(
        f"run.dir {path}: expected a folder whose earlier run can be moved aside, found {found}; name a new one with "
        "run.dir=FOLDER, or go on with --resume"
    )


def _way_on(path: Path) -> str:
    """How a run goes on whose only checkpoint is its best: `auto` looks for the newest, and begins anew."""
    best = checkpoint.complete(path / BEST)
    if not best or look(path).newest:
        return ""
    return f", and goes on from its best checkpoint with run.dir={path} --resume {best[-1][1]}"


def records_before(origin: Origin) -> list[Record]:
    """What the run whose folder a checkpoint is in has recorded up to it; nothing of a branch, which has a part."""
    runs = (way.parent.parent for way in ways_to(origin.checkpoint) if way.parent.name in (CHECKPOINTS, BEST))
    metrics = next((run / METRICS_FILE for run in runs if (run / METRICS_FILE).exists()), None)
    if metrics is None:
        return []
    try:
        records = split_at(read_metrics(metrics), origin.step)[0]
    except ValueError as error:  # a run that goes on elsewhere needs nothing of it
        say(f"the records before step {origin.step} are left out: {error}", sys.stderr)
        return []
    return records if records and records[0]["kind"] == "start" else []


def check_same_run(path: Path, origin: Origin) -> None:
    """A run goes on in its own folder or in a new one; what another run has in its folder is not touched.

    New is also a folder that has nothing but a copy of the checkpoint, or of the records before it and the best one:
    its process was killed before it saved anything.
    """
    start = origin.checkpoint
    if (path / BRANCHES).resolve() in start.resolve().parents:
        raise ValueError(
            f"run.dir {path}: expected a new folder for {start}, which this run has put aside, found the run itself; "
            "name a new one with run.dir=FOLDER"
        )
    own = is_own(path, start)
    copies = [folder for _, folder in checkpoint.complete(path / CHECKPOINTS)]
    begun = len(copies) == 1 and checkpoint.read_info(copies[0]) == checkpoint.read_info(start)
    if not own and not begun and _others(path) and not _has_records_alone(path, origin):
        raise ValueError(
            f"run.dir {path}: expected the run that {start} is of, or a new folder, found another run or other files; "
            "name a new one with run.dir=FOLDER"
        )


def is_own(path: Path, start: Path) -> bool:
    """Whether a checkpoint is among those of the run in this folder."""
    return start.resolve().parent in [(path / name).resolve() for name in (CHECKPOINTS, BEST)]


def of_another_folder(config_file: Path, path: Path) -> str:
    """A line where the config of a run is that of another run's folder, as of one that was moved; else empty."""
    folder = config_file.parent
    if config_file.name != CONFIG_FILE or not (folder / METRICS_FILE).exists() or folder.resolve() == path.resolve():
        return ""
    return f"{config_file} is of the run in {folder}; this one is in {path}, as it says there, unless run.dir={folder}"


def _has_records_alone(path: Path, origin: Origin) -> bool:
    """Whether a folder has nothing but what was recorded before a checkpoint, and the best of then: killed before that
    appeared there.
    """
    metrics = path / METRICS_FILE
    return (
        metrics.is_file()
        and not _others(path, METRICS_FILE, BEST)
        and metrics.read_bytes() == as_lines(records_before(origin)).encode()
    )


def _others(path: Path, *but: str) -> list[str]:
    """What is there, `but` these, beside what a run makes before its config, during which it may have been killed."""
    return sorted(
        found.name
        for found in (path.iterdir() if path.exists() else ())
        if found.name not in (_LOCK, *but)
        and not ASIDE.fullmatch(found.name)
        and (found.name not in (CHECKPOINTS, BEST) or checkpoint.complete(found))
    )


def free_name(path: Path) -> Path:
    """`path`, or with .1, .2, ... after it the first that is not there."""
    number, free = 0, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def hold(path: Path) -> TextIO:
    """Hold the folder until the file is closed or the process ends."""
    with contextlib.suppress(BlockingIOError):
        lock = files.lock(path / _LOCK, wait=False)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (path / _LOCK).stat()):
                return lock
        lock.close()  # the folder was moved aside after the file had been opened
    raise ValueError(f"run.dir {path}: another process is training there; choose another run.dir")
