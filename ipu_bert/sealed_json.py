"""A JSON object in a file that says what its own SHA-256 is: no byte of it changes without being noticed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any, Mapping

KEY = "sha256"
_BLANK = b"0" * 64
_SEAL = re.compile(rb'^ "sha256": "([0-9a-f]{64})"', re.MULTILINE)  # of the outermost object: one space before it


def sealed(values: Mapping[str, Any]) -> str:
    """The text of a file with these values and, under `sha256`, the checksum of the text with zeros in its place.

    Raises ValueError for a number that is not finite.
    """
    blank = {**values, KEY: _BLANK.decode()}
    text = json.dumps(blank, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return _with(text.encode(), hashlib.sha256(text.encode()).hexdigest().encode()).decode()


def is_whole(path: str | os.PathLike[str], values: Mapping[str, Any]) -> bool:
    """Whether a file with these values is as `sealed` made it, or has no checksum, as those of older versions."""
    if KEY not in values:
        return True
    with open(path, "rb") as file:
        data = file.read()
    found = _SEAL.findall(data)
    return len(found) == 1 and hashlib.sha256(_with(data, _BLANK)).hexdigest().encode() == found[0]


def _with(data: bytes, digest: bytes) -> bytes:
    return _SEAL.sub(b' "sha256": "' + digest + b'"', data)
