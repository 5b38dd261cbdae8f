"""Text for whoever reads along: a reader that has gone, or that lacks a letter, changes nothing of what is done.

What a command was asked for is another thing: it is there whole, or the command fails.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, Iterator, TextIO


def say(text: str, stream: TextIO | None) -> None:
    """Print a line on standard output or standard error, as `Heedless` writes, and flush it."""
    out = Heedless(stream)
    out.write(text + "\n")
    out.flush()


def answer(text: str) -> None:
    """Print what a command was asked for on standard output.

    Raises OSError where it cannot be written, as to a file on a full disk; a reader that wants no more is no error.
    """
    out = Heedless(sys.stdout)
    out.write(text + "\n")
    out.flush()
    if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
        raise OSError(out.failure.errno, out.failure.strerror, "standard output")


def printable(text: str) -> str:
    """The text with escapes in place of what a terminal obeys, a line break, and bytes that are no UTF-8.

    A name on somebody's disk may have any of them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Heedless:
    """A text stream that nobody has to read; None, where the process was started without the stream, reads nothing.

    Once a write fails (the pipe's reader has ended, the terminal was closed, the disk is full) the stream's file is the
    null device, so that what is left in buffers does not fail the process at its end, and `failure` says why. A
    character that the stream's encoding lacks is written as its escape. All else is the stream's.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> None:
        """Write what can be written."""
        if self._stream is None:
            return
        encoding = self._stream.encoding or "utf-8"  # a StringIO has none
        with self._forgiven():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        """Hand over what is buffered."""
        if self._stream is not None:
            with self._forgiven():
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
            with contextlib.suppress(OSError):  # a stream without a file has no buffer that fails later
                self._redirect(self.fileno())

    @staticmethod
    def _redirect(descriptor: int) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, descriptor)
        finally:
            os.close(nowhere)
