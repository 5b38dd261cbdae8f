"""Labelled text of a file: CSV, TSV as GLUE has it, or JSON lines."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

from ipu_bert.config.values import is_unicode
from ipu_bert.data.errors import DataError, one_line
from ipu_bert.finetune.options import Columns
from ipu_bert.json_file import each_once
from sparse_ops.files import plain

_KINDS = (".csv", ".tsv", ".jsonl")
_LONGEST = 2**31 - 1  # characters of a field: the largest that csv takes where C's long has 32 bits


@dataclass(frozen=True)
class Rows:
    """Rows of a file in its order. texts: one column or two. labels: as written; None where the file has none."""

    file: Path
    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...] | None

    def take(self, numbers: Sequence[int]) -> Rows:
        """Some of the rows."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in numbers)
        return Rows(self.file, tuple(self.texts[i] for i in numbers), labels)


def read_rows(file: Path, columns: Columns, encoding: str, labelled: bool) -> Rows:
    """Read a file by the end of its name. labelled: whether each row must have a label, else each or none has one.

    .csv: with commas and quotes; .tsv: with tabs, where quotes are letters, as GLUE's; both with a first line of names.
    .jsonl: an object a line. Blank lines are passed over; in a table of one column they are empty texts, but for those
    at the end.
    Raises DataError, one line, for a file of another kind or encoding, a column that is missing, an empty text or
    label, and labels of which some are text and others numbers; OSError as open does.
    """
    if file.suffix not in _KINDS:
        raise DataError(
            f"{file}: expected a file that ends with {', '.join(_KINDS)}, found {file.suffix or 'no end'!r}"
        )
    texts, labels, kinds = [], [], set()
    try:
        with open(plain(file), encoding=encoding, newline="") as stream, _long_fields():
            read = _json_rows if file.suffix == ".jsonl" else _table_rows
            for number, row in read(file, _without_mark(stream)):
                place = f"{file}, row {number}"
                _check_columns(place, row, columns, labelled)
                texts.append(tuple(_text(place, name, row[name]) for name in columns.texts))
                label = row.get(columns.label)
                there = labelled or not _is_empty(label)
                labels.append(_label(place, columns.label, label) if there else None)
                kinds.add(_kind(label) if there else None)
                if len(kinds - {None}) > 1:
                    raise DataError(
                        f"{place}: expected labels of one kind, found {' and '.join(sorted(map(str, kinds)))}"
                    )
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: expected text in {encoding} (--encoding), found byte {error.start} that is not"
        ) from None
    except UnicodeError as error:
        if isinstance(error, UnicodeEncodeError):  # of the encoding's own name
            raise DataError(f"--encoding: expected one that Python knows, found {encoding!r}") from None
        raise DataError(f"{file}: expected text in {encoding} (--encoding): {one_line(error)}") from None
    except LookupError:
        raise DataError(f"--encoding: expected one that Python knows, found {encoding!r}") from None
    if not texts:
        raise DataError(f"{file}: expected rows, found none")
    found = [label for label in labels if label is not None]
    if found and len(found) < len(labels):
        raise DataError(f"{file}: expected a label in every row or in none, found one in {len(found)} of {len(labels)}")
    return Rows(file, tuple(texts), tuple(found) if found else None)


def _without_mark(stream: Iterable[str]) -> Iterator[str]:
    """Lines, the first without a byte order mark."""
    lines = iter(stream)
    return itertools.chain((line.lstrip("\ufeff") for line in itertools.islice(lines, 1)), lines)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let csv, which refuses fields above 131,072 characters, read what .jsonl may hold; its limit is the process's."""
    before = csv.field_size_limit(_LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _table_rows(file: Path, stream: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows by number from 1; the first line has the names."""
    if file.suffix == ".tsv":
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(stream, strict=True)
    try:
        names = [name.strip() for name in next((row for row in reader if row), [])]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(f"{file}: expected columns of different names, found {twice[0]!r} twice")
        rows = _rows_with_blanks(reader) if len(names) == 1 else (row for row in reader if row)
        for number, row in enumerate(rows, 1):
            if len(row) != len(names):
                raise DataError(f"{file}, row {number}: expected {len(names)} columns, found {len(row)}")
            yield number, dict(zip(names, row))
    except csv.Error as error:
        raise DataError(
            f"{file}, line {reader.line_num}: cannot be read as {file.suffix[1:]}: {one_line(error)}"
        ) from None


def _rows_with_blanks(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Rows of one column: an empty one is a blank line, unless that is at the end."""
    blank = 0
    for row in rows:
        if row:
            yield from [[""]] * blank
            yield row
        blank = 0 if row else blank + 1


def _json_rows(file: Path, stream: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate((line for line in stream if line.strip("\ufeff \t\r\n")), 1):
        try:
            row = json.loads(line.lstrip("\ufeff"), object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, row {number}: cannot be read as JSON: {one_line(error)}") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def _is_empty(label: Any) -> bool:
    return label is None or (isinstance(label, str) and not label.strip())


def _kind(value: Any) -> str | None:
    """What a label is, in words; None where there is none."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value))


def _check_columns(place: str, row: Mapping[str, Any], columns: Columns, labelled: bool) -> None:
    options = {"--text": columns.text, "--pair": columns.pair, **({"--label": columns.label} if labelled else {})}
    for option, name in options.items():
        if name is not None and name not in row:
            found = ", ".join(map(repr, list(row)[:8]))
            raise DataError(f"{place}: expected a column {name!r} ({option}), found {found:.200}")


def _text(place: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "an empty one" if isinstance(value, str) else f"{value!r:.40}"
        raise DataError(f"{place}: expected text in column {name!r}, found {found}")
    if not is_unicode(value):
        raise DataError(f"{place}: expected text in column {name!r}, found half of a surrogate pair")
    return value


def _label(place: str, name: str, value: Any) -> str:
    text = value.strip() if isinstance(value, str) else json.dumps(value)
    if value is None or isinstance(value, (dict, list)) or value != value or not text:  # NaN is not itself
        raise DataError(f"{place}: expected a label in column {name!r}, found {f'{value!r:.40}' if text else 'none'}")
    if not is_unicode(text):
        raise DataError(f"{place}: expected a label in column {name!r}, found half of a surrogate pair")
    return text
