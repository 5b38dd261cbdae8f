"""What is said changes nothing of what is done."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Callable, TextIO

import pytest
from compiler import needs_kernels
from full_disk import needs_full_disk

from sparse_ops import build, native, saying, tune
from sparse_ops.bench import products
from sparse_ops.saying import answer, say


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


@needs_full_disk
def test_what_was_asked_for_and_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lines or two megabytes: what is left in buffers fails as well. Text along the way fails nothing."""
    for text in ("a", "a" * 2_000_000):
        with open("/dev/full", "w", encoding="utf-8") as full:
            monkeypatch.setattr(sys, "stdout", full)
            with pytest.raises(OSError, match=r"No space left on device: 'standard output'"):
                answer(text)
        with open("/dev/full", "w", encoding="utf-8") as full:
            say(text, full)


@needs_full_disk
@needs_kernels
@pytest.mark.parametrize(("main", "status"), [(build.main, 1), (tune.main, 2)])
def test_a_command_whose_answer_is_lost_fails(
    main: Callable[[list[str]], int], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": standard output: No space left on device")


@pytest.mark.filterwarnings("ignore")  # as `python -W ignore`
@pytest.mark.parametrize("main", [tune.main, products.main])
def test_a_command_without_native_kernels_says_so(
    main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "why_not", lambda: "no C++ compiler:\n  set CXX")
    assert main([]) == 1
    assert capsys.readouterr().err == "error: native kernels are not available: no C++ compiler: set CXX\n"


def test_a_reader_that_wants_no_more_has_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with unread() as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        answer("a")
    monkeypatch.setattr(sys, "stdout", None)
    answer("a")
