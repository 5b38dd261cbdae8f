"""Folders are copied, moved and removed whole, also where they are write-protected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipu_bert import moving
from sparse_ops.files import in_words


def folder_of(path: Path, mode: int) -> Path:
    """A folder with a file and a folder in it, all of these rights for whoever has it."""
    (path / "in").mkdir(parents=True)
    for file in (path / "a", path / "in" / "b"):
        file.write_text(file.name)
        file.chmod(mode & 0o666)
    for folder in (path / "in", path):
        folder.chmod(mode)
    return path


def test_a_copy_has_the_bytes_and_not_the_rights(as_user):
    made = []
    origin, final = folder_of(as_user / "archive", 0o555), as_user / "copy"
    moving.copy(origin, final, before=lambda: made.append(final.exists()))
    assert made == [False]
    assert (final / "a").read_text() + (final / "in" / "b").read_text() == "ab"
    (final / "in" / "c").touch()
    assert sorted(path.name for path in as_user.iterdir()) == ["archive", "copy"]


def test_a_write_protected_folder_is_moved_into_another(as_user):
    """Its `..` would change: the system lets nobody rename it but root."""
    source, target = folder_of(as_user / "a", 0o555), as_user / "other" / "a"
    target.parent.mkdir()
    moving.copy_afar({source: target})
    moving.move({source: target})
    assert not source.exists()
    assert (target / "in" / "b").read_text() == "b"
    assert os.listdir(as_user) == ["other"]


def test_what_could_not_be_removed_where_it_is_is_not_copied(tmp_path, monkeypatch):
    """Each start of a job left one more whole copy, of a best checkpoint on a disk that was mounted read-only."""
    source, target = folder_of(tmp_path / "disk" / "a", 0o755), tmp_path / "other" / "a"
    target.parent.mkdir()
    monkeypatch.setattr(moving, "_can_be_renamed", lambda *_: False)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *_, **more: path != source.parent and access(path, *_, **more))
    with pytest.raises(OSError, match="cannot be moved, as its folder or disk is read-only") as caught:
        moving.copy_afar({source: target})
    assert caught.value.filename == str(source)
    assert os.listdir(target.parent) == []


def test_what_a_link_in_a_removed_folder_stands_for_keeps_its_rights(as_user):
    mine, doomed = folder_of(as_user / "mine", 0o555), as_user / "doomed"
    doomed.mkdir()
    (doomed / "link").symlink_to(mine)
    doomed.chmod(0o555)
    moving.remove(doomed)
    assert os.listdir(as_user) == ["mine"]
    assert mine.stat().st_mode & 0o777 == 0o555


@pytest.mark.parametrize("broken", ["pipe", "unreadable"])
def test_what_cannot_be_copied_is_named_and_leaves_nothing(broken, as_user):
    origin = as_user / "origin"
    origin.mkdir()
    if broken == "pipe":
        os.mkfifo(origin / "a")
    else:
        (origin / "a").touch(mode=0)
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        moving.copy(origin, as_user / "copy", before=lambda: None)
    assert in_words(caught.value).startswith(f"{origin / 'a'}: ")
    assert os.listdir(as_user) == ["origin"]
