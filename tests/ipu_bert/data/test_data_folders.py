"""Which files a path, a folder or a glob gives, and what is said of those that it leaves out."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path

import pytest
from data_corpora import corpus, documents_of, source_of

from ipu_bert.data.errors import DataError
from ipu_bert.data.language import language_notes
from ipu_bert.data.local_files import find_files
from ipu_bert.data.manifest import told_text
from ipu_bert.data.prepare import find_prepared, prepare, summary
from ipu_bert.data.shards import told_empty


def test_files_are_read_whatever_they_are_called_when_named(tmp_path: Path) -> None:
    for name in ("ca01", "ca02", "read.me"):
        (tmp_path / name).write_text(f"Text of {name}.")
    assert documents_of(tmp_path / "ca01", tmp_path / "read.me") == ["Text of ca01.", "Text of read.me."]
    assert documents_of(tmp_path / "ca*") == ["Text of ca01.", "Text of ca02."]
    with pytest.raises(DataError, match=r"no text found at .*3 of its files are not read .*: ca01, ca02, read\.me"):
        documents_of(tmp_path)


def test_what_a_folder_leaves_out_is_counted_and_named(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"t{i}.txt").write_text(f"Text {i}. More of {i}.")
    (tmp_path / "sub").mkdir()
    for i in range(7):
        (tmp_path / "sub" / f"ca{i:02d}").write_text("x")
    (tmp_path / "meta.json").write_text("{}")
    (tmp_path / "note.xml").write_text("<note/>")
    (tmp_path / "blank.txt").write_text("\n")
    asked = corpus(source="files", paths=(str(tmp_path),), document_words=0)
    found = prepare(asked, str(tmp_path / "out"), workers=1, progress=False)
    left, empty, _ = found.notes
    assert left.startswith(
        f"{tmp_path}: 9 of its files are not read (1 with .json, 1 with .xml, 7 with no ending): meta.json, note.xml, "
        "sub/ca00, ...; name them, or give a glob"
    )
    assert empty == f"{tmp_path / 'blank.txt'}: empty, left out"
    assert left in summary(found)


def test_what_a_folder_leaves_out_is_that_of_today(tmp_path: Path) -> None:
    """What lay beside a text when it was prepared was told for ever, of other folders, too; what came later never."""
    folders, out = [tmp_path / name for name in ("one", "two")], str(tmp_path / "out")
    for folder in folders:
        folder.mkdir()
        rows = [*(f"Text {i}. More of {i}." for i in range(9)), ""]
        (folder / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    read = "1 of 10 documents have no text (rows: in column 'text') and are left out"
    (folders[0] / "table.csv").write_text("x")
    asked = [corpus(source="files", paths=(str(folder),), vocab_size=41) for folder in folders]
    first = prepare(asked[0], out, workers=1, progress=False)
    left = f"{folders[0]}: 1 of its files are not read (1 with .csv): table.csv; "
    assert first.notes[0].startswith(left)
    other = prepare(asked[1], out, workers=1, progress=False)
    assert (other.directory, other.notes) == (first.directory, [read])
    (folders[1] / "later.md").write_text("x")
    (folders[1] / "empty.txt").write_text("")
    (folders[1] / "gone.txt").symlink_to("nowhere")
    for found in (prepare(asked[1], out, workers=1, progress=False), find_prepared(asked[1], out)[1]):
        assert found is not None
        assert found.notes[0].startswith(f"{folders[1]}: 1 of its files are not read (1 with .md): later.md; ")
        assert found.notes[1:] == [
            f"{folders[1]}: passed over: 1 broken link(s): {folders[1] / 'gone.txt'}",
            f"{folders[1] / 'empty.txt'}: empty, left out",
            read,
        ]
    path = Path(first.directory) / "manifest.json"  # as the releases before wrote it
    older = {**first.manifest, "notes": [f"{folders[0]}: 1 of its files are not read", read]}
    path.write_text(json.dumps({key: value for key, value in older.items() if key != "sha256"}))
    assert prepare(asked[0], out, workers=1, progress=False).notes == [first.notes[0], read]


def test_links_of_a_folder_are_followed_once(tmp_path: Path) -> None:
    """Two links to `.` never came to an end; what a link leads to inside the folder was read twice."""
    folder = tmp_path / "text"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    (folder / "sub" / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    (tmp_path / "beside" / "c.txt").write_text("c")
    for name, to in (("l1", "."), ("l2", "."), ("l3", "../beside"), ("l4", "sub"), ("z.txt", "b.txt"), ("b", "b.txt")):
        (folder / name).symlink_to(to)
    found = source_of(folder)
    assert list(found.documents()) == ["b", "c", "a"]  # l3/c.txt, l4/a.txt
    left, passed = found.notes
    assert "1 of its files are not read (1 with no ending): b;" in left
    where = ", ".join(str(folder / name) for name in ("l1", "l2", "sub"))
    assert passed == f"{folder}: passed over: 4 read already by another way: {where}, ..."


def test_globs_follow_links_once_too(tmp_path: Path) -> None:
    """`**` went through links that lead back for ever, and read a file as often as links led to it."""
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt", "sub/deep/d", ".hidden/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name, to in (("l1", "."), ("l2", "."), ("sub/l3", ".."), ("sub/z.txt", "../a.txt")):
        (tmp_path / name).symlink_to(to)
    found = source_of(tmp_path / "**" / "*.txt")
    assert list(found.documents()) == ["a.txt", "sub/b.txt", "sub/deep/c.txt"]
    again = ", ".join(str(tmp_path / name) for name in (".hidden", "l1", "l2"))
    assert found.notes == (f"{tmp_path}/**/*.txt: passed over: 1 hidden, 4 read already by another way: {again}, ...",)
    copy = tmp_path / "copy"
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt", "sub/deep/sub/f.txt"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(name)
    for pattern in (
        "**/**/*.txt",
        "**/sub/**/*.txt",
        "**/*/**/*.txt",
        "*/**",
        "**//*.txt",
        "sub//**/",
    ):  # as Python has it: no link leads back
        wanted = {name for name in glob.glob(str(copy / pattern), recursive=True) if os.path.isfile(name)}
        assert {*find_files([str(copy / pattern)], "text", "utf-8").paths} == wanted
    twice = find_files([str(tmp_path / "a.txt"), str(tmp_path / "sub" / "z.txt")], "text", "utf-8")
    assert twice.paths == (str(tmp_path / "a.txt"),)
    assert twice.notes == (f"{tmp_path}/sub/z.txt: passed over: 1 read already by another way: {tmp_path}/sub/z.txt",)


def test_what_is_passed_over_is_counted_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", ".b.txt", ".git/c.txt", "closed/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    scandir = os.scandir

    def refused(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)  # root may open everything
    found = source_of(tmp_path)
    assert list(found.documents()) == ["a.txt"]
    assert found.notes == (
        f"{tmp_path}: passed over: 1 broken link(s), 1 device(s) or pipe(s), 2 hidden, 1 that cannot be opened: "
        f"{tmp_path / '.b.txt'}, {tmp_path / '.git'}, {tmp_path / 'closed'}, ...",
    )
    with pytest.raises(DataError, match=r"no text found at .*: passed over: 1 that cannot be opened: "):
        documents_of(tmp_path / "closed")


def test_what_training_puts_beside_its_text_is_no_text(tmp_path: Path) -> None:
    """A run begun in the folder of its text could not go on: its own files had become text."""
    made = {
        "runs/mine": (".lock", "config.yaml", "metrics.jsonl", "checkpoints/step_1/a.txt"),
        "data/files-1": ("manifest.json", "tokenizer.json", "b.txt"),
        "data/files-2.partial": ("text/00000.jsonl",),
        "exported": ("config.json", "model.safetensors", "vocab.txt"),
        "parts": ("config.json", "model.safetensors.index.json", "vocab.txt"),
        "mine": ("config.yaml", "c.txt"),  # not a run: it is read
    }
    for folder, names in made.items():
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(f"of {folder}")
    found = source_of(tmp_path)
    assert list(found.documents()) == ["of mine"]
    assert f"passed over: 5 folder(s) of a run, of prepared text or of a model: {tmp_path / 'data'}" in found.notes[-1]
    with pytest.raises(DataError, match="cannot be read as json"):  # named itself it is read as any folder
        documents_of(tmp_path / "runs/mine", tmp_path / "data/files-2.partial")


def test_a_glob_says_which_folders_and_links_it_passes_over(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.txt").symlink_to("nowhere")
    found = source_of(tmp_path / "*")
    assert list(found.documents()) == ["b"]
    assert found.notes == (
        f"{tmp_path / '*'}: passed over: 1 broken link(s), 1 folder(s), to be named themselves: "
        f"{tmp_path / 'c.txt'}, {tmp_path / 'sub'}",
    )
    (tmp_path / "c.txt").unlink()
    assert (found := source_of(tmp_path / "**")).notes == ()
    assert list(found.documents()) == ["b", "a"]
    with pytest.raises(DataError, match=r"no text found at .*passed over: 1 folder"):
        documents_of(tmp_path / "s*")


def test_what_is_no_file_is_refused_before_it_is_read(tmp_path):
    """A device has no end, and a pipe (as of `<(zcat x)`) gives its text once; a text is read more than once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (str(pipe), os.devnull):
        with pytest.raises(DataError, match=f"{path}: expected a file or a folder, found a device or a pipe"):
            find_files([path], "text", "utf-8")


def test_a_thing_of_a_thousand_files_is_said_of_a_few(tmp_path: Path) -> None:
    """Each was a line on the console and a paragraph of the report."""
    (tmp_path / "text.txt").write_text("One. Two.")
    for i in range(12):
        (tmp_path / f"empty{i:02}.txt").write_text("")
    named = [f"{tmp_path / f'empty{i:02}.txt'}: empty, left out" for i in range(12)]
    assert source_of(tmp_path).notes == (*named[:10], "and 2 more files without text")
    (tmp_path / "empty11.txt").unlink()
    (tmp_path / "empty10.txt").unlink()
    assert source_of(tmp_path).notes == tuple(named[:10])
    links = [tmp_path / f"link{i:02}" for i in range(12)]
    for link in links:
        link.symlink_to(tmp_path / "text.txt")
    again = source_of(tmp_path / "text.txt", *links).notes
    assert again[0].startswith(f"{links[0]}: passed over: 1 read already")
    assert (len(again), again[-1]) == (11, "and 2 more lines about other paths that were given")


def test_every_note_of_a_text_is_told_from_its_manifest() -> None:
    """By its first words: those of older releases stand among others, of which nothing is told."""
    notes = [*told_empty(1, 1_000, "text"), *language_notes("xx", 0, 3), *language_notes("ru", 2_000, 3_000)]
    assert len(notes) == 3
    assert told_text({"notes": notes}) == notes


def test_names_that_a_terminal_would_obey_are_shown_escaped(tmp_path: Path) -> None:
    """They coloured the terminal and cut the line in two; one that is no UTF-8 can be shown as well."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b\n.txt").touch()
    (tmp_path / "\x1b[31mred.csv").write_text("c")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv")).symlink_to("nowhere")
    table = tmp_path / "\x1b[1m.csv"
    table.write_text("d")
    for notes in (source_of(tmp_path).notes, source_of(table).notes):
        assert notes
        assert all(note.isprintable() for note in notes)
    left, passed, empty = source_of(tmp_path).notes
    assert "\\x1b[31mred.csv" in left
    assert "caf\\udce9.csv" in passed
    assert empty == f"{tmp_path}/b\\n.txt: empty, left out"
