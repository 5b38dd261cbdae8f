"""Sentences of a text in any script; where they end is `sentencex`'s business (rules for some three hundred languages).

Ours is what it leaves open: which language's rules (language.py), paragraphs, and text that has no sentences. Thai and
Lao write a space where a phrase ends and nothing where a word does, so a space is a boundary there. A length is counted
in units: words, or single letters in the scripts that put no spaces between words.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Iterator

from sentencex import segment

from ipu_bert.data.language import AUTO, language_of

MAX_UNITS = 100
_MARKS = 4  # a letter may have so many; a piece that a cut makes longer by them is still no too long word
_PARAGRAPH = 4000  # characters that sentencex is given at once: its time grows with their square
_SPACE_ENDS = ("th", "lo")
# Thai and Lao, Tibetan, Burmese, Khmer, kana, Han: no spaces between words.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_UNIT = re.compile(f"[{_UNSPACED}]|[^\\s\u1361{_UNSPACED}]+")  # U+1361: a space of Ethiopic
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_END = "[.!?\u2026\u3002\uff01\uff1f\u0964\u061f\u06d4\u1362\u104b\u17d4\u0f0d][\"'\u201d\u2019\u300d\u300f)]*"
_SOME = f".{{1,{_PARAGRAPH}}}"
_PIECE = re.compile(f"{_SOME}$|{_SOME}{_END}(?=\\W|[^\\x00-\\x7f])|{_SOME}\\s|{_SOME}")


def split_sentences(text: str, language: str, line_is_sentence: bool) -> list[str]:
    """Sentences of a document, in order, without white space around them or runs of it inside; none is empty.

    language: an ISO 639 code, or AUTO: language_of the document. A blank line always ends a sentence. Single newlines
    are spaces, except in a text without any blank line, where each line is a paragraph of its own. A short number or
    mark that stands alone, as in "1. First", belongs to the sentence after it. A sentence above 100 units (a list, a
    table, text without punctuation) is cut into even pieces, so that one long run of words does not fall to truncation
    later.
    With line_is_sentence every line that is not blank is a sentence as it stands.
    """
    if line_is_sentence:
        return [line for line in (" ".join(line.split()) for line in text.splitlines()) if line]
    language = language_of(text) if language == AUTO else language
    blank = _BLANK_LINE.search(text) is not None
    paragraphs = _BLANK_LINE.split(text) if blank else text.splitlines()
    return [piece for p in paragraphs for sentence in _split(" ".join(p.split()), language) for piece in _cut(sentence)]


def count_units(text: str) -> int:
    """Words, or letters where a script has no spaces between words."""
    return len(text.split()) if text.isascii() else sum(1 for _ in _UNIT.finditer(text))


def is_unspaced(letter: str) -> bool:
    """Whether a letter is of a script that puts no spaces between words."""
    return _UNSPACED_LETTER.match(letter) is not None


def _split(paragraph: str, language: str) -> Iterator[str]:
    before = ""
    for piece in _PIECE.findall(paragraph):
        for found in segment(language, piece):
            for sentence in found.split() if language in _SPACE_ENDS else [found.strip()]:
                before = f"{before} {sentence}" if before else sentence
                if not _opens_only(before):
                    yield before
                    before = ""
    if before:
        yield before


def _opens_only(piece: str) -> bool:
    """Whether this is no sentence yet: no letter in it, and three characters at most."""
    return len(piece) < 4 and not any(c.isalpha() for c in piece)


def _cut(sentence: str) -> Iterator[str]:
    if len(sentence) <= MAX_UNITS or count_units(sentence) <= MAX_UNITS:
        if sentence:
            yield sentence
        return
    units = [match.start() for match in _UNIT.finditer(sentence)]
    pieces = -(-len(units) // (MAX_UNITS - _MARKS))
    starts = [_before_marks(sentence, units[len(units) * i // pieces]) for i in range(pieces)]
    for start, end in zip(starts, [*starts[1:], len(sentence)]):
        if start < end:
            yield sentence[start:end].strip()


def _before_marks(text: str, place: int) -> int:
    """The place of the letter that the marks at `place` belong to."""
    while place and unicodedata.category(text[place])[0] == "M":
        place -= 1
    return place
