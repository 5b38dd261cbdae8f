"""Which local files are read, and what kind of documents each of them holds.

.txt: text_documents.py says how it becomes documents. .jsonl (.ndjson), .json, .parquet: each row is a document, its
text in one column. .xml: a MediaWiki dump, an article is a document. Capitals in an ending do not matter. Any but
.parquet may be compressed (.gz .bz2 .xz .zst).
A file of another name is read as text, or as a dump if it begins as one, when it is named itself. A folder gives its
.txt, .jsonl and .parquet files, each .json whose first row has the column, and each .xml that begins as a dump.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

from ipu_bert.data.errors import DataError
from ipu_bert.data.rows import has_column, json_texts, jsonl_texts, parquet_texts
from ipu_bert.data.sentences import count_units
from ipu_bert.data.text_documents import cut_documents, line_documents
from ipu_bert.data.text_files import COMPRESSIONS, ending_of, look_at, plain_name, text_lines
from ipu_bert.data.wiki_dump import dump_articles, is_dump
from sparse_ops import files

OF_A_FOLDER = (".txt", ".jsonl", ".parquet")
COLUMNS = (".jsonl", ".json", ".parquet")
IF_IT_FITS = (".json", ".xml")
TABLES = (".csv", ".tsv")
WHOLE_FILES_FROM = 20
DOCUMENT_WORDS = 1000
SHORTEST_DOCUMENT = 50
MOST_LINES = 10  # about one thing, be it of a thousand files
# What is passed over, by its kind.
_HIDDEN = "hidden"
_AGAIN = "read already by another way"
_CLOSED = "that cannot be opened"
_BROKEN = "broken link(s)"
_DEVICE = "device(s) or pipe(s)"
_FOLDER = "folder(s), to be named themselves"
_MADE = "folder(s) of a run, of prepared text or of a model"


@dataclass(frozen=True)
class FoundFiles:
    """paths: absolute. notes: lines for each folder or glob of which something was left out."""

    paths: tuple[str, ...]
    notes: tuple[str, ...]


def find_files(paths: Iterable[str], column: str, encoding: str) -> FoundFiles:
    """Files named by paths, globs and folders (searched to the bottom), each once, sorted within each entry.

    Of a folder what has a hidden name is passed over, and what training made; links are followed, and what several lead
    to is read once.
    Raises DataError for nothing given or nothing found.
    """
    entries = list(paths)
    if not entries:
        raise DataError("source 'files' needs at least one path: a file, a folder or a glob")
    found: dict[str, str] = {}  # by where a file really is
    notes = []
    for entry in entries:
        told: list[str] = []
        passed: dict[str, list[str]] = defaultdict(list)
        if os.path.isdir(entry):
            present = _files_below(entry, passed)
            matches = [name for name in present if _of_a_folder(name, column, encoding)]
            left = sorted({*present} - {*matches})
            told = [_left_out(entry, left)] if left else []
        elif os.path.exists(entry):
            if not os.path.isfile(entry):  # has no end, or cannot be read a second time
                raise DataError(f"{entry}: expected a file or a folder, found a device or a pipe: write it to a file")
            matches = [entry]
        else:
            names = sorted({*_matching(entry, passed)})
            matches = [name for name in names if os.path.isfile(name)]
            _note_others(names, matches, passed)
        for name in matches:
            if found.setdefault(os.path.realpath(name), os.path.abspath(name)) != os.path.abspath(name):
                passed[_AGAIN].append(name)
        told += _passed_over(entry, passed)
        if not matches:
            expected = f"expected a file, a glob, or a folder of {', '.join((*OF_A_FOLDER, *IF_IT_FITS))} files"
            raise DataError(f"no text found at {entry!r}: {'; '.join([expected, *told])}")
        notes += told
    return FoundFiles(tuple(found.values()), tuple(first_few(notes, "lines about other paths that were given")))


def first_few(lines: Sequence[str], others: str) -> list[str]:
    """The first lines of what may be thousands, and how many `others` there are."""
    left = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"and {left:,} more {others}"] if left > 0 else [])]


def _folders_below(folder: str, passed: dict[str, list[str]]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(path, folders in it, other names in it) of a folder and of all below it, each once: links may lead back.

    Adds what it passes over, by its kind. Who empties the list of folders keeps the search out of them.
    """
    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(
        folder, onerror=lambda error: passed[_CLOSED].append(error.filename), followlinks=True
    ):
        yield root, folders, names
        inside, folders[:] = sorted(folders), []
        for name in inside:
            where = os.path.realpath(os.path.join(root, name))
            if name.startswith(".") or where in seen:
                passed[_HIDDEN if name.startswith(".") else _AGAIN].append(os.path.join(root, name))
            else:
                seen.add(where)
                folders.append(name)


def _files_below(folder: str, passed: dict[str, list[str]]) -> list[str]:
    """The files below a folder, sorted; adds what is passed over, by its kind.

    Not those of what training puts beside its text where it works in the text's folder.
    """
    present = []
    for root, folders, names in _folders_below(folder, passed):
        if root != folder and _is_made(root, {*names}):
            passed[_MADE].append(root)
            folders.clear()
            continue
        for name in names:
            path = os.path.join(root, name)
            if name.startswith("."):
                passed[_HIDDEN].append(path)
            elif os.path.isfile(path):
                present.append(path)
            else:
                passed[_no_file(path)].append(path)
    return sorted(present)


def _matching(pattern: str, passed: dict[str, list[str]]) -> Iterator[str]:
    """What a glob matches, maybe more than once. `**`: any number of folders, each gone into once."""
    parts = re.sub(f"{re.escape(os.sep)}+", lambda _: os.sep, pattern).split(os.sep)
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    at = parts.index("**")
    above, below = os.sep.join([*parts[:at], ""]), os.sep.join(parts[at + 1 :] or ["*"])
    for start in glob.glob(above) if above else [""]:
        for root, _, _ in _folders_below(start or os.curdir, passed):
            yield from _matching(os.path.join(glob.escape(root), below), passed)


def _is_made(folder: str, names: set[str]) -> bool:
    """Whether a folder is a run's, a model's, or holds prepared text, or what is to become some."""
    made = (
        {"config.yaml", "metrics.jsonl", ".lock"},
        {"manifest.json", "tokenizer.json"},
        {"config.json", "model.safetensors"},
        {"config.json", "model.safetensors.index.json"},
    )
    return folder.endswith(".partial") or any(marks <= names for marks in made)


def _note_others(names: list[str], matches: list[str], passed: dict[str, list[str]]) -> None:
    """Add what a glob found beside files, by its kind; not the folders whose files it found, as ** does."""
    above = {parent for match in matches for parent in Path(match).parents}
    for name in names:
        if not os.path.isfile(name) and Path(name) not in above:
            passed[_no_file(name)].append(name)


def _no_file(path: str) -> str:
    return _FOLDER if os.path.isdir(path) else _DEVICE if os.path.exists(path) else _BROKEN


def _passed_over(entry: str, passed: Mapping[str, list[str]]) -> list[str]:
    """A line with what was found and is no file to read, if anything: how many of each kind, and the first by name."""
    names = sorted({name for each in passed.values() for name in each})
    kinds = ", ".join(f"{len({*each})} {kind}" for kind, each in sorted(passed.items()) if each)
    shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    return [f"{entry}: passed over: {kinds}: {shown}"] if names else []


def _of_a_folder(path: str, column: str, encoding: str) -> bool:
    """Whether a file that nobody named is read; a .json or .xml may be something else than text, or broken."""
    ending = ending_of(path)
    try:
        return ending in OF_A_FOLDER or (
            has_column(path, column, encoding) if ending == ".json" else ending == ".xml" and is_dump(path)
        )
    except DataError:
        return False


def _left_out(folder: str, names: list[str]) -> str:
    """How many files of a folder are not read, of which endings, and the first of them by name."""
    endings = Counter(os.path.splitext(name)[1] or "no ending" for name in names)
    kinds = ", ".join(f"{count} with {ending}" for ending, count in sorted(endings.items()))
    shown = ", ".join(os.path.relpath(name, folder) for name in names[:3])
    return (
        f"{folder}: {len(names)} of its files are not read ({kinds}): {shown}{', ...' if len(names) > 3 else ''}; "
        "name them, or give a glob, to have them read"
    )


def words_per_document(paths: Iterable[str], document_words: int | None, encoding: str) -> int:
    """The size at which text files are cut (0: never): as asked, or (None) by how many they are and how long.

    Raises DataError for a size below 0, and for a file that cannot be read.
    """
    if document_words is not None:
        if document_words < 0:
            raise DataError(f"document_words: expected 0 or more, found {document_words}")
        return document_words
    texts = [path for path in paths if _kind(path) == ".txt"]
    if len(texts) >= WHOLE_FILES_FROM:
        return 0
    lines = itertools.chain.from_iterable(text_lines(path, encoding) for path in texts)
    words = 0
    for line in lines:
        words += count_units(line)
        if words >= WHOLE_FILES_FROM * DOCUMENT_WORDS:
            break
    return max(SHORTEST_DOCUMENT, min(DOCUMENT_WORDS, words // WHOLE_FILES_FROM))


def _kind(path: str) -> str:
    """The ending that says how a file is read."""
    ending = ending_of(path)
    if ending in (*OF_A_FOLDER, *IF_IT_FITS):
        return ending
    return ".xml" if is_dump(path) else ".txt"


def kinds(paths: Iterable[str]) -> set[str | None]:
    """The endings of all files that paths, folders and globs name; None among them where some may have any ending."""
    return set(map(_ending_of_all, paths))


def _ending_of_all(path: str) -> str | None:
    ending = ending_of(path)
    of_a_glob = ending if ending and glob.escape(ending) == ending and not os.path.isdir(path) else None
    return ending if os.path.isfile(path) else of_a_glob


def file_identity(path: str, encoding: str) -> dict[str, Any] | None:
    """{"name", "bytes", "sha256"} of a file; None where it has no text.

    Raises DataError if the file cannot be read, or, for text, if it has NUL bytes or another encoding.
    """
    kind = _kind(path)
    if kind == ".parquet" and plain_name(path) != path:
        raise DataError(f"{path}: expected a .parquet file as it is, found it compressed ({', '.join(COMPRESSIONS)})")
    try:
        size, digest = os.path.getsize(path), files.sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if size == 0 or (kind in (".txt", ".jsonl", ".json") and not look_at(path, encoding)):
        return None
    facts: dict[str, Any] = {"name": os.path.basename(path), "bytes": size, "sha256": digest}
    if kind == ".json":
        facts["reading"] = 2  # 1 read the first of several arrays alone
    if kind != ".txt" and ending_of(path) != os.path.splitext(plain_name(path))[1]:
        facts["kind"] = kind  # once read as text for its ending, as .JSONL; such files may still be there
    return facts


def stamp(path: str) -> tuple[int, int] | None:
    """What changes when a file is written to: its size and time; None where it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def told_tables(paths: Iterable[str]) -> list[str]:
    """A line about tables among the files, if there are any: they are read as any text is."""
    tables = [path for path in paths if ending_of(path) in TABLES]
    if not tables:
        return []
    return [
        f"{', '.join(tables[:3])}{', ...' * (len(tables) > 3)}: {len(tables)} file(s) of a table, read as text, "
        "separators and all; only .jsonl, .json and .parquet files have columns"
    ]


@dataclass(frozen=True)
class Reading:
    """How the files of a corpus are read; the fields are those of Corpus, document_words settled."""

    column: str
    encoding: str
    document_words: int
    language: str
    line_is_sentence: bool


def file_documents(path: str, how: Reading, workers: int) -> Iterator[str]:
    """The documents of one file (rules: top of this file), a dump cleaned by `workers`. Memory: a few documents.

    Raises DataError, while it is read, for a file that is not of its kind, or a row without text in `column`.
    """
    kind = _kind(path)
    if kind == ".jsonl":
        return jsonl_texts(path, how.column, how.encoding)
    if kind == ".json":
        return json_texts(path, how.column, how.encoding)
    if kind == ".parquet":
        return parquet_texts(path, how.column)
    if kind == ".xml":
        return dump_articles(path, workers)
    lines = text_lines(path, how.encoding)
    if how.line_is_sentence:
        return line_documents(lines, how.document_words)
    return cut_documents(lines, how.document_words, how.language)
