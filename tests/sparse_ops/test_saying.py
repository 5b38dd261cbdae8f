"""What is said changes nothing of what is done."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import TextIO

from sparse_ops import saying
from sparse_ops.saying import say


def unread() -> TextIO:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def test_a_reader_that_has_gone_is_not_missed_at_the_end_either() -> None:
    """Python ends a process with 120 where the last of standard output cannot be written."""
    program = (
        "import runpy, sys; say = runpy.run_path(sys.argv[1])['say']; say('a', sys.stdout); print('b')"  # no torch
    )
    program += "; say('c', sys.stderr)"
    for stream in ("stdout", "stderr"):
        with unread() as gone:
            done = subprocess.run([sys.executable, "-c", program, saying.__file__], check=False, **{stream: gone})
        assert done.returncode == 0


def test_a_letter_that_the_encoding_lacks_is_escaped() -> None:
    for encoding, text, shown in (
        ("ascii", "é", b"\\xe9"),
        ("utf-8", "\udcff", b"\\udcff"),
        ("utf-8", "é", "é".encode()),
    ):
        out = io.BytesIO()
        stream = io.TextIOWrapper(out, encoding=encoding, newline="\n")
        say(text, stream)
        assert out.getvalue() == shown + b"\n"


def test_a_process_without_the_stream_says_nothing() -> None:
    say("text", None)
