"""The exceptions of this package."""

from __future__ import annotations

import re


class DataError(ValueError):
    """Text or token files that cannot be used; the message is one line: the file, what was expected, what was found."""


class SettingError(DataError):
    """A value that a setting of the text cannot have; begins with the setting's name, a field of Corpus."""


class ChangedTextError(DataError):
    """A text that is another one now than when its checksum was made."""


def one_line(error: BaseException) -> str:
    """What an exception of another package says, or its class, in one line that is not too long."""
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
