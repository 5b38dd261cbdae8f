"""Files that appear whole, their checksums, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, TextIO

from sparse_ops.saying import say


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An error of the system that names no file, as that of a write to a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else its text is all that it says
            error.filename = error.filename or os.fspath(path)
        raise


@contextmanager
def known_as(final: str | os.PathLike[str], aside: str | os.PathLike[str]) -> Iterator[None]:
    """An error of the system about `aside`, or what is in it, is about `final`: nobody knows what is built aside."""
    try:
        yield
    except OSError as error:
        where = Path(str(error.filename2 or error.filename))
        if Path(aside) not in (where, *where.parents):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(final)) from None


def in_words(error: OSError) -> str:
    """An error of the system as a message has it: which file, and what is wrong."""
    where = error.filename2 or error.filename  # of a rename what it was to be called: the file aside means nothing
    if isinstance(error, FileExistsError):  # folders are made where there is none: something else is there
        return f"{where}: expected a folder, or nothing yet, found something else"
    return f"{where}: {error.strerror or error}" if where else str(error)


def plain(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The path, of a file or of nothing; OSError for a folder, and for a pipe or a device, which may never be read."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "expected a file, found a folder, a pipe or a device", os.fspath(path))
    return path


def there(path: str) -> str:
    """A path that means the same before and after folders are made: `new/../old` is not there, and is `old` then."""
    return os.path.realpath(path) if os.pardir in Path(path).parts and not os.path.exists(path) else path


def is_worked_in(folder: Path) -> bool:
    """Whether this process works in a folder, or below it: moved, it would take along whoever called this program."""
    with suppress(FileNotFoundError):  # the one that it works in is gone
        return folder.resolve() in (Path.cwd(), *Path.cwd().parents)
    return False


@contextmanager
def usual_mode(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whom open() would let read a file may read the one that the block writes: safetensors lets its owner alone."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    with open(path, "xb") as file:  # the umask belongs to the whole process, and a folder may have rules of its own
        usual = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    os.unlink(path)
    yield
    found = stat.S_IMODE(os.stat(path).st_mode)
    if usual & ~found:
        with suppress(PermissionError):  # some drives keep a mode and let nobody set it
            os.chmod(path, found | usual)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write a file to; it takes the place of `path` when the block ends, and goes if it fails.

    A reader, a killed process and a power cut see the old file or the new one, never a part. A missing folder is made.
    A link is replaced, not followed. Raises OSError as `plain`: a device would become a file.
    """
    final = Path(plain(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        with known_as(final, aside):
            with naming(final), usual_mode(aside):
                yield aside
            sync(aside)
            os.replace(aside, final)
    finally:
        with suppress(OSError):  # gone where all went well; else what went wrong before is what is told
            aside.unlink()
    sync(final.parent)


def write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file as `replacing` does; text as UTF-8, in which bytes of a name that are none are an escape."""
    with replacing(path) as aside:
        aside.write_bytes(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)


def sync(path: str | os.PathLike[str]) -> None:
    """Make sure that a file, or the names in a folder, survive a power cut."""
    if os.name == "nt" and os.path.isdir(path):  # Windows cannot open folders, and does not need to
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def lock_after_others(path: str | os.PathLike[str], held: str) -> TextIO:
    """As `lock` with `wait`, where `held` is said on standard error if another process has it."""
    try:
        return lock(path, wait=False)
    except BlockingIOError:
        say(held, sys.stderr)
        return lock(path, wait=True)


def lock(path: str | os.PathLike[str], wait: bool) -> TextIO:
    """Hold an exclusive lock on a file, made if missing, until what is returned is closed or the process ends.

    Raises BlockingIOError when another process holds it and `wait` is false. Where the system or the file system has no
    locks (Windows, some network drives) only the lock is missing: a warning says so.
    """
    file = open(plain(path), "a", encoding="ascii")  # noqa: SIM115 - the lock lives as long as it
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            file.close()
            raise BlockingIOError(error.errno, "locked by another process", str(path)) from None
        warnings.warn(f"{path}: no file locks here ({error}); two processes at once are not noticed", stacklevel=2)
    return file
