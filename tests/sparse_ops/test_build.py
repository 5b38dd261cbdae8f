"""Compiling on first use: the cache's key, two processes at once, no compiler, an unwritable cache."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Callable

import pytest
from compiler import needs_compiler

from sparse_ops import build, native
from sparse_ops.files import sha256_of

_PRODUCT = """
import sys, warnings, torch
from sparse_ops import native
from sparse_ops.functional import block_linear
from sparse_ops.pattern import BlockPattern
index = BlockPattern.random((8, 12), 4, 0.5, torch.Generator().manual_seed(0)).index()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y = block_linear(torch.ones(3, 12), torch.ones(3, 4, 4), index)
assert y.sum() == 3 * 3 * 16, y
print("native" if native.available() else "torch", len(caught), *(str(w.message) for w in caught))
"""


def _environment(**changes: str) -> dict[str, str]:
    root = str(Path(build.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, **changes}


def _start(environment: dict[str, str], *command: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], env=environment, stdout=pipe, stderr=pipe, text=True)


_FAILS = "echo no such flag >&2; exit 3"
_BROKEN = {
    "compiler": _FAILS,
    "linker": f'case $1 in -shared) echo a part > "$3"; {_FAILS};; esac',  # -shared -o library
}


@needs_compiler
def test_two_first_uses_at_once_compile_once(tmp_path: Path) -> None:
    """Compiled without optimization, which would take most of the time."""
    quick = tmp_path / "quick"
    quick.write_text(f'#!/bin/sh\nexec {shlex.join(build.find_compiler())} "$@" -O0\n')
    quick.chmod(0o755)
    environment = _environment(SPARSE_OPS_CACHE=str(tmp_path / "cache"), CXX=str(quick))
    both = [_start(environment, "-c", _PRODUCT) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [out.split()[:2] for out, _ in outputs] == [["native", "0"]] * 2, outputs
    assert sum(err.count("compiling CPU kernels") for _, err in outputs) == 1
    kept = [path.suffix for path in (tmp_path / "cache").iterdir()]
    assert sorted(kept) == [".lock", ".sha256", ".so"]
    again, error = _start(environment, "-m", "sparse_ops.build").communicate(timeout=60)
    assert Path(again.strip()).parent == tmp_path / "cache"
    assert "compiling" not in error


def test_no_compiler_means_one_warning_and_the_torch_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = _environment(SPARSE_OPS_CACHE=str(tmp_path), PATH=str(tmp_path), CXX="")
    out, error = _start(environment, "-c", _PRODUCT).communicate(timeout=60)
    assert out.split()[:2] == ["torch", "1"], error
    assert "no C++ compiler" in out
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    assert build.main([]) == 1
    assert "no C++ compiler: expected g++, clang++ or c++" in capsys.readouterr().err


def test_ctrl_c_while_it_compiles_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build", stopped)
    assert build.main([]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("what", _BROKEN)
def test_a_compiler_that_fails_means_one_warning_and_the_torch_path(what: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit 0\n{_BROKEN[what]}\n')
    broken.chmod(0o755)
    environment = _environment(SPARSE_OPS_CACHE=str(tmp_path / "cache"), CXX=str(broken))
    out, _ = _start(environment, "-c", _PRODUCT).communicate(timeout=60)
    assert out.split()[:2] == ["torch", "1"]
    assert "failed with 3" in out
    assert "no such flag" in out
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"], "nothing else is left"


def test_a_cache_that_cannot_be_made_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may write anywhere, so the folder's parent is a file: that stops everyone."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSE_OPS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(build, "_compile", lambda path, units: path.write_bytes(b"library"))
    monkeypatch.setattr(build, "library_path", lambda: build.cache_folder() / "kernels-0.so")
    at_the_end: list[Callable[[], None]] = []
    monkeypatch.setattr(build.atexit, "register", lambda *call, **more: at_the_end.append(partial(*call, **more)))
    path = build.build()
    assert path.read_bytes() == b"library"
    assert f"{tmp_path / 'file' / 'cache'} cannot be written" in capsys.readouterr().err
    assert tmp_path not in path.parents
    (end,) = at_the_end
    end()
    assert not path.parent.exists()  # else every process would leave one

    def nowhere(**_: str) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(build.tempfile, "mkdtemp", nowhere)
    with pytest.raises(build.BuildError, match=r"cannot write the kernels to .*: .*No usable temporary directory"):
        build.build()


@pytest.mark.parametrize("stopped", ["lock_after_others", "write"])
def test_a_cache_with_files_that_another_user_keeps_is_replaced(
    stopped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where all may write and the first to come had the umask 077: the others had plain torch for ever.

    Root may open anything, so what opens the files says no in the system's place.
    """
    allowed = getattr(build, stopped)

    def keeping(path: Path, *args: object, **options: object) -> object:
        if tmp_path in Path(path).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path, *args, **options)

    monkeypatch.setattr(build, stopped, keeping)
    monkeypatch.setattr(build, "_compile", lambda path, units: path.write_bytes(b"library"))
    monkeypatch.setattr(build, "library_path", lambda: tmp_path / "kernels-0.so")
    path = build.build()
    assert path.read_bytes() == b"library"
    assert tmp_path not in path.parents
    said = capsys.readouterr().err
    assert f"{tmp_path / 'kernels-0'}" in said
    assert "Permission denied: kernels are made for this process alone" in said
    assert said.count("\n") == 1


def test_what_killed_compilations_left_goes_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a compilation that is under way, and not what only has such a name."""
    for name, file, hours in (("build-old", "avx2.o", 25), ("build-new", "api.o", 23), ("build-mine", "main.c", 999)):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("")
        os.utime(tmp_path / name, (0, time.time() - 3600 * hours))
    (tmp_path / ".kernels-0.so.7.tmp").write_text("half a library")
    os.utime(tmp_path / ".kernels-0.so.7.tmp", (0, time.time() - 3600 * 25))
    (tmp_path / "kernels-0.so").write_text("library")
    (tmp_path / "kernels-0.sha256").write_text(sha256_of(tmp_path / "kernels-0.so"))
    monkeypatch.setattr(build, "library_path", lambda: tmp_path / "kernels-0.so")
    assert build.build() == tmp_path / "kernels-0.so"
    kept = ["build-mine", "build-new", "kernels-0.sha256", "kernels-0.so"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_a_library_that_is_not_as_it_was_compiled_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded, it would end the process by SIGBUS."""
    compiled: list[Path] = []
    path = tmp_path / "kernels-0.so"
    monkeypatch.setattr(build, "library_path", lambda: path)
    monkeypatch.setattr(build, "_compile", lambda path, units: (compiled.append(path), path.write_bytes(b"x" * 9000)))
    for times, damage in ((1, None), (1, None), (2, lambda: os.truncate(path, 5000)), (3, path.unlink)):
        if damage is not None:
            damage()
        assert build.build().read_bytes() == b"x" * 9000
        assert compiled == [path] * times


@pytest.mark.parametrize(("named", "said"), [('"', "CXX: expected a command, found '\"'"), ("bytes", "failed with 3")])
def test_a_compiler_is_refused_by_its_name(
    named: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`native.available` warns of it and runs on; a command ends in one line."""
    (tmp_path / "bytes").write_text("#!/bin/sh\nprintf '\\377'; [ \"$1\" = --version ] || exit 3\n")
    (tmp_path / "bytes").chmod(0o755)
    monkeypatch.setenv("SPARSE_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / named) if named == "bytes" else named)
    assert build.main([]) == 1
    assert said in capsys.readouterr().err


@needs_compiler
def test_a_library_that_a_wheel_brought_is_used_and_one_that_does_not_load_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped one stands in for every level; without it, or where it does not load, sources are compiled.

    So they are where it is damaged, which is said: to load one that is cut short may end the process.
    """
    compiled = build.build()
    assert native._library.__wrapped__()._name == str(compiled)
    monkeypatch.setattr(build, "SHIPPED", tmp_path)
    monkeypatch.setattr(build, "_compile", lambda path, _: path.write_bytes(content))
    content = b"of another C library"
    shipped = build.build_for_wheel()
    assert shipped == build.shipped_path()
    assert native._library.__wrapped__()._name == str(compiled)
    assert capsys.readouterr().err == ""
    content = compiled.read_bytes()
    build.build_for_wheel()
    for damaged in (content[:-1], content[: len(content) // 2], content[:-9] + b"\1" + content[-8:], b""):
        shipped.write_bytes(damaged)
        assert native._library.__wrapped__()._name == str(compiled)
        assert f"{shipped} is damaged: install the package again" in capsys.readouterr().err
    build.build_for_wheel()
    with monkeypatch.context() as patch:
        patch.setattr(build, "build", lambda: pytest.fail("compiled"))
        assert native._library.__wrapped__()._name == str(build.shipped_path())
    with monkeypatch.context() as patch:
        patch.setattr(build, "COMMON_FLAGS", ("-O2",))
        assert not build.shipped_path().exists(), "a library of other sources or flags is not found"


@needs_compiler
def test_the_key_follows_sources_flags_compiler_and_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_OPS_CACHE", str(tmp_path))
    first = build.library_path()
    assert build.library_path() == first
    assert first.parent == tmp_path
    keys = {first.name}
    with monkeypatch.context() as patch:
        patch.setattr(build, "cpu_features", lambda: "another processor")
        keys.add(build.library_path().name)
    with monkeypatch.context() as patch:
        patch.setattr(build, "COMMON_FLAGS", ("-O2",))
        keys.add(build.library_path().name)
    with monkeypatch.context() as patch:
        sources = tmp_path / "sources"
        sources.mkdir()
        for path in build.SOURCES.iterdir():
            (sources / path.name).write_bytes(path.read_bytes() + b"// changed\n")
        patch.setattr(build, "SOURCES", sources)
        keys.add(build.library_path().name)
    with monkeypatch.context() as patch:
        wrapper = tmp_path / "compiler"
        wrapper.write_text("#!/bin/sh\necho another 9.9\n")
        wrapper.chmod(0o755)
        patch.setenv("CXX", str(wrapper))
        keys.add(build.library_path().name)
    assert len(keys) == 5


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_OPS_CACHE", "/somewhere")
    assert build.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("SPARSE_OPS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert build.cache_folder() == Path("/caches/sparse_ops")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_folder() == Path.home() / ".cache" / "sparse_ops"


def test_levels_are_numbered_alike_where_they_are_compiled_and_where_they_are_chosen() -> None:
    assert tuple(level.name for level in build.LEVELS) == native.LEVELS
