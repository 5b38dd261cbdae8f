"""Articles of a MediaWiki dump (pages-articles.xml), without the mark-up, which `mwparserfromhell` takes away."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import BinaryIO, Iterator
from xml.etree import ElementTree

from ipu_bert.data.errors import DataError, one_line
from ipu_bert.data.text_files import open_bytes
from ipu_bert.data.workers import in_order

_NOT_TEXT = ("ref", "table", "gallery", "math", "timeline", "imagemap", "score", "syntaxhighlight", "source")
_OTHER_WIKI = re.compile(r"[a-z]{2,3}(-[a-z]+)*$")  # links to other languages, as older dumps have them
_SMALL = 1 << 20  # bytes of a dump that is cleaned sooner than processes have started
_LINE_ENDS = ((re.compile(r"[ \t]*\n[ \t]*"), "\n"), (re.compile(r"\n{3,}"), "\n\n"))


def is_dump(path: str) -> bool:
    """Whether a file begins as a dump does."""
    with open_bytes(path) as file:
        return b"<mediawiki" in file.read(1024)


@dataclass(frozen=True)
class _Page:
    """An article as it lies in the dump.

    title: empty where it has none. namespaces: small letters, a link into one of them is no text.
    """

    title: str
    markup: str
    namespaces: frozenset[str]

    def plain(self) -> str:
        text = plain_text(self.markup, self.namespaces)
        return f"{self.title}\n\n{text}" if self.title else text


def dump_articles(path: str, workers: int) -> Iterator[str]:
    """The articles (namespace 0, no redirects), a title and then paragraphs. Memory: a few pages for each worker.

    Raises DataError for XML that is broken or is no dump.
    """
    with open_bytes(path) as file:
        try:
            yield from in_order(_Page.plain, _pages(path, file), workers if os.path.getsize(path) > _SMALL else 1)
        except ElementTree.ParseError as error:
            raise DataError(f"{path}: cannot be read as a MediaWiki dump: {one_line(error)}") from error


def _pages(path: str, file: BinaryIO) -> Iterator[_Page]:
    events = ElementTree.iterparse(file, events=("start", "end"))
    _, root = next(events)
    if _tag(root) != "mediawiki":
        raise DataError(f"{path}: expected a MediaWiki dump, found <{_tag(root)}>")
    namespaces = frozenset({"file", "image", "category", "media"})
    for event, element in events:
        if event == "start":
            continue
        if _tag(element) == "namespace" and element.text:
            namespaces |= {element.text.lower()}
        if _tag(element) == "page":
            values = {_tag(child): child.text or "" for child in element.iter()}
            if values.get("ns", "0") == "0" and "redirect" not in values and values.get("text"):
                yield _Page(values.get("title", ""), values["text"], namespaces)
            root.clear()


def plain_text(markup: str, namespaces: frozenset[str]) -> str:
    """What a reader sees of an article's prose: no templates, tables, notes, pictures or categories.

    namespaces: small letters; a link into one of them is no text.
    """
    import mwparserfromhell

    code = mwparserfromhell.parse(markup, skip_style_tags=True)
    # emptied where they stand: to look each of them up and take it out takes nearly three times as long
    for tag in code.filter_tags():
        if str(tag.tag).strip().lower() in _NOT_TEXT:
            tag.contents = ""
    for link in code.filter_wikilinks():
        prefix, colon, _ = str(link.title).strip().lower().partition(":")
        if colon and (prefix in namespaces or _OTHER_WIKI.match(prefix)):
            link.title = link.text = ""
    text = code.strip_code(normalize=True, collapse=False, keep_template_params=False)
    text = text.replace("'''", "").replace("''", "")
    for pattern, line_end in _LINE_ENDS:
        text = pattern.sub(line_end, text)
    return text.strip()


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
