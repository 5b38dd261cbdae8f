"""Files appear whole or not at all; locks hold between processes, and their lack is said."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sparse_ops import files


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    files.write(path, "first")
    files.write(path, b"second")
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_name_that_is_not_utf8_is_written_as_its_escape(tmp_path: Path) -> None:
    """A run came to its end, and then to `surrogates not allowed` in place of its report."""
    files.write(tmp_path / "report.md", os.fsdecode(b"caf\xe9.csv: not read, \xc3\xa9"))
    assert (tmp_path / "report.md").read_text("utf-8") == r"caf\udce9.csv: not read, é"


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write(path, "old")

    def torn(aside: Path) -> None:
        aside.write_text("ne")
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"), files.replacing(path) as aside:
        torn(aside)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o000])
def test_a_file_has_the_mode_that_open_would_have_given_it(umask: int, tmp_path: Path) -> None:
    """What safetensors writes, weights alone of all files, could be read by its owner only; a program may be run."""

    def write(aside: Path, mode: int) -> None:
        aside.unlink(missing_ok=True)
        os.close(os.open(aside, os.O_CREAT | os.O_WRONLY, mode))

    before = os.umask(umask)
    try:
        for name, mode in (("weights", 0o600), ("program", 0o777), ("text", 0o666)):
            (tmp_path / f".{name}.{os.getpid()}.tmp").touch(mode=0o600)  # that a killed process of this number left
            with files.replacing(tmp_path / name) as aside:
                write(aside, mode)
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert found == {"weights": 0o666 & ~umask, "program": 0o777 & ~umask, "text": 0o666 & ~umask}


def test_what_cannot_be_removed_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    """As in a folder that nobody may write to any more, or that is gone: the message was about the file aside."""
    (tmp_path / "a").write_text("old")

    def write() -> None:
        with files.replacing(tmp_path / "a") as aside:
            aside.mkdir()
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert (tmp_path / "a").read_text() == "old"


def test_an_error_of_the_file_aside_names_the_one_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)  # the file aside, whose name is longer, cannot be made
    with pytest.raises(OSError, match="name too long") as caught:
        files.write(path, "")
    assert caught.value.filename == str(path)


def test_an_error_of_a_file_in_the_folder_aside_names_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    aside = tmp_path / ".a.1.tmp"
    for name in ("x", "x/y"):
        with pytest.raises(FileNotFoundError) as caught, files.known_as(tmp_path / "a", aside):
            (aside / name).read_bytes()
        assert caught.value.filename == str(tmp_path / "a")
    for act in (tmp_path / "other").read_bytes, lambda: os.replace(aside, tmp_path / "a"):
        with pytest.raises(FileNotFoundError) as caught, files.known_as(tmp_path / "a", aside):
            act()
        assert (caught.value.filename2 or caught.value.filename) in (str(tmp_path / "other"), str(tmp_path / "a"))


def test_an_error_that_names_no_file_gets_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left.*data\.bin"), files.naming(tmp_path / "data.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError) as caught, files.naming(tmp_path / "data.bin"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_what_stands_in_the_way_is_named_and_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for act, words in (
        (
            lambda: files.write(tmp_path / "file" / "x", ""),
            "file: expected a folder, or nothing yet, found something else",
        ),
        *(
            (
                functools.partial(files.write, tmp_path / name, ""),
                f"{name}: expected a file, found a folder, a pipe or a",
            )
            for name in ("folder", "pipe")
        ),
        (
            lambda: files.lock(tmp_path / "pipe", wait=False),
            "pipe: expected a file, found a folder, a pipe or a device",
        ),
        (lambda: files.lock(tmp_path / "folder", wait=True), "folder: expected a file, found a folder, a pipe or a"),
    ):
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            act()
        assert files.in_words(caught.value).startswith(f"{tmp_path}/{words}")
    assert (tmp_path / "pipe").is_fifo()  # /dev/null had become a file


def test_what_is_written_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = files.os.fsync, files.os.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: (order.append("fsync"), fsync(number)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    files.write(tmp_path / "a", "x")
    assert order == ["fsync", "replace", "fsync"], "the file, its new name, the folder"


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8200  # more than one piece
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


HOLD = (
    "import sys; from sparse_ops import files;"
    "held = files.lock(sys.argv[1], wait=False); print('held', flush=True); input()"
)


def test_another_process_is_kept_out_until_the_first_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / ".lock")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="locked by another process"):
            files.lock(path, wait=False)
        threading.Timer(0.2, other.kill).start()
        files.lock_after_others(path, "somebody has it").close()
        assert capfd.readouterr().err == "somebody has it\n"  # it was waited for in silence
    files.lock_after_others(path, "nobody has it").close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), OSError(errno.ENOTSUP, "not supported")]
)
def test_where_there_are_no_locks_only_the_lock_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=f"no file locks here .*{error.strerror}"):
        files.lock(tmp_path / ".lock", wait=False).close()


def test_a_system_without_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.warns(UserWarning, match="no file locks here"):
        files.lock(tmp_path / ".lock", wait=True).close()


def test_where_this_process_works_is_known_also_when_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    for path, expected in ((tmp_path, True), (Path("."), True), (tmp_path / "link", True), (Path("b"), False)):
        assert files.is_worked_in(path) == expected
    monkeypatch.chdir("b")
    os.rmdir(tmp_path / "a" / "b")
    assert not files.is_worked_in(tmp_path)
