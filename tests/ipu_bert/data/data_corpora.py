"""Small corpora for the tests of ipu_bert.data."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Callable

import pytest

from ipu_bert.data import source
from ipu_bert.data.corpus import Corpus
from ipu_bert.data.prepare import prepare
from ipu_bert.data.token_files import TokenFiles
from ipu_bert.data.tokenizer import Normalization

AS_FOUND = Normalization(None, None, None)
SYLLABLES = ["ba", "den", "kor", "li", "mu", "nas", "pe", "ro", "tis", "vul", "wem", "zo"]


def random_documents(seed: int, count: int, sentences: int = 12) -> list[str]:
    """Documents of made-up words: up to `sentences` sentences of 1 to 20 words, two sentences to a paragraph."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(400)]
    documents = []
    for _ in range(count):
        lines = [
            " ".join(draw.choices(words, k=draw.randint(1, 20))).capitalize() + "."
            for _ in range(draw.randint(1, sentences))
        ]
        documents.append("\n\n".join(" ".join(lines[i : i + 2]) for i in range(0, len(lines), 2)))
    return documents


def use_source(monkeypatch: pytest.MonkeyPatch, documents: Callable[[], Any], name: str = "toy") -> None:
    """Register a source for one test."""
    identity: dict[str, Any] = {"made": "for a test"}
    monkeypatch.setitem(source.SOURCES, name, lambda **_: source.Source(name, identity, documents))


def corpus(**changes: Any) -> Corpus:
    """The corpus of these tests, with some values changed."""
    values = {
        "source": "toy",
        "paths": (),
        "column": "text",
        "encoding": "utf-8",
        "document_words": None,
        "language": "auto",
        "line_is_sentence": False,
        "vocab_size": 300,
        "tokenizer": None,
        "normalization": AS_FOUND,
        "heldout_fraction": 0.2,
    }
    return Corpus(**{**values, **changes})


def prepared(
    monkeypatch: pytest.MonkeyPatch, out: Any, documents: list[str], workers: int = 1, **changes: Any
) -> TokenFiles:
    """Token files of the given documents, in this process."""
    use_source(monkeypatch, lambda: iter(documents))
    return prepare(corpus(**changes), str(out), workers=workers, progress=False)


def texts(files: TokenFiles, split: str) -> list[list[str]]:
    """The sentences of each document as space-separated word pieces."""
    arrays, pieces = files.split(split), files.vocabulary()
    sentences = [
        " ".join(pieces[t] for t in arrays.tokens[a:b]) for a, b in zip(arrays.sentences[:-1], arrays.sentences[1:])
    ]
    return [sentences[a:b] for a, b in zip(arrays.documents[:-1], arrays.documents[1:])]


def source_of(*paths: Path, **options: Any) -> source.Source:
    """These files, folders and globs, as a source."""
    return source.make_source(corpus(source="files", paths=tuple(map(str, paths)), **options), workers=1)


def documents_of(*paths: Path, **options: Any) -> list[str]:
    return list(source_of(*paths, **options).documents())
