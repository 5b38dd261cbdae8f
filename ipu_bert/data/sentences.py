"""Sentence boundaries of English text, by rule.

Our own and small: next-sentence prediction needs sentences that are mostly right, and a trained splitter would be a
download. A boundary is . ! or ? with its closing quotes and brackets, then a space, then something that can open a
sentence; a full stop after a title, an initial or an abbreviation is not one.
"""

from __future__ import annotations

import re
from typing import Iterator

# Never the end of a sentence: a name or a number follows.
_TITLES = frozenset(
    re.findall(
        r"\w+",
        """
    mr mrs ms messrs mme dr prof rev hon gen col maj capt lt sgt adm gov sen rep pres st mt ft vs cf viz
    vol vols ch sec secs art fig figs pp eds approx jan feb mar apr jun jul aug sept sep oct nov dec""",
    )
)
# An end only where a usual first word follows: "of the Union Co. The company".
_EITHER = frozenset(["co", "inc", "ltd", "corp", "jr", "sr", "etc", "al", "ave", "dept", "bros", "ph", "est"])
_STARTERS = frozenset(
    re.findall(
        r"\w+",
        """
    The A An In On At It Its He She We They I You This That These Those There Here But And Or If When While
    As For From By To With After Before Since Our Their His Her My Under Upon Such No Not All Some Many Most
    What Who How Why Where Let So Then Now Yet Thus However Although Though During Every Each""",
    )
)
_CLOSE, _OPEN = "\"'\u201d\u2019)\\]", "\"'\u201c\u2018(\\["
_BOUNDARY = re.compile(f"[.!?\u2026]+[{_CLOSE}]*(\\s+)(?=[{_OPEN}]*[A-Z0-9\u00c0-\u00d6\u00d8-\u00de\u2022])")
_LAST_WORD = re.compile(f"[^\\s{_OPEN}\u2014\u2013-]+$")
_FIRST_WORD = re.compile(f"[{_OPEN}]*([A-Za-z]+|[0-9])")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
MAX_WORDS = 100


def split_sentences(text: str) -> list[str]:
    """Sentences of a document, in order, without white space around them or runs of it inside; none is empty.

    A blank line always ends a sentence. Single newlines are spaces, except in a text without any blank line, where each
    line is a paragraph of its own. A sentence above 100 words (a list, a table, text without punctuation) is cut into
    even pieces, so that one long run of words does not fall to truncation later.
    """
    blank = _BLANK_LINE.search(text) is not None
    paragraphs = _BLANK_LINE.split(text) if blank else text.splitlines()
    return [piece for p in paragraphs for sentence in _split(" ".join(p.split())) for piece in _cut(sentence)]


def _split(paragraph: str) -> Iterator[str]:
    start = 0
    for match in _BOUNDARY.finditer(paragraph):
        if _is_end(paragraph, start, match):
            yield paragraph[start : match.start(1)]
            start = match.end(1)
    if start < len(paragraph):
        yield paragraph[start:]


def _is_end(paragraph: str, start: int, match: re.Match) -> bool:
    if match.group().rstrip() != ".":  # ! ? ... and a stop inside quotes or brackets
        return True
    before = _LAST_WORD.search(paragraph, max(start, match.start() - 40), match.start())
    word = before.group() if before else ""
    after = _FIRST_WORD.match(paragraph, match.end())
    follower = after.group(1) if after else ""
    if word.lower() in _TITLES:
        return False
    if word.lower() == "no":
        return not follower.isdigit()
    if word.lower() in _EITHER or "." in word or (len(word) == 1 and word.isalpha() and word not in ("I", "a")):
        return follower in _STARTERS
    # "1. The first point": a number that stands at the start of its sentence belongs to what follows
    return not (word.isdigit() and len(word) <= 2 and match.start() - len(word) <= start)


def _cut(sentence: str) -> Iterator[str]:
    words = sentence.split(" ")
    pieces = -(-len(words) // MAX_WORDS)
    if pieces <= 1:
        if sentence:
            yield sentence
        return
    for i in range(pieces):
        yield " ".join(words[len(words) * i // pieces : len(words) * (i + 1) // pieces])
