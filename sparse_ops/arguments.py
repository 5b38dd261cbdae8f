"""Command-line arguments, for argparse: what is wrong is said in one line before anything is measured.

Types raise ArgumentTypeError, which argparse turns into that line.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from sparse_ops.saying import say

MOST_THREADS = 1024  # a hundred thousand threads end in a crash, or hold the machine


class Parser(argparse.ArgumentParser):
    """argparse's, which says so where an option is given twice: the last one counts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", None, _Told)


class _Told(argparse.Action):
    """Store a value."""

    _stored_in: tuple[argparse.Namespace, str] | None = None

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        before = getattr(namespace, self.dest, None)
        if option:
            if self._stored_in and self._stored_in[0] is namespace and before != values:
                first = f"{self._stored_in[1]} {_words(before)}"
                say(f"no effect: {first}, since {option} {_words(values)} comes after it", sys.stderr)
            self._stored_in = namespace, option
        setattr(namespace, self.dest, values)


def _words(values: Any) -> str:
    return " ".join(map(str, values)) if isinstance(values, list) else str(values)


def no_effect(parser: argparse.ArgumentParser, found: argparse.Namespace, idle: Mapping[str, str]) -> Iterator[str]:
    """A line for each option that was given and does nothing. idle: by name, why; empty where it acts."""
    for name, since in idle.items():
        value = getattr(found, name)
        if since and value != parser.get_default(name):
            yield f"--{name.replace('_', '-')} {value}, since {since}"


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A whole number of at least `least` and at most `most`: what counts to any number has no end."""

    def parse(text: str) -> int:
        # Python reads no number of thousands of digits, and none of twenty is wanted.
        number = int(text[:20]) if re.fullmatch(r"-?[0-9]+", text) else least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r:.60}")
        if number > most or len(text) > 20:
            raise argparse.ArgumentTypeError(f"expected a whole number of at most {most}, found {text:.60}")
        return number

    return parse


def named(text: str) -> str:
    """A path or a name, which an unset variable of a script is not."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path or a name, found ''")
    return text


def named_path(text: str) -> Path:
    """A path that is named; '' would be the folder that is worked in."""
    return Path(named(text))


def fraction(text: str) -> float:
    """A number in [0, 1)."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1), found {text!r}")
    return value


def file_to_write(suffix: str = "") -> Callable[[str], Path]:
    """The path of a file or of nothing yet, in a folder that is there, with a name that ends in `suffix`.

    Links are followed.
    """

    def parse(text: str) -> Path:
        path = Path(os.path.realpath(text))
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise argparse.ArgumentTypeError(f"{text}: expected a file in a folder that is there")
        if not text.endswith(suffix):
            raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in {suffix}")
        return path

    return parse


def take_threads(count: int) -> None:
    """Let torch compute with as many threads as `--threads` says (0: torch's choice), or with those that there are."""
    from sparse_ops import openmp  # torch, which takes seconds: a wrong option need not wait for it

    fewer = openmp.use_threads(count)
    if fewer:
        say(f"--{fewer}", sys.stderr)
