"""Documents from local files.

- .jsonl, .parquet: each row is a document, its text in one column.
- .txt: with 20 or more text files, each file is one document. With fewer, as when a user brings one big text, a file is
  cut into documents of about 1,000 words: next-sentence prediction needs other documents to draw from, and the held-out
  split must hold whole ones. Cuts fall between paragraphs (blank lines; between lines if the file has no blank line;
  between sentences in a paragraph that is itself too long). `document_words` sets the size; 0: one document per file.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import re
from typing import Any, Iterable, Iterator

from ipu_bert.data.errors import DataError
from ipu_bert.data.sentences import split_sentences

SUFFIXES = (".txt", ".jsonl", ".parquet")
WHOLE_FILES_FROM = 20
DOCUMENT_WORDS = 1000
_READ_BYTES = 1 << 20


def find_files(paths: Iterable[str]) -> list[str]:
    """Files named by paths, globs and folders (searched to the bottom), each once, sorted within each entry.

    Raises DataError for nothing given, nothing found, or a file of another kind.
    """
    entries = list(paths)
    if not entries:
        raise DataError("source 'files' needs at least one path: a file, a folder or a glob")
    found: dict[str, None] = {}
    for entry in entries:
        if os.path.isdir(entry):
            names = glob.glob(os.path.join(glob.escape(entry), "**", "*"), recursive=True)
            matches = [name for name in names if name.endswith(SUFFIXES) and os.path.isfile(name)]
        elif os.path.exists(entry):
            matches = [entry]
        else:
            matches = [name for name in glob.glob(entry, recursive=True) if os.path.isfile(name)]
        if not matches:
            raise DataError(f"no text found at {entry!r}: expected a file ({', '.join(SUFFIXES)}), a folder or a glob")
        for match in sorted(matches):
            if not match.endswith(SUFFIXES):
                raise DataError(f"{match}: expected a file ending in {', '.join(SUFFIXES)}")
            found[os.path.abspath(match)] = None
    return list(found)


def words_per_document(files: list[str], document_words: int | None) -> int:
    """The size at which text files are cut (0: never): as asked, or (None) by the number of text files.

    Raises DataError for a size below 0.
    """
    if document_words is not None:
        if document_words < 0:
            raise DataError(f"document_words: expected 0 or more, found {document_words}")
        return document_words
    return 0 if sum(path.endswith(".txt") for path in files) >= WHOLE_FILES_FROM else DOCUMENT_WORDS


def file_identity(path: str) -> dict[str, Any]:
    """{"name", "bytes", "sha256"} of a file.

    One reading serves for the checksum and for a look at the text, since a corpus may be large.
    Raises DataError if the file is missing or empty, or, for text, if it has NUL bytes or is not UTF-8.
    """
    is_text = not path.endswith(".parquet")
    digest, size, blank = hashlib.sha256(), 0, True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            while True:
                piece = file.read(_READ_BYTES)
                if is_text:
                    if b"\0" in piece:
                        where = size + piece.index(0)
                        raise DataError(f"{path}: expected text, found a NUL byte at {where} (a binary file?)")
                    blank = not decoder.decode(piece, final=not piece).strip("\ufeff \t\r\n") and blank
                if not piece:
                    break
                digest.update(piece)
                size += len(piece)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, found {error.reason} near byte {size + error.start}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if size == 0 or (is_text and blank):
        raise DataError(f"{path}: expected text, found an empty file ({size} bytes)")
    return {"name": os.path.basename(path), "bytes": size, "sha256": digest.hexdigest()}


def file_documents(path: str, column: str, document_words: int) -> Iterator[str]:
    """The documents of one file (rules: top of this file). Memory: one document.

    Raises DataError, while it is read, for a file that is not of its kind, or a row without text in `column`.
    """
    if path.endswith(".txt"):
        return cut_documents(_rows(path, "text", "text"), document_words)
    return _rows(path, "json" if path.endswith(".jsonl") else "parquet", column)


def cut_documents(lines: Iterable[str], document_words: int) -> Iterator[str]:
    """Documents of at least `document_words` words (the last may be shorter) from the lines of one text file."""
    parts: list[str] = []
    count = 0
    for paragraph in _paragraphs(lines):
        for part in _cut_long(paragraph, document_words):
            parts.append(part)
            count += len(part.split())
            if document_words and count >= document_words:
                yield "\n\n".join(parts)
                parts, count = [], 0
    if parts:
        yield "\n\n".join(parts)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs between blank lines, each made one line; single lines as long as no blank line has been seen."""
    gathered: list[str] = []
    blank_seen = False
    may_wait = 200  # a paragraph of more lines than this means that blank lines are not used
    for line in map(str.strip, lines):
        if line.strip("\ufeff"):
            gathered.append(line)
        elif gathered:
            blank_seen = True
            yield " ".join(gathered)
            gathered = []
        if not blank_seen and len(gathered) > may_wait:
            yield from gathered
            gathered, may_wait = [], 0
    yield from [" ".join(gathered)] if blank_seen and gathered else gathered


def _cut_long(paragraph: str, document_words: int) -> Iterator[str]:
    if not document_words or len(paragraph.split()) < 2 * document_words:
        yield paragraph
        return
    group: list[str] = []
    count = 0
    for sentence in split_sentences(paragraph):
        group.append(sentence)
        count += len(sentence.split())
        if count >= document_words:
            yield " ".join(group)
            group, count = [], 0
    if group:
        yield " ".join(group)


def _rows(path: str, kind: str, column: str) -> Iterator[str]:
    """The texts of one file through `datasets`, streamed: no copy in a cache, memory of one read."""
    from datasets import load_dataset

    options = {"sample_by": "line"} if kind == "text" else {}
    try:
        # glob.escape: a path with [ or * is still this one file
        rows = load_dataset(kind, data_files=glob.escape(path), split="train", streaming=True, **options)
        for number, row in enumerate(rows):
            if column not in row:
                raise DataError(f"{path}: expected a column {column!r}, found {', '.join(sorted(row))}")
            text = row[column]
            if text is None:
                continue
            if not isinstance(text, str):
                raise DataError(
                    f"{path}: row {number}: expected text in column {column!r}, found {type(text).__name__}"
                )
            yield text
    except DataError:
        raise
    except Exception as error:  # pyarrow and datasets raise many kinds for a file that is not what its name says
        cause = error.__cause__ or error
        reason = re.sub(r"\s+", " ", str(cause)).strip()[:200]
        raise DataError(f"{path}: cannot be read as {kind}: {reason or type(cause).__name__}") from error
