"""The one exception of this package."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import Iterator


class DataError(ValueError):
    """Text or token files that cannot be used; the message is one line: the file, what was expected, what was found."""


def one_line(error: BaseException) -> str:
    """What an exception of another package says, or its class, in one line that is not too long."""
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__


@contextmanager
def naming(path: str) -> Iterator[None]:
    """A full disk is an OSError without a name; here it gets the file's (or the folder's)."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), path) from error
