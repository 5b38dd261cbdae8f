"""Compile the native kernels with the system's compiler, once; `python -m sparse_ops.build` does it ahead.

`python -m sparse_ops.build ipu` builds the IPU's library instead (ipu/build.py), where an SDK is enabled; `... wheel`
compiles every level into the package, for `make wheel`. Where a wheel has brought such a library, nothing is compiled.

The library is plain C++17 behind a C interface: it knows nothing of torch, so one build serves every torch. Its
file name is a digest of the sources, the flags, the compiler's version and this processor's features, so that any
change makes a new file and nothing compiled for one processor is loaded on another.

Environment: CXX the compiler (default: the first of g++, clang++, c++ found), SPARSE_OPS_CACHE the folder (default:
$XDG_CACHE_HOME/sparse_ops or ~/.cache/sparse_ops; where that, or what another user has put there, cannot be written,
a temporary folder of the process).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterable, NamedTuple

from sparse_ops.files import in_words, lock_after_others, replacing, sha256_of, write
from sparse_ops.ipu import build as build_ipu
from sparse_ops.saying import answer, say

SOURCES = Path(__file__).parent / "csrc" / "cpu"
SHIPPED = Path(__file__).parent / "lib"
COMMON_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden")
_SCRATCH = "build-"  # folders beside the library in which its parts are compiled
_DAY = 24 * 60 * 60.0  # seconds
_X86 = platform.machine().lower() in ("x86_64", "amd64")


class BuildError(RuntimeError):
    """The kernels could not be compiled; the message says why."""


class Unit(NamedTuple):
    """One compilation: a source file and the flags that make it this unit."""

    name: str
    source: str
    flags: tuple[str, ...]


_WIDE = ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")


class Level(NamedTuple):
    """An instruction level: lanes of a float vector, compiler flags, and the processor's features that it needs."""

    name: str
    lanes: int
    flags: tuple[str, ...]
    features: tuple[str, ...]


LEVELS = (
    # -O2: a vector of four leaves so many of them that -O3 takes twice as long to compile, for little.
    Level("portable", 4, ("-O2",), ()),
    Level("avx2", 8, ("-mavx2", "-mfma"), ("avx2", "fma")),
    Level("avx512", 16, _WIDE, ("avx512f", "avx512bw", "avx512dq", "avx512vl")),
    Level("avx512_bf16", 16, ("-DSPARSE_OPS_PAIRS", "-mavx512bf16", *_WIDE), ("avx512_bf16",)),
)


def levels_here() -> tuple[Level, ...]:
    """The levels that this processor has."""
    if not _X86:
        return LEVELS[:1]
    found = set(cpu_features().split())
    known = {"sse2"} <= found  # else there is no list here, and the library finds out when it is loaded
    return tuple(itertools.takewhile(lambda level: not known or found >= set(level.features), LEVELS))


def units() -> list[Unit]:
    """What the library for this processor is made of."""
    return _units_of(levels_here())


def _units_of(levels: tuple[Level, ...]) -> list[Unit]:
    """The kernels once per level, each in its own namespace."""
    made = [
        Unit(x.name, "level.cpp", (f"-DSPARSE_OPS_LEVEL={x.name}", f"-DSPARSE_OPS_LANES={x.lanes}", *x.flags))
        for x in reversed(levels)  # the slowest to compile first
    ]
    count = (f"-DSPARSE_OPS_LEVELS={len(levels)}",)
    return [*made, Unit("api", "api.cpp", count), Unit("plan", "plan.cpp", ())]


def find_compiler() -> list[str]:
    """The compiler's command: CXX, or the first of g++, clang++, c++ found. Raises BuildError when there is none."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:  # a quotation mark that is not closed
        raise BuildError(f"CXX: expected a command, found {os.environ['CXX']!r} ({error})") from None
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    wanted = named[0] if named else "g++, clang++ or c++"
    raise BuildError(f"no C++ compiler: expected {wanted} on the path (or set CXX), found none")


def library_path() -> Path:
    """Where the library for these sources, flags, compiler and processor belongs. Raises BuildError."""
    compiler = find_compiler()
    command = [*compiler, "--version"]
    version = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if version.returncode:
        raise BuildError(f"{shlex.join(compiler)} --version failed: {version.stderr.strip()}")
    digest = _digest_of_sources()
    described = (units(), COMMON_FLAGS, compiler, version.stdout, platform.machine(), cpu_features())
    digest.update(repr(described).encode())
    return cache_folder() / f"kernels-{digest.hexdigest()[:24]}.so"


def _digest_of_sources() -> Any:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest


def shipped_path() -> Path:
    """Where a wheel for this kind of machine has its library, of every level and of these very sources."""
    digest = _digest_of_sources()
    digest.update(repr((_units_of(_levels_shipped()), COMMON_FLAGS)).encode())
    return SHIPPED / f"kernels-{platform.machine().lower()}-{digest.hexdigest()[:24]}.so"


def _levels_shipped() -> tuple[Level, ...]:
    return LEVELS if _X86 else LEVELS[:1]


def build_for_wheel() -> Path:
    """Compile every level for any machine of this kind, into the package. Raises BuildError."""
    path = shipped_path()
    path.parent.mkdir(exist_ok=True)
    _compile(path, _units_of(_levels_shipped()))
    write(_digest_path(path), sha256_of(path))
    return path


def cpu_features() -> str:
    """The processor's instruction sets, as the system lists them (its name where there is no list)."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.split(":", 1)[1].split()))
    return platform.processor()


def cache_folder() -> Path:
    """The folder that keeps compiled libraries; not necessarily there yet."""
    named = os.environ.get("SPARSE_OPS_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "sparse_ops"


def build() -> Path:
    """The library's path, compiled now if not there. Safe when several processes do it at once. Raises BuildError."""
    path = library_path()
    _sweep(path.parent)
    if is_whole(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    why = f"{path.parent} cannot be written"
    try:
        if writable:
            try:
                return _made(path)
            except PermissionError as error:  # another user's files, who keeps them from all others
                why = in_words(error)
        # For this process only: a folder that others can write is no place to load code from.
        say(f"sparse_ops: {why}: kernels are made for this process alone", sys.stderr)
        path = Path(_own_folder()) / path.name
        return _made(path)
    except OSError as error:
        raise BuildError(f"cannot write the kernels to {path.parent}: {error}") from error


def _made(path: Path) -> Path:
    """The library's path, compiled by one process while others wait."""
    told = f"sparse_ops: another process compiles kernels into {path.parent}; waiting for it"
    with lock_after_others(path.with_suffix(".lock"), told):
        if not is_whole(path):  # another process may have made it while this one waited
            _compile(path, units())
            write(_digest_path(path), sha256_of(path))
    return path


def _own_folder() -> str:
    """A new folder that goes when this process ends."""
    folder = tempfile.mkdtemp(prefix="sparse_ops-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _digest_path(library: Path) -> Path:
    """Where the SHA-256 of a library in the cache is kept."""
    return library.with_suffix(".sha256")


def is_whole(library: Path) -> bool:
    """Whether a library is there as it was compiled: one that is cut short ends the process without a word."""
    try:
        return _digest_path(library).read_bytes() == sha256_of(library).encode()
    except OSError:
        return False


def _sweep(cache: Path) -> None:
    """Remove what killed compilations left a day ago: libraries not renamed, folders of our object files alone."""
    for aside in cache.glob(".kernels-*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - aside.stat().st_mtime > _DAY:
                aside.unlink()
    ours = {f"{name}.o" for name in (*(level.name for level in LEVELS), "api", "plan")}
    for folder in cache.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):  # another process sweeps, too, or the cache cannot be written
            if time.time() - folder.stat().st_mtime > _DAY and {path.name for path in folder.iterdir()} <= ours:
                shutil.rmtree(folder)


def _compile(path: Path, made_of: list[Unit]) -> None:
    compiler, start = find_compiler(), time.monotonic()
    say(f"sparse_ops: compiling CPU kernels with {compiler[0]}, once, into {path.parent}", sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_SCRATCH) as folder, replacing(path) as library:
        objects = {unit: os.path.join(folder, unit.name + ".o") for unit in made_of}
        _run(
            [*compiler, *COMMON_FLAGS, *unit.flags, "-c", str(SOURCES / unit.source), "-o", target]
            for unit, target in objects.items()
        )
        _run([[*compiler, "-shared", "-o", str(library), *objects.values(), "-lpthread"]])
    say(f"sparse_ops: compiled in {time.monotonic() - start:.1f} s", sys.stderr)


def _run(commands: Iterable[list[str]]) -> None:
    """Run commands side by side. Raises BuildError, when all have ended, with what the first that failed said."""
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    running = [(c, subprocess.Popen(c, stdout=pipe, stderr=both, encoding="utf-8", errors="replace")) for c in commands]
    said = [process.communicate()[0] for _, process in running]
    for (command, process), message in zip(running, said):
        if process.returncode:
            raise BuildError(f"{shlex.join(command)} failed with {process.returncode}:\n{message[-2000:]}")


def main(argv: list[str]) -> int:
    """Compile ahead and print where; exit status 1 and the reason when that fails, 130 after Ctrl-C."""
    try:
        parser = argparse.ArgumentParser(prog="python -m sparse_ops.build", description="Compile native code ahead.")
        parser.add_argument("target", nargs="?", choices=("cpu", "ipu", "wheel"), default="cpu", help="default: cpu")
        path = {"cpu": build, "ipu": build_ipu.build, "wheel": build_for_wheel}[parser.parse_args(argv).target]()
        answer(str(path))
    except (RuntimeError, OSError) as error:
        say(f"sparse_ops: {in_words(error) if isinstance(error, OSError) else error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("stopped", sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
