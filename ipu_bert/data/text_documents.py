"""A text file as documents.

With 20 or more text files, each file is one document. With fewer, as when a user brings one big text, a file is cut
into documents of about 1,000 words, or in twenty where it is too short for that: next-sentence prediction needs other
documents to draw from, and the held-out split must hold whole ones. Cuts fall between paragraphs (blank lines; between
lines if the file has no blank line; between sentences in a paragraph that is itself too long). `document_words` sets
the size; 0: one document per file.
Where each line is a sentence, a blank line ends a document, as in the files that BERT was made from.
"""

from __future__ import annotations

from typing import Iterable, Iterator

from ipu_bert.data.sentences import count_units, split_sentences
from ipu_bert.data.text_files import LINE

_LINES = 200  # a paragraph of more lines than this means that blank lines are not used


def cut_documents(lines: Iterable[str], document_words: int, language: str) -> Iterator[str]:
    """Documents of at least `document_words` words (the last may be shorter) from the lines of one text file."""
    parts: list[str] = []
    count = 0
    for paragraph in _paragraphs(lines):
        for part in _cut_long(paragraph, document_words, language):
            parts.append(part)
            count += count_units(part)
            if document_words and count >= document_words:
                yield "\n\n".join(parts)
                parts, count = [], 0
    if parts:
        yield "\n\n".join(parts)


def line_documents(lines: Iterable[str], document_words: int) -> Iterator[str]:
    """Documents from lines that are sentences: to the next blank line, or `document_words` words where none is seen."""
    document: list[str] = []
    count, blank_seen = 0, False
    for line in map(str.strip, lines):
        blank = not line.strip("\ufeff")
        blank_seen = blank_seen or bool(blank and document)
        if not blank:
            document.append(line)
            count += count_units(line)
        if document and (blank or (document_words and not blank_seen and count >= document_words)):
            yield "\n".join(document)
            document, count = [], 0
    if document:
        yield "\n".join(document)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs between blank lines, each made one line; single lines as long as no blank line has been seen.

    A paragraph above LINE characters comes in parts.
    """
    gathered: list[str] = []
    blank_seen = False
    may_wait, size = _LINES, 0
    for line in map(str.strip, lines):
        if line.strip("\ufeff"):
            gathered.append(line)
            size += len(line)
        elif gathered:
            blank_seen = True
            yield " ".join(gathered)
            gathered, size = [], 0
        if blank_seen and size > LINE:
            yield " ".join(gathered)
            gathered, size = [], 0
        elif not blank_seen and (len(gathered) > may_wait or size > LINE):
            yield from gathered
            gathered, may_wait, size = [], 0, 0
    yield from [" ".join(gathered)] if blank_seen and gathered else gathered


def _cut_long(paragraph: str, document_words: int, language: str) -> Iterator[str]:
    if not document_words or count_units(paragraph) < 2 * document_words:
        yield paragraph
        return
    group: list[str] = []
    count = 0
    for sentence in split_sentences(paragraph, language, line_is_sentence=False):
        group.append(sentence)
        count += count_units(sentence)
        if count >= document_words:
            yield " ".join(group)
            group, count = [], 0
    if group:
        yield " ".join(group)
