"""Files: compressed, in other encodings, broken, huge, changing."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from data_corpora import corpus, documents_of, prepared, source_of
from pyarrow import parquet

from ipu_bert.data import rows, shards, wiki_dump
from ipu_bert.data.errors import DataError
from ipu_bert.data.prepare import prepare
from ipu_bert.data.source import make_source
from ipu_bert.data.text_documents import line_documents
from ipu_bert.data.text_files import LINE, text_lines
from ipu_bert.data.workers import in_order


def zst(data: bytes) -> bytes:
    half = len(data) // 2  # two frames, as `zstd` makes when files are joined
    return b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in (data[:half], data[half:]))


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zst)]
)
def test_compressed_files(tmp_path: Path, ending: str, pack) -> None:
    text = "Première ligne.\n\nSecond paragraph.\n"
    (tmp_path / f"a.txt{ending}").write_bytes(pack(text.encode()))
    (tmp_path / f"b.jsonl{ending}").write_bytes(pack(b'{"text": "row"}\n'))
    assert documents_of(tmp_path) == ["Première ligne.\n\nSecond paragraph.", "row"]
    broken = tmp_path / f"c.txt{ending}"
    whole = pack(bytes(range(1, 256)) * 500)
    middle = len(whole) // 2
    for damaged in (pack(text.encode() * 50)[:-9], whole[:middle] + b"\0\xff" * 8 + whole[middle + 16 :], b"no such"):
        broken.write_bytes(damaged)
        with pytest.raises(DataError, match=r"c\.txt.*: cannot be read: ") as caught:
            documents_of(broken)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zst)]
)
def test_no_stream_of_several_is_passed_over(tmp_path: Path, ending: str, pack) -> None:
    """bz2.open and lzma.open take a later stream with a damaged header for the end of the text."""
    first, second = (pack(f"{word} sentence.\n".encode() * 3000) for word in ("First", "Second"))
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(first + second)
    whole = "".join(text_lines(str(path), "utf-8"))
    assert whole == "First sentence.\n" * 3000 + "Second sentence.\n" * 3000
    for damaged in (b"\x01" + second[1:], second[:3], b"no stream at all"):
        path.write_bytes(first + damaged)
        with pytest.raises(DataError, match=r"a\.txt.*: cannot be read: ") as caught:
            documents_of(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_zero_bytes_after_a_stream_are_padding(tmp_path: Path, ending: str, pack) -> None:
    """xz pads so, to fours; of bz2 files only its tool says that it ignores what a tape has left."""
    path = tmp_path / f"a.txt{ending}"
    for zeros in (b"\0" * 4, b"\0" * 10_243, b"\0" * (1 << 16)):
        path.write_bytes(pack(b"First.\n") + zeros + pack(b"Second.\n") + zeros)
        assert documents_of(path) == ["First.\n\nSecond."], len(zeros)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("Привет, мир.", encoding=encoding)
    assert documents_of(tmp_path / "a.txt") == ["Привет, мир."]


def test_an_encoding_by_setting(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Привет", encoding="cp1251")
    assert documents_of(tmp_path / "a.txt", encoding="cp1251") == ["Привет"]
    with pytest.raises(DataError, match=r"a\.txt: expected UTF-8 text, found .* near byte 0; data\.encoding names"):
        documents_of(tmp_path / "a.txt")
    for name in ("utf9", "base64", "rot13", "hex", "uu", "a\0", "\ud800"):  # bytes of a codec are no text
        with pytest.raises(
            DataError, match="encoding: expected a name that Python knows, as utf-8 or cp1251"
        ) as caught:
            documents_of(tmp_path / "a.txt", encoding=name)
        assert str(caught.value).endswith(f"found {name!r}")


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"},\n {"n": [1], "text": "b"}]',
        '{"text": "a"}\n{"text": "b", "n": 2}',
        '[{"text": "a"}]\n\n\n\n[{"text": "b"}] \n\n\n',  # as `cat a.json b.json` makes it
        '[{"text": "a"}]\n{"text": "b"}\n',
    ],
)
def test_json_arrays_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert documents_of(tmp_path / "a.json") == ["a", "b"]
    monkeypatch.setattr(rows, "_READ", 3)  # every piece ends in the middle of something
    monkeypatch.setattr(rows, "_LITERAL", 1000)
    assert documents_of(tmp_path / "a.json") == ["a", "b"]


@pytest.mark.parametrize(
    "text", ['[{"text": "a"}, {"text": }]', '[{"text": "a"}', '[{"text": "a"}, nul', '[{"text": "a"}] b']
)
def test_broken_json_is_refused_by_row(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json: cannot be read as json: row 1: "):
        documents_of(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a.ndjson", "a.JSONL", "a.Json", "a.NDJSON.gz", "a.jsonl.GZ"])
def test_rows_by_other_endings(tmp_path: Path, name: str) -> None:
    """They were read as text, braces and all."""
    text = b'{"body": "row"}\n'
    (tmp_path / name).write_bytes(gzip.compress(text) if name.lower().endswith(".gz") else text)
    for path in (tmp_path / name, tmp_path):
        assert documents_of(path, column="body") == ["row"]
    assert source_of(tmp_path / name, column="body").notes == ()


def test_rows_that_were_read_as_text_are_another_text_now(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.JSONL"):
        (tmp_path / name).write_text('{"text": "row"}\n')
    old = {"name", "bytes", "sha256"}
    assert [{*source_of(tmp_path / name).identity["files"][0]} - old for name in ("a.jsonl", "a.JSONL")] == [
        set(),
        {"kind"},
    ]


def test_a_table_is_told_to_be_read_as_text(tmp_path: Path) -> None:
    for name in ("a.csv", "b.TSV.gz", "c.txt"):
        text = b"id,text\n1,one\n"
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    found = source_of(tmp_path / "*.*")
    assert len(list(found.documents())) == 3
    assert found.notes == (
        f"{tmp_path / 'a.csv'}, {tmp_path / 'b.TSV.gz'}: 2 file(s) of a table, read as text, separators and all; "
        "only .jsonl, .json and .parquet files have columns",
    )


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    found = [{"text": "a", "x": 1}, {"x": "one", "text": "b"}, {"text": None, "x": []}, {"x": {}}, {"text": "\ud800c"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, found)))
    assert documents_of(tmp_path / "a.jsonl") == ["a", "b", "", "", "?c"]  # half a surrogate pair is no text


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("first", [1, 2, 999])
def test_the_first_rows_may_have_no_text(name: str, first: int, tmp_path: Path) -> None:
    """As later ones: such a file was refused by its first row."""
    found = [{"id": i} for i in range(first)] + [{"id": first, "text": "a"}, {}, {"text": "b"}]
    (tmp_path / name).write_text("\n".join(map(json.dumps, found)))
    assert documents_of(tmp_path / name) == [""] * first + ["a", "", "b"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_column_that_no_row_has_is_refused(name: str, tmp_path: Path) -> None:
    """Where there are many rows, by the first thousand of them."""
    for count, said in ((1, ""), (999, ""), (1000, r" in one of the first 1,000 rows"), (1001, r" in one of the .*")):
        found = [{}, *({"id": i, "body": "b"} for i in range(count - 1))] if count > 1 else [{"id": 1, "body": "b"}]
        (tmp_path / name).write_text("\n".join(map(json.dumps, found)) + ("\nno row" if count == 1001 else ""))
        with pytest.raises(DataError, match=rf"a\.jsonl?: expected a column 'text'{said}, found body, id$"):
            documents_of(tmp_path / name)
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"a\.jsonl?: expected a column 'text', found none$"):
        documents_of(tmp_path / name)
    (tmp_path / name).write_text("\n".join(map(json.dumps, [{}] * 1000 + [{"text": "too late"}])))
    with pytest.raises(DataError, match=r"in one of the first 1,000 rows, found none$"):
        documents_of(tmp_path / name)


def test_a_parquet_file_with_the_column_twice_is_refused(tmp_path: Path) -> None:
    """The first was read, and nobody heard of the second; a name that two other columns have does not matter."""
    for names in (["text", "text"], ["text", "id", "text"], ["id", "text", "id"]):
        columns = [pa.array([f"{name} {i}"]) for i, name in enumerate(names)]
        parquet.write_table(pa.table(columns, names=names), tmp_path / "a.parquet")
        if names.count("text") == 1:
            assert documents_of(tmp_path / "a.parquet") == ["text 1"]
        else:
            with pytest.raises(DataError, match=r"a\.parquet: expected one column 'text', found 2$"):
                documents_of(tmp_path / "a.parquet")


def test_a_folder_gives_json_and_xml_that_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "of an array"}, {"text": "again"}]')
    (tmp_path / "b.json").write_text('{"title": "no text"}')
    (tmp_path / "c.json").write_text('{"text": ')
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(b'{"text": "of rows"}\n'))
    (tmp_path / "e.json").write_bytes(b"\xff\xfe\0")
    (tmp_path / "f.xml").write_text(DUMP, encoding="utf-8")
    (tmp_path / "g.xml").write_text("<a/>")
    found = source_of(tmp_path)
    assert list(found.documents()) == ["of an array", "again", "of rows", ARTICLE]
    (note,) = found.notes
    assert "4 of its files are not read (3 with .json, 1 with .xml): b.json, c.json, e.json, ..." in note


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" xml:lang="de"><siteinfo><namespaces>
<namespace key="0" /><namespace key="6">Datei</namespace>
<namespace key="14">Kategorie</namespace></namespaces></siteinfo>
<page><title>Katze</title><ns>0</ns><revision><text>{{Infobox|x=1}}Die '''Katze''' ist ein [[Tier|Haustier]].
&lt;ref&gt;Note&lt;/ref&gt; [[Datei:K.jpg|thumb|Ein Bild]]

== Leben ==
Sie schl&#228;ft.
{| class="wikitable"
| Zelle
|}
[[Kategorie:Tier]] [[en:Cat]] [[Category:Cats]]</text></revision></page>
<page><title>K</title><ns>0</ns><redirect title="Katze" /><revision><text>#REDIRECT [[Katze]]</text></revision></page>
<page><title>Diskussion:Katze</title><ns>1</ns><revision><text>talk</text></revision></page></mediawiki>"""


ARTICLE = "Katze\n\nDie Katze ist ein Haustier.\n\nLeben\nSie schläft."


@pytest.mark.parametrize("name", ["pages.xml.bz2", "pages-articles1.xml-p1p9.bz2"])
def test_a_wiki_dump_gives_its_articles_without_mark_up(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bz2.compress(DUMP.encode()))
    assert documents_of(tmp_path / name) == [ARTICLE]


def test_a_large_dump_is_cleaned_by_all_workers_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = DUMP[DUMP.index("<page>") : DUMP.index("</page>") + len("</page>")]
    pages = [page.replace("Katze", f"Katze {i}") for i in range(60)]
    (tmp_path / "a.xml").write_text(f"<mediawiki>{''.join(pages)}</mediawiki>", encoding="utf-8")
    asked = corpus(source="files", paths=(str(tmp_path / "a.xml"),))
    alone = list(make_source(asked, workers=2).documents())
    assert [text.splitlines()[0] for text in alone] == [f"Katze {i}" for i in range(60)]
    monkeypatch.setattr(wiki_dump, "_SMALL", 0)
    used = []
    monkeypatch.setattr(wiki_dump, "in_order", lambda *values: (used.append(values[2]), in_order(*values))[1])
    assert list(make_source(asked, workers=2).documents()) == alone
    assert used == [2]


def test_an_article_without_a_title_is_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(DUMP.replace("<title>Katze</title>", ""), encoding="utf-8")
    assert documents_of(tmp_path / "a.xml") == [ARTICLE[len("Katze\n\n") :]]


def test_broken_dumps_are_refused(tmp_path: Path) -> None:
    broken = "cannot be read as a MediaWiki dump"
    for text, message in ((DUMP[:-20], broken), ("x", broken), ("<a/>", "expected a MediaWiki dump, found <a>")):
        (tmp_path / "a.xml").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=rf"a\.xml: {message}"):
            documents_of(tmp_path / "a.xml")


def test_a_line_is_a_sentence_and_blank_lines_end_documents() -> None:
    lines = ["a b", "c", "", " ", "d", "e"]
    assert list(line_documents(lines, 3)) == list(line_documents(lines, 0)) == ["a b\nc", "d\ne"]
    assert list(line_documents(["a b", "c", "d"], 2)) == ["a b", "c\nd"]
    assert list(line_documents(["a b", "c", "d"], 0)) == ["a b\nc\nd"]


def test_a_huge_line_is_read_in_parts(tmp_path: Path) -> None:
    """A line of 107 MB took 2 GB. One of 12 MB takes what a few parts of it take."""
    line = "words of a line " * (12 * LINE // 16)
    (tmp_path / "a.txt").write_text(line)
    tracemalloc.start()
    size = most = 0
    for part in text_lines(str(tmp_path / "a.txt"), "utf-8"):
        size, most = size + len(part), max(most, len(part))
        assert part.endswith(" ")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (size, most <= 2 * LINE) == (len(line), True)
    assert peak < 8 * LINE


def test_a_huge_document_is_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shards, "LONGEST_DOCUMENT", 1000)
    text = "Some words of a text. " * 200
    parts = list(shards.bounded(text))
    assert "".join(parts) == text
    assert all(500 <= len(part) <= 1000 for part in parts[:-1])
    assert list(shards.bounded(" \n ")) == []


def test_a_full_disk_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(OSError, match="No space left") as caught:
            shards._write(str(full), b"x" * 100)
        assert caught.value.filename == "/dev/full"

    write = Path.write_bytes
    for name in ("train.tokens.bin", "tokenizer.json"):

        def no_space(self: Path, data: bytes, name: str = name) -> int:
            if name in self.name:
                raise OSError(28, "No space left on device")
            return write(self, data)

        monkeypatch.setattr(Path, "write_bytes", no_space)
        with pytest.raises(OSError, match=rf"No space left on device: '.*\.partial/.*{name}.*'"):
            prepared(monkeypatch, tmp_path / name, [f"One. Two {i}." for i in range(8)])


def test_a_text_that_changes_while_it_is_read_is_refused_and_nothing_of_it_kept(monkeypatch, tmp_path):
    """Its tokens were kept under the other text's checksum, and every later run on that one had them."""
    path, spool = tmp_path / "a.txt", shards.spool
    old = "".join(f"Sentence {i} of old. Another {i}.\n\n" for i in range(40))
    path.write_text(old)

    def changed(*arguments):
        path.write_text(old.replace("old", "new"))
        return spool(*arguments)

    asked, out = corpus(source="files", paths=(str(path),), document_words=20), str(tmp_path / "out")
    monkeypatch.setattr(shards, "spool", changed)
    with pytest.raises(DataError, match=rf"^{path}: expected the file as it was at the start, found it changed since$"):
        prepare(asked, out, workers=1, progress=False)
    monkeypatch.undo()
    assert not [name for name in os.listdir(out) if not name.endswith(".lock")]
    path.write_text(old)
    again, fresh = (prepare(asked, str(tmp_path / name), workers=1, progress=False) for name in ("out", "fresh"))
    assert again.manifest["files"] == fresh.manifest["files"]
