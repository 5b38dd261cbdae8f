"""The one exception of this package."""

from __future__ import annotations


class DataError(ValueError):
    """Text or token files that cannot be used; the message is one line: the file, what was expected, what was found."""
