"""Opening a file of text: compressed or not, in any encoding, in pieces of bounded size."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from contextlib import contextmanager
from os.path import splitext
from typing import Any, BinaryIO, Callable, Iterator, cast

from ipu_bert.data.errors import DataError, SettingError, one_line
from ipu_bert.data.streams import open_bz2, open_xz

LINE = 1 << 20  # characters; a longer line of text comes in parts
_READ_BYTES = 1 << 20
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",  # begins as UTF-32's does, so it comes after it
    codecs.BOM_UTF16_BE: "utf-16",
}


def _open_zst(path: str) -> BinaryIO:
    import pyarrow

    # pyarrow reads a file of several frames to its end, and is there already
    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd")))


def _open_plain(path: str) -> BinaryIO:
    return open(path, "rb")


COMPRESSIONS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": open_bz2,
    ".xz": open_xz,
    ".zst": _open_zst,
}


def plain_name(path: str) -> str:
    """The name without the ending of its compression."""
    return next((path[: -len(ending)] for ending in COMPRESSIONS if path.lower().endswith(ending)), path)


def ending_of(path: str) -> str:
    """The ending that tells what a file holds, without that of its compression: .jsonl also for .JSONL and .ndjson."""
    ending = splitext(plain_name(path))[1].lower()
    return ".jsonl" if ending == ".ndjson" else ending


@contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """The content of a file, decompressed as its name says. Raises DataError naming it for what cannot be read."""
    opener = next((opener for ending, opener in COMPRESSIONS.items() if path.lower().endswith(ending)), _open_plain)
    try:
        with opener(path) as file:
            yield file
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from error


def encoding_of(path: str, encoding: str) -> str:
    """The encoding that a byte order mark tells, else the one asked for. Raises DataError for one nobody knows."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding)  # which also refuses base64 and others that are not of text
    except (LookupError, ValueError):  # a ValueError for a name with a NUL
        raise SettingError(
            f"encoding: expected a name that Python knows, as utf-8 or cp1251, found {encoding!r}"
        ) from None
    with open_bytes(path) as file:
        start = file.read(4)
    return next((name for mark, name in _BOMS.items() if start.startswith(mark)), encoding)


def look_at(path: str, encoding: str) -> bool:
    """Whether a file has any text. Reads all of it; raises DataError for NUL bytes, and for another encoding."""
    found = encoding_of(path, encoding)
    decoder = codecs.getincrementaldecoder(found)()
    size, blank = 0, True
    try:
        with open_bytes(path) as file:
            for piece in iter(lambda: file.read(_READ_BYTES), b""):
                text = decoder.decode(piece)
                if "\0" in text:
                    where = size + text.index("\0")
                    raise DataError(f"{path}: expected text, found a NUL byte at {where} (a binary file?)")
                blank = blank and not text.strip("\ufeff \t\r\n")
                size += len(piece)
            decoder.decode(b"", final=True)
    except UnicodeError as error:
        start = size + (error.start if isinstance(error, UnicodeDecodeError) else 0)
        raise DataError(
            f"{path}: expected {found.upper()} text, found {getattr(error, 'reason', error)} near byte {start}; "
            "data.encoding names another one"
        ) from error
    return not blank


@contextmanager
def open_text(path: str, encoding: str) -> Iterator[io.TextIOWrapper]:
    """The text of a file, line ends made \\n. Raises DataError as open_bytes does, and for another encoding."""
    try:
        with open_bytes(path) as file, io.TextIOWrapper(file, encoding_of(path, encoding)) as text:
            yield text
    except UnicodeError as error:
        raise DataError(f"{path}: expected {encoding.upper()} text, found {one_line(error)}") from error


def text_lines(path: str, encoding: str) -> Iterator[str]:
    """Lines of text, one above LINE characters in several, cut at white space where it has any."""
    with open_text(path, encoding) as file:
        rest = ""
        for part in iter(lambda: file.readline(LINE), ""):
            line = rest + part
            rest = ""
            if not line.endswith("\n") and len(line) >= LINE:
                place = max(line.rfind(" "), line.rfind("\t")) + 1
                line, rest = (line[:place], line[place:]) if place > LINE // 2 else (line, "")
            yield line
        if rest:
            yield rest
