"""The sixteen-lane kernels on any processor: the source of the AVX-512 levels, compiled without their instructions."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from attention_cases import LENGTHS
from attention_cases import check_all as check_attention
from compiler import needs_compiler
from native_cases import DTYPES, check_all, check_variants

from sparse_ops import build, native
from sparse_ops.files import lock
from sparse_ops.pattern import BLOCK_SIZES
from sparse_ops.variants import Choices, Work

pytestmark = [needs_compiler, pytest.mark.skipif(not build._X86, reason="not x86-64")]


@pytest.fixture(scope="module")
def wide_library(shared: Path) -> ctypes.CDLL:
    """A library whose AVX-512 levels need only what every x86-64 processor has."""
    everything = " ".join(("sse2", *(feature for level in build.LEVELS for feature in level.features)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "cpu_features", lambda: everything)
        units = build.units()
    assert [unit.name for unit in units[:2]] == ["avx512_bf16", "avx512"]
    plain = [u._replace(flags=tuple(flag for flag in u.flags if not flag.startswith("-m"))) for u in units[:2]]
    rest = [u._replace(flags=tuple(flag for flag in u.flags if not flag.startswith("-O"))) for u in units[2:]]
    path = shared / "wide.so"
    with pytest.MonkeyPatch.context() as patch, lock(shared / "wide.lock", wait=True):
        patch.setattr(build, "COMMON_FLAGS", ("-Og", "-Wno-psabi", *build.COMMON_FLAGS[1:]))
        if not path.exists():
            build._compile(path, [*plain, *rest])
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize(
    ("dtype", "level"), [*((d, "avx512") for d in DTYPES), (torch.bfloat16, "avx512_bf16")], ids=str
)
@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_sixteen_lanes_match_float64(
    b: int, dtype: torch.dtype, level: str, wide_library: ctypes.CDLL, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_library", lambda: wide_library)
    monkeypatch.setattr(native, "_level", lambda named: native.LEVELS.index(level))
    check_all(b, dtype, seed)


@pytest.mark.parametrize(
    ("b", "dtype", "level"),
    [
        *((b, torch.float32, "avx512") for b in BLOCK_SIZES),
        (16, torch.bfloat16, "avx512"),
        (4, torch.bfloat16, "avx512_bf16"),
    ],
    ids=str,
)
def test_all_ways_of_sixteen_lanes_give_the_same_bits(
    b: int,
    dtype: torch.dtype,
    level: str,
    wide_library: ctypes.CDLL,
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = Choices(tmp_path, wide_library, "a processor")
    monkeypatch.setattr(native, "_library", lambda: wide_library)
    monkeypatch.setattr(native, "_level", lambda named: native.LEVELS.index(level))
    monkeypatch.setattr(native, "choices", lambda: chosen)
    check_variants(b, dtype, seed)


@pytest.mark.parametrize("half", [False, True])
def test_tokens_are_the_default_of_sixteen_lanes(half: bool, wide_library: ctypes.CDLL, tmp_path: Path) -> None:
    """They were faster on each processor that has been measured (docs/kernels.md)."""
    choices = Choices(tmp_path, wide_library, "a processor")
    work = Work("forward", out=96, inp=64, block=16, blocks=12, tokens=100, half=half, threads=1, level=2)
    assert choices.names(work)[choices.default(work)] == "tokens"


@pytest.mark.parametrize("length", LENGTHS)
def test_attention_of_sixteen_lanes_matches_float64(
    length: int, wide_library: ctypes.CDLL, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_library", lambda: wide_library)
    monkeypatch.setattr(native, "_level", lambda named: native.LEVELS.index("avx512"))
    check_attention(length, 80, seed)  # five vectors: a panel of four and one of one
