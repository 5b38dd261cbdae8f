"""The native kernels against float64, at every instruction level this processor has."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from compiler import LEVELS, needs_kernels
from native_cases import DTYPES, Case, check_all

from sparse_ops import add_norm, build, linear_cross_entropy, native, native_attention, native_half, random_bits
from sparse_ops.functional import block_linear
from sparse_ops.operators import select
from sparse_ops.pattern import BLOCK_SIZES, BlockIndex, BlockPattern

pytestmark = needs_kernels


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPARSE_OPS_LEVEL", request.param)
    return request.param


@pytest.fixture(params=(1, 2))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_every_product_matches_float64(b: int, dtype: torch.dtype, level: str, seed: int) -> None:
    check_all(b, dtype, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_threads_and_repetition(b: int, dtype: torch.dtype, threads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    uneven = torch.cat([torch.zeros(12, dtype=torch.int64), torch.arange(1, 13)])  # row 0 holds half of them
    cols = torch.cat([torch.arange(12), torch.arange(12)])
    case = Case(BlockPattern((13 * b, 12 * b), b, uneven.int(), cols.int()), 700, dtype, generator)
    first = case.results()
    case.check(first)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, case.results()))
    torch.set_num_threads(3 - threads)
    other = case.results()
    case.check(other)
    assert torch.equal(first[0], other[0])
    assert torch.equal(first[1], other[1])
    case.check_gelu(*case.gelu())


def test_without_a_shared_openmp_runtime(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "parallel_address", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(seed)
    case = Case(BlockPattern.random((64, 48), 8, 0.5, generator), 300, torch.float32, generator)
    case.check(case.results())
    torch.set_num_threads(before)


@pytest.mark.skipif(not build._X86, reason="numbers are flushed by x86's control register alone")
def test_what_is_too_small_to_be_normal_counts_as_zero_and_for_nobody_else(level: str, threads: int) -> None:
    """For nobody else: torch's own arithmetic afterwards, on the same threads, has such numbers as before."""
    pattern = BlockPattern.random((64, 48), 16, 0.5, torch.Generator().manual_seed(1))
    x, dy = torch.full((300, 48), 1e-25), torch.full((300, 64), 1e-25)
    small = torch.full((pattern.nnz, 16, 16), 1e-15)  # products of 1e-40, which torch's are (below 1.2e-38)
    assert (x[0] * small[0, 0, 0] > 0).all()
    assert not native.forward(x, small, pattern.index(), None).any()
    assert not native.grad_input(dy, small, pattern.index()).any()
    assert not native.grad_values(x, dy * 1e10, pattern.index(), 16, with_bias=False)[0].any()
    everywhere = torch.full((1 << 20,), 1e-25) * 1e-15  # by all threads
    assert (everywhere > 0).all()


def test_no_tokens_and_no_blocks() -> None:
    empty = torch.zeros(0, dtype=torch.int32)
    for b in BLOCK_SIZES:
        case = Case(BlockPattern((2 * b, 3 * b), b, empty, empty), 5, torch.float32, torch.Generator().manual_seed(1))
        y, dx, dw, db = case.results()
        assert torch.equal(y, case.bias.expand(5, -1))
        assert not dx.any()
        assert dw.shape == (0, b, b)
        torch.testing.assert_close(db, case.dy.sum(0))
        full = BlockPattern.random((2 * b, 3 * b), b, 0.0, torch.Generator())
        case = Case(full, 0, torch.float32, torch.Generator())
        y, dx, dw, db = case.results()
        assert y.shape == (0, 2 * b)
        assert dx.shape == (0, 3 * b)
        assert not dw.any()
        assert not db.any()


@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_inputs_that_are_not_contiguous(b: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    case = Case(BlockPattern.random((4 * b, 6 * b), b, 0.5, generator), 21, torch.float32, generator)
    case.x, case.dy = case.x.t().contiguous().t(), case.dy.repeat_interleave(2, 1)[:, ::2]
    case.values = case.values.transpose(0, 2).contiguous().transpose(0, 2)
    case.bias = case.bias.repeat_interleave(3)[::3]
    assert not (case.x.is_contiguous() and case.dy.is_contiguous())
    case.check(case.results())


def test_a_view_that_is_negated_when_it_is_read(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pattern = BlockPattern.random((16, 24), 4, 0.5, generator)
    case, index = Case(pattern, 21, torch.float32, generator), pattern.index()
    found = native.forward(torch._neg_view(case.x), case.values, index, None)
    assert torch.equal(found, native.forward(-case.x, case.values, index, None))


def test_special_values_stay_where_they_belong() -> None:
    """A NaN or an infinity in one token touches that token alone, and bfloat16 keeps a NaN a NaN."""
    generator = torch.Generator().manual_seed(3)
    for b in BLOCK_SIZES:
        pattern = BlockPattern.random((16, 32), b, 0.0, generator)
        for dtype in DTYPES:
            case = Case(pattern, 20, dtype, generator)
            x = case.x.clone()
            x[3, 5] = float("nan")
            y = native.forward(x, case.values, case.index, case.bias)
            clean = native.forward(case.x, case.values, case.index, case.bias)
            assert bool(y[3].isnan().all())
            assert torch.equal(y[4:], clean[4:])
            assert torch.equal(y[:3], clean[:3])


def test_a_feature_that_no_block_has_touches_no_output(seed: int) -> None:
    """Infinities where W has no block: rows of 1x1 blocks are filled up to equal lengths, and not with these."""
    generator = torch.Generator().manual_seed(seed)
    for b in BLOCK_SIZES:
        grid = torch.rand(18, 420, generator=generator) < 0.1
        grid[:, ::7] = False
        rows, cols = grid.nonzero().int().unbind(1)
        case = Case(BlockPattern((18 * b, 420 * b), b, rows, cols), 37, torch.float32, generator)
        clean = native.forward(case.x, case.values, case.index, case.bias)
        case.x.view(37, 420, b)[:, ::7] = float("inf")
        assert torch.equal(native.forward(case.x, case.values, case.index, case.bias), clean)


@pytest.mark.parametrize("level", LEVELS)
def test_gelu_of_the_largest_numbers(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overflow stays one, and is not taken for another fault."""
    monkeypatch.setenv("SPARSE_OPS_LEVEL", level)
    pattern = BlockPattern((4, 4), 4, torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    bias = torch.tensor([float("inf"), 3e38, 1e30, 1e15])
    y, slope = native.forward_gelu(torch.zeros(2, 4), torch.eye(4)[None], pattern.index(), bias, True)
    assert torch.equal(y, bias.expand(2, 4))
    assert torch.equal(slope, torch.ones(2, 4))
    y, slope = native.forward_gelu(torch.zeros(2, 4), torch.eye(4)[None], pattern.index(), -bias[[1, 1, 2, 3]], True)
    assert y.abs().max() < 1e-15
    assert slope.abs().max() < 1e-15


def test_gelu_far_out_and_without_its_slope() -> None:
    """x itself, or zero, where Phi is one or zero; a NaN stays one; y does not depend on the slope."""
    pattern = BlockPattern((4, 4), 4, torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    x = torch.tensor([[0.0, 30.0, -30.0, 1e20], [float("nan")] * 4])
    args = (x, torch.eye(4)[None], pattern.index())
    y, slope = native.forward_gelu(x[:1], *args[1:], None, True)
    assert y[0, [0, 1, 3]].tolist() == x[0, [0, 1, 3]].tolist()
    assert abs(y[0, 2]) < 1e-30
    torch.testing.assert_close(slope[0], torch.tensor([0.5, 1.0, 0.0, 1.0]), rtol=0, atol=1e-6)
    assert native.forward_gelu(x[1:], *args[1:], None, True)[0].isnan().all()
    alone, nothing = native.forward_gelu(x[:1], *args[1:], None, False)
    assert torch.equal(alone, y)
    assert nothing.numel() == 0


def test_refusals() -> None:
    index = BlockPattern.random((8, 12), 4, 0.5, torch.Generator().manual_seed(0)).index()
    x, dy, values = torch.ones(3, 12), torch.ones(3, 8), torch.ones(3, 4, 4)
    with pytest.raises(ValueError, match=r"x: expected \[3, 12\], found \[3, 8\]"):
        native.forward(dy, values, index, None)
    with pytest.raises(ValueError, match=r"dy: expected \[3, 8\], found \[3, 12\]"):
        native.grad_input(x, values, index)
    with pytest.raises(ValueError, match="values: expected"):
        native.forward(x, torch.ones(2, 4, 4), index, None)
    with pytest.raises(ValueError, match="values: expected"):
        native.forward(x, torch.ones(3, 2, 2), index, None)
    with pytest.raises(ValueError, match=r"bias: expected \[8\]"):
        native.forward(x, values, index, torch.ones(12))
    with pytest.raises(ValueError, match=r"found torch\.float64"):
        native.forward(x.double(), values.double(), index, None)
    with pytest.raises(ValueError, match=r"expected torch\.float32"):
        native.forward(x.bfloat16(), values, index, None)
    with pytest.raises(ValueError, match="CPU"):
        native.forward(x.to("meta"), values, index, None)
    with pytest.raises(ValueError, match="block size"):
        native.grad_values(x, dy, index, 3)
    with pytest.raises(ValueError, match=r"dy: expected \[3, 8\], found \[2, 8\]"):
        native.grad_values(x, dy[:2], index, 4)
    with pytest.raises(ValueError, match="index rows"):
        native.forward(x, values, BlockIndex(*(t.long() for t in index)), None)


def _spoilt(index: BlockIndex, generator: torch.Generator) -> Iterator[BlockIndex]:
    """Indices that lead astray: one number of one field is another, two change places, or a field is all noise."""
    for place, field in enumerate(index):
        for wild in (-1, field.numel(), 2**31 - 1, -(2**31), int(torch.randint(0, 9, (), generator=generator))):
            number = field.clone()
            number[int(torch.randint(field.numel(), (), generator=generator))] = wild
            yield index._replace(**{index._fields[place]: number})
        yield index._replace(**{index._fields[place]: field.flip(0)})
        noise = torch.randint(-(2**31), 2**31, field.shape, generator=generator, dtype=torch.int64).int()
        yield index._replace(**{index._fields[place]: noise})
        yield index._replace(**{index._fields[place]: torch.zeros_like(field)})


def _refuses(product: Callable[[], object]) -> bool:
    try:
        product()
    except ValueError as error:
        return "index: expected one made by BlockPattern.index()" in str(error)
    return False


@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_an_index_that_no_pattern_has_is_refused(b: int, level: str, seed: int) -> None:
    """A product reads the index by rows or by columns and refuses what disagrees there; the three together refuse all
    but the right index. Such indices killed the process, or wrote into others' memory."""
    generator = torch.Generator().manual_seed(seed)
    case = Case(BlockPattern.random((6 * b, 9 * b), b, 0.5, generator), 7, torch.float32, generator)
    index = case.index
    for spoilt in _spoilt(index, generator):
        products = (
            lambda i=spoilt: native.forward(case.x, case.values, i, case.bias),
            lambda i=spoilt: native.grad_input(case.dy, case.values, i),
            lambda i=spoilt: native.grad_values(case.x, case.dy, i, b),
        )
        refused = sum(_refuses(product) for product in products)
        same = all(torch.equal(a, e) for a, e in zip(spoilt, index))
        assert refused > 0 or same
    with pytest.raises(ValueError, match=r"index col_slots: expected \[27\], found \[26\]"):
        native.forward(case.x, case.values, index._replace(col_slots=index.col_slots[:-1]), None)


_KINDS = {
    ctypes.c_void_p: "std::is_pointer_v<T>",
    ctypes.c_bool: "std::is_same_v<T, bool>",
    ctypes.c_int32: "std::is_same_v<T, int32_t>",
    ctypes.c_int64: "std::is_same_v<T, int64_t>",
    ctypes.c_uint32: "std::is_same_v<T, uint32_t>",
    native._BlockIndex: "std::is_same_v<T, BlockIndex>",
    native_half._HalfKey: "std::is_same_v<T, HalfKey>",
    ctypes.c_float: "std::is_same_v<T, float>",
    random_bits.RandomKey: "std::is_same_v<T, RandomKey>",
    random_bits.Dropout: "std::is_same_v<T, Dropout>",
}

STRUCTURES = (
    native._BlockIndex,
    native._ProductCall,
    native._GradientCall,
    native_half._HalfKey,
    native_half._HalfRoundCall,
    native_half._HalfProductsCall,
    random_bits.RandomKey,
    random_bits.Dropout,
    add_norm._AddNormCall,
    add_norm._AddNormGradientCall,
    native_attention._AttentionCall,
    linear_cross_entropy._CrossEntropyCall,
)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_python_and_the_compiler_lay_structures_out_alike(structure: type[ctypes.Structure], tmp_path: Path) -> None:
    """The compiler is asked for each field by its name; a structured binding fails where their number differs."""
    name = structure.__name__.lstrip("_")
    fields = [(field, kind) for field, kind, *_ in structure._fields_]
    lines = [f"static_assert(sizeof({name}) == {ctypes.sizeof(structure)});"]
    lines += [f"auto all = [](const {name}& s) {{ const auto& [{', '.join(field for field, _ in fields)}] = s; }};"]
    for field, kind in fields:
        lines += [f"static_assert(offsetof({name}, {field}) == {getattr(structure, field).offset});"]
        lines += [f"template <class T> void check_{field}() {{ static_assert({_KINDS[kind]}); }}"]
        lines += [f"template void check_{field}<decltype({name}::{field})>();"]
    source = tmp_path / "layout.cpp"
    source.write_text("\n".join(["#include <cstddef>", "#include <type_traits>", '#include "api.hpp"', *lines]) + "\n")
    command = [*build.find_compiler(), "-std=c++17", "-fsyntax-only", f"-I{build.SOURCES}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_call_takes_every_field_by_name() -> None:
    fields = dict.fromkeys((name for name, _ in native._GradientCall._fields_ if name != "index"), 1)
    index = native._BlockIndex(1, 2, 3, 4, 5, 6)
    assert native._GradientCall(index=index, **fields).index.col_slots == 6
    with pytest.raises(TypeError, match=r"_GradientCall: expected the fields \['bias', .* found \['bias', "):
        native._GradientCall(**fields)
    with pytest.raises(TypeError, match=r"found .*'indexes'"):
        native._GradientCall(indexes=index, **fields)


def test_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_OPS_LEVEL", "mmx")
    with pytest.raises(ValueError, match="SPARSE_OPS_LEVEL: expected one of"):
        native.level()


def test_native_kernels_that_are_not_there_are_refused_by_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why_not", lambda: "no C++ compiler")
    with pytest.raises(ValueError, match=r"kernel native: expected native kernels, found none: no C\+\+ compiler"):
        select("native", torch.zeros(1, 8), 8)
    with pytest.raises(ValueError, match=r"expected float32 or bfloat16 on the CPU, found torch.float64 on cpu"):
        select("native", torch.zeros(1, 8, dtype=torch.float64), 8)


@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_autograd_through_the_native_kernel(b: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    case = Case(BlockPattern.random((4 * b, 6 * b), b, 0.5, generator), 17, torch.float32, generator)
    leaves = [t.requires_grad_() for t in (case.x, case.values, case.bias)]
    y = block_linear(case.x, case.values, case.index, case.bias, kernel="native")
    dx, dw, db = torch.autograd.grad(y, leaves, case.dy)
    case.check((y.detach(), dx, dw, db))
    activated = block_linear(case.x, case.values, case.index, case.bias, kernel="native", gelu=True)
    expected = torch.autograd.grad(F.gelu(block_linear(case.x, case.values, case.index, case.bias)), leaves, case.dy)
    # Slopes differ by 1e-6 at most, sums have at most 24 terms of size 1 to 10.
    for got, wanted in zip(torch.autograd.grad(activated, leaves, case.dy), expected):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
