"""Folders and files are copied, moved and removed whole: to another disk, too, and where they are write-protected."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Callable, Iterator, Mapping

from sparse_ops.files import known_as, naming, plain, sync
from sparse_ops.saying import say

_PIECE = 1 << 20  # bytes
_told: set[Path] = set()  # what could not be removed: said once by a process, which tries again at each checkpoint


def aside(final: Path) -> Path:
    """Where this process builds or removes what is called `final`."""
    return final.with_name(f".{final.name}.{os.getpid()}.tmp")


def copy(origin: Path, final: Path, before: Callable[[], object]) -> None:
    """Copy a folder or a file, which appears when all of it is on disk; `before` is called just before that.

    Modes are not copied: what is read-only in an archive could not be removed from a run. Raises OSError that names
    `final` where it cannot be written, as on a full disk, and else what of `origin` cannot be read.
    """
    built = aside(final)
    try:
        with known_as(final, built):
            _remove(built)
            _copy(origin, built)
        before()
        os.replace(built, final)
        sync(final.parent)
    finally:
        remove(built)


def copy_afar(moves: Mapping[Path, Path]) -> None:
    """Copy those sources that `move` could not rename, as they are on another disk or write-protected.

    moves: from files and folders to their new paths, in folders that are there. Raises OSError, as on a full disk, and
    for one that could not be removed where it is, before it is copied.
    """
    afar = {source: target for source, target in moves.items() if not _can_be_renamed(source, target.parent)}
    for source in afar:
        if not os.access(source.parent, os.W_OK):
            raise OSError(errno.EACCES, "cannot be moved, as its folder or disk is read-only", str(source))
    for source, target in afar.items():
        copy(source, target, before=lambda: None)


def move(moves: Mapping[Path, Path]) -> None:
    """Move in this order what `copy_afar` was called for: what that has copied is removed where it was."""
    for source, target in moves.items():
        _move(source, target)


def take_away(path: Path) -> None:
    """Remove it; half of it never has its name. What cannot be removed is left there, which is told once."""
    with _telling(path):
        _take_away(path)


def remove(path: Path) -> None:
    """Remove a folder, a write-protected one, too, or what stands in its place: of a link the link alone.

    What cannot be removed is left there, which is told once.
    """
    with _telling(path):
        _remove(path)


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """An error of the system is one line: nothing of a run depends on what is removed."""
    try:
        yield
    except OSError as error:  # it names files without their folder
        if path not in _told:
            _told.add(path)
            say(f"{path}: could not be removed, and is left there: {error.strerror or error}", sys.stderr)


def _take_away(path: Path) -> None:
    doomed = aside(path)
    os.replace(path, doomed)
    remove(doomed)


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        _make_writable(path)
        shutil.rmtree(path)


def _make_writable(path: Path) -> None:
    """Let the owner of a folder change what is in it and in its folders; links are not followed."""
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):  # another one's: then it cannot be removed, which is told
            os.chmod(folder, stat.S_IMODE(os.stat(folder).st_mode) | stat.S_IRWXU)


def _can_be_renamed(source: Path, folder: Path) -> bool:
    """Not to another disk, nor, without leave to write in it, a folder, whose `..` changes."""
    writable = os.access(source, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    return writable and source.lstat().st_dev == folder.stat().st_dev


def _move(source: Path, target: Path) -> None:
    if not target.exists():
        try:
            os.replace(source, target)
            return
        except OSError as error:  # between mounts of one disk, and layers of a container, too
            if error.errno != errno.EXDEV:
                raise
        copy(source, target, before=lambda: None)
    _take_away(source)


def _copy(origin: Path, target: Path) -> None:
    """The bytes of a folder or a file, on disk."""
    if origin.is_dir():
        target.mkdir()
        for path in origin.iterdir():
            _copy(path, target / path.name)
    else:
        with naming(target), open(target, "wb") as file:
            for piece in _pieces(origin):
                file.write(piece)
    sync(target)


def _pieces(path: Path) -> Iterator[bytes]:
    with naming(path), open(plain(path), "rb") as file:
        yield from iter(lambda: file.read(_PIECE), b"")
