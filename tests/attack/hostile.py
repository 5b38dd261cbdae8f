"""Hostile values, and damage to JSON and bytes, for hypothesis; and how all of it must be refused."""

from __future__ import annotations

import copy
import hashlib
import resource
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator

import psutil
from hypothesis import strategies as st

SECONDS, MEMORY = 5.0, 1 << 30  # of processor time, and bytes beyond what the process has

NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**13, 10**400, 1e308, 1e-308, -0.0)
NUMBERS += (float("inf"), float("-inf"), float("nan"))
LONG = ("0x" + "f" * 5000, "0b" + "1" * 20_000, "1" + ":1" * 5000)  # numbers as YAML reads them
TEXTS = (
    *LONG,
    "\udcff",
    "",
    " ",
    "auto",
    "none",
    "\0",
    "\n",
    "a\nb",
    "..",
    "__class__",
    "9" * 400,
    "x" * 3000,
    "\ud7ff\u202e",
    "1e999",
)
plain = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.floats(), st.sampled_from(TEXTS)
)
anything = st.one_of(
    plain,
    st.text(max_size=12),
    st.lists(plain, max_size=3),
    st.dictionaries(st.text(max_size=6), plain, max_size=3),
)


class TooSlow(BaseException):  # what takes any Exception for a refusal must not take this one
    """More processor time than an attack may cost."""


@contextmanager
def bounded() -> Iterator[None]:
    """TooSlow or MemoryError when what is in it takes more than SECONDS or MEMORY."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlow(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


class Files(Dict[str, bytes]):
    """The contents of files by their names; hypothesis shows the names."""

    def __repr__(self) -> str:
        return f"Files of {', '.join(self)}"

    def but(self, name: str, data: bytes) -> Files:
        """These files with other contents of one."""
        return Files({**self, name: data})


def assert_one_line(error: Exception, *names: object) -> None:
    """A refusal is one line that names the thing."""
    assert any(str(name) in str(error) for name in names), error
    assert "\n" not in str(error), error


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder by its digest, but locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def damaged_json(draw: st.DrawFn, tree: Any) -> Any:
    """A copy of a JSON value in which one or two values are gone or are something else."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(sorted(places(tree), key=repr)))
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()):
            del parent[path[-1]]
        else:
            parent[path[-1]] = draw(anything)
        if not list(places(tree)):
            break
    return tree


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with a few changed, cut or put in; never the same."""
    at = draw(st.integers(0, max(0, len(data) - 1)))
    kind = draw(st.sampled_from(("flip", "cut", "insert", "zeros", "replace")))
    if kind == "flip" and data:
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    if kind == "cut" and data:
        return data[:at]
    if kind == "zeros" and any(data[at : at + 64]):
        return data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :]
    if kind == "replace" and data:
        return draw(st.binary(max_size=64).filter(lambda new: new != data))
    return data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]
