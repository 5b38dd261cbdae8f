"""JSON that this program wrote and that anybody may have changed since: an object, in bounds, with finite numbers."""

from __future__ import annotations

import json
import math
import os
from typing import Any

MOST_BYTES = 64 << 20


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object of a file.

    Raises FileNotFoundError, OSError, or ValueError that says what is wrong but not where, for anything else.
    """
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES:,} bytes, found more")
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("expected a JSON object, found lists or objects nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    return found


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 on that fits 64 bits (and not true or false)."""
    return type(value) is int and 0 <= value < 1 << 63


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"expected finite numbers, found {text:.40}")
