"""JSON that this program wrote and that anybody may have changed since: an object, in bounds, with finite numbers."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from dataclasses import fields
from typing import Any, Callable, Sequence, TypeVar, cast

from sparse_ops.files import plain

MOST_BYTES = 64 << 20
Record = TypeVar("Record")
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # what no line has, and what no UTF-8 has


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object of a file.

    Raises FileNotFoundError, OSError, or ValueError that says what is wrong but not where, for anything else.
    """
    with open(plain(path), "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES:,} bytes, found more")
    try:
        found = json.loads(
            data.decode("utf-8"), parse_constant=_no_number, parse_float=_finite, object_pairs_hook=each_once
        )
    except RecursionError:
        raise ValueError("expected a JSON object, found lists or objects nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    return found


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as json's `object_pairs_hook`. Raises ValueError where it has a name twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"expected each name once, found {twice!r:.60} twice")
    return found


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 on that fits 64 bits (and not true or false)."""
    return type(value) is int and 0 <= value < 1 << 63


def is_amount(value: Any) -> bool:
    """Whether a value is a finite number from 0 on (and not true or false)."""
    return is_count(value) or (type(value) is float and 0 <= value < math.inf)


def is_line(value: Any) -> bool:
    """Whether a value is text that can be written as a line, or into a table."""
    return isinstance(value, str) and not _UNPRINTED.search(value)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a line of text", lambda value: is_line(value)),
    "int": ("a whole number from 0 on", is_count),
    "float": ("a finite number from 0 on", is_amount),
    "float | None": ("a finite number from 0 on, or null", lambda value: value is None or is_amount(value)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "Mapping[str, Any]": ("an object", lambda value: isinstance(value, dict)),
    "Mapping[str, str]": ("an object", lambda value: isinstance(value, dict)),
}


def as_record(kind: Callable[..., Record], found: Any, **parts: Any) -> Record:
    """A dataclass of the values of an object, numbers of the field's type; parts: fields that were read already.

    Raises ValueError for what is no object, for fields that are missing or too many, and for values of another type;
    numbers are from 0 on.
    """
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, found {found!r:.60}")
    wanted = {field.name: field.type for field in fields(cast(Any, kind))}
    if found.keys() != wanted.keys():
        raise ValueError(f"expected {', '.join(wanted)}, found {', '.join(map(str, found))}")
    for name, value in found.items():
        words, test = _KINDS.get(str(wanted[name]), ("", None))
        if name not in parts and test is not None and not test(value):
            raise ValueError(f"{name}: expected {words}, found {value!r:.60}")
    numbers = {k: float(found[k]) for k in wanted if wanted[k] in ("float", "float | None") and found[k] is not None}
    return kind(**{**found, **numbers, **parts})


def as_list(found: Any) -> list[Any]:
    """A list that is one. Raises ValueError for anything else."""
    if not isinstance(found, list):
        raise ValueError(f"expected a list, found {found!r:.60}")
    return found


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"expected finite numbers, found {text:.40}")
