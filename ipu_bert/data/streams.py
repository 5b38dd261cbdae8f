"""Files of bz2 or xz streams one after the other, of which none is passed over."""

from __future__ import annotations

import io
from bz2 import BZ2Decompressor
from lzma import LZMADecompressor
from typing import Any, BinaryIO, Callable


class _Streams(io.RawIOBase):
    """The bytes of all streams of an open file. Zero bytes after a stream are padding, as of xz files and of tapes.

    bz2.open and lzma.open take a later stream whose header is damaged for the end of the text. Raises OSError or
    LZMAError for what is no stream, and EOFError for one that is cut.
    """

    def __init__(self, file: BinaryIO, new: Callable[[], Any]) -> None:
        self._file, self._new = file, new
        self._stream = new()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill a part of the buffer; 0: the end."""
        data = b""
        while not data:
            if self._stream.eof:
                packed = self._after_padding(self._stream.unused_data)
                if not packed:
                    return 0
                self._stream = self._new()
            else:
                packed = self._file.read(io.DEFAULT_BUFFER_SIZE) if self._stream.needs_input else b""
                if self._stream.needs_input and not packed:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            data = self._stream.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _after_padding(self, packed: bytes) -> bytes:
        while not packed.strip(b"\0"):
            packed = self._file.read(io.DEFAULT_BUFFER_SIZE)
            if not packed:
                return b""
        return packed.lstrip(b"\0")


def open_bz2(path: str) -> BinaryIO:
    """The text of a .bz2 file; a later stream that is damaged is an error."""
    return io.BufferedReader(_Streams(open(path, "rb"), BZ2Decompressor))


def open_xz(path: str) -> BinaryIO:
    """The text of a .xz file; a later stream that is damaged is an error."""
    return io.BufferedReader(_Streams(open(path, "rb"), LZMADecompressor))
