"""Rows of .jsonl, .json and .parquet files: the text of one column; what other columns hold does not matter.

But an object of JSON that has a name twice is refused, wherever it stands, and a Parquet file with two such columns:
only one of the values would be read.
"""

from __future__ import annotations

import io
import json
import re
from typing import Any, Iterator

from ipu_bert.data.errors import DataError, one_line
from ipu_bert.data.text_files import open_text
from ipu_bert.json_file import each_once

LONGEST = 1 << 27  # characters of one row
_LOOKED_AT = 1000  # rows in which to look for a column: a wrong name is said before all of a file is read
_READ = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")
_LITERAL = 16  # so near to its end a piece of JSON may look wrong because more of it is to come


_DECODER = json.JSONDecoder(object_pairs_hook=each_once)


def jsonl_texts(path: str, column: str, encoding: str) -> Iterator[str]:
    """One JSON object a line. Memory: one row. Raises DataError naming the row for what is not."""
    with open_text(path, encoding) as file:
        yield from _texts(path, column, _lines(path, file))


def json_texts(path: str, column: str, encoding: str) -> Iterator[str]:
    """Arrays of JSON objects one after the other, or one object a line. Memory: one row and a MB."""
    with open_text(path, encoding) as file:
        yield from _texts(path, column, _elements(path, file))


def has_column(path: str, column: str, encoding: str) -> bool:
    """Whether the first row of a .json file has the column. Raises DataError where there is no row to read."""
    with open_text(path, encoding) as file:
        row = next(_elements(path, file), None)
    return isinstance(row, dict) and column in row


def parquet_texts(path: str, column: str) -> Iterator[str]:
    """Rows of a Parquet file, of which the one column is read."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if column not in names:
            raise _no_column(path, column, names)
        if names.count(column) > 1:  # only one would be read
            raise DataError(f"{path}: expected one column {column!r}, found {names.count(column)}")
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for number, value in enumerate(batch.column(0).to_pylist()):
                yield _text(path, column, number, value)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet: {one_line(error)}") from error


def _lines(path: str, file: io.TextIOWrapper) -> Iterator[Any]:
    for number, line in enumerate(iter(lambda: file.readline(LONGEST), "")):
        if len(line) >= LONGEST:
            raise DataError(f"{path}: row {number}: expected at most {LONGEST:,} characters, found more")
        if line.strip():
            try:
                yield _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise _unreadable(path, number, error) from error


def _elements(path: str, file: io.TextIOWrapper) -> Iterator[Any]:
    """The elements of an array, or values that follow each other; each is parsed once it is in memory whole."""
    text, number = file.read(_READ).lstrip(), 0
    is_array = text.startswith("[")
    place = int(is_array)
    while True:
        between = _BETWEEN.match(text, place)
        place = between.end() if between else place
        if is_array and text.startswith("]", place):
            text = _after(file, text[place + 1 :])
            is_array = text.startswith("[")
            place = int(is_array)
            continue
        try:
            value, place = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            cut_off = error.msg.startswith("Unterminated") or error.pos >= len(text) - _LITERAL
            more = file.read(max(_READ, len(text) - place)) if cut_off and len(text) - place < LONGEST else ""
            if not more and (is_array or text[place:]):
                raise _unreadable(path, number, error) from error
            if not more:
                return
            text, place = text[place:] + more, 0
            continue
        except (ValueError, RecursionError) as error:  # a number of too many digits; a name twice; nested too deep
            raise _unreadable(path, number, error) from error
        number += 1
        yield value


def _after(file: io.TextIOWrapper, text: str) -> str:
    """What follows in the file, from its first character that is no white space on; nothing at its end."""
    while not (found := text.lstrip()):
        text = file.read(_READ)
        if not text:
            break
    return found


def _texts(path: str, column: str, rows: Iterator[Any]) -> Iterator[str]:
    """Text of each row, empty where it has none. Raises DataError where no row of the first has the column."""
    found, number = False, 0
    first: list[str] = []  # names of the first row that has any
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number - 1}: expected an object, found {type(row).__name__}")
        found = found or column in row
        first = first or list(row)
        if number == _LOOKED_AT and not found:
            raise _no_column(path, column, first, f" in one of the first {_LOOKED_AT:,} rows")
        yield _text(path, column, number - 1, row.get(column))
    if number and not found:
        raise _no_column(path, column, first)


def _text(path: str, column: str, number: int, value: Any) -> str:
    """The text of a row, empty where it has none: such documents are counted."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{path}: row {number}: expected text in column {column!r}, found {type(value).__name__}")
    return value.encode("utf-8", "replace").decode()  # JSON can have halves of surrogate pairs


def _unreadable(path: str, number: int, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as json: row {number}: {one_line(error)}")


def _no_column(path: str, column: str, found: Any, where: str = "") -> DataError:
    return DataError(f"{path}: expected a column {column!r}{where}, found {', '.join(sorted(found)) or 'none'}")
