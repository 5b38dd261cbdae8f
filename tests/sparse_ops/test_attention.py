"""The native attention against float64, at every instruction level, and torch's in its place."""

from __future__ import annotations

import math
from typing import Iterator

import pytest
import torch
from attention_cases import LENGTHS, WIDTHS, Case, check_all
from compiler import LEVELS, needs_kernels
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparse_ops import native, native_attention
from sparse_ops.attention import attention
from sparse_ops.random_bits import Dropout, kept

pytestmark = needs_kernels


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPARSE_OPS_LEVEL", request.param)
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(seed: int, width: int = 32, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """qkv of two sequences of nine tokens and three heads, and a mask of which the second sequence has nothing."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(2, 9, 9 * width, generator=generator, dtype=dtype).requires_grad_()
    seen = torch.rand(2, 9, generator=generator) < 0.7
    seen[0, 0], seen[1] = True, False
    return qkv, seen


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("length", LENGTHS)
def test_result_and_gradient_match_float64(length: int, width: int, level: str, seed: int) -> None:
    check_all(length, width, seed)


def test_what_sees_nothing_is_as_torch_gives_it(level: str, seed: int) -> None:
    qkv, seen = inputs(seed)
    found = []
    for kernel in ("native", "torch"):
        out = attention(qkv, seen, 3, 0.0, 0, kernel)
        found.append((out, *torch.autograd.grad(out.square().sum(), qkv)))
    for ours, theirs in zip(*found):
        assert not ours[1].any()
        assert not theirs[1].any()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_both_passes_drop_what_the_key_says(dropout: float, level: str, seed: int) -> None:
    """Scores are all 0, values and the gradient identities: the result is the mask over S, dV its transpose."""
    length, heads, batch = 64, 3, 2
    eye = torch.eye(length)[None, :, None].expand(batch, length, heads, length)
    qkv = torch.stack([torch.zeros_like(eye), torch.zeros_like(eye), eye], 2).flatten(2).requires_grad_()
    out = attention(qkv, torch.ones(batch, length, dtype=torch.bool), heads, dropout, seed, "native")
    (gradient,) = torch.autograd.grad(out, qkv, eye.flatten(2).contiguous())
    mask = kept((batch, heads, length, length), dropout, seed)
    forward = out.view(batch, length, heads, length).transpose(1, 2) * length
    backward = gradient.view(batch, length, 3, heads, length)[:, :, 2].transpose(1, 2).mT * length
    assert torch.equal(forward, backward)
    assert torch.equal(forward > 0, mask > 0)
    torch.testing.assert_close(forward, mask, rtol=4 * 2.0**-24, atol=0)
    assert set(mask.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - dropout)))}
    count = mask.numel()
    assert abs(int((mask > 0).sum()) - count * (1 - dropout)) < 5 * math.sqrt(count * dropout * (1 - dropout))
    other = attention(qkv, torch.ones(batch, length, dtype=torch.bool), heads, dropout, seed + 1, "native")
    assert not torch.equal(out, other)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_threads_change_no_bit(dropout: float, threads: None, seed: int) -> None:
    case = Case(130, 32, dropout, torch.Generator().manual_seed(seed))
    found = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        found.append(case.results())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_layouts_do_not_matter(seed: int) -> None:
    qkv, seen = inputs(seed)
    out = attention(qkv, seen, 3, 0.3, 5, "native")
    (gradient,) = torch.autograd.grad(out.sum(), qkv)  # from an expanded scalar
    apart = qkv.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
    same = attention(apart, seen.t().contiguous().t(), 3, 0.3, 5, "native")
    assert torch.equal(same, out)
    assert torch.equal(torch.autograd.grad(same.sum(), apart)[0], gradient)


def test_a_nan_stays_one_and_with_its_readers(level: str, seed: int) -> None:
    """Of a query in its row alone; of a value in what sees it."""
    qkv, seen = inputs(seed)
    seen[:] = True
    spoilt = qkv.detach().clone()
    spoilt[0, 4, 0], spoilt[1, 2, 2 * 96] = math.nan, math.nan
    clean, out = (attention(x, seen, 3, 0.0, 0, "native") for x in (qkv.detach(), spoilt))
    touched = torch.zeros_like(out, dtype=torch.bool)
    touched[0, 4, :32], touched[1, :, 0] = True, True
    assert torch.equal(out.isnan(), touched)
    assert torch.equal(out[~touched], clean[~touched])


def test_far_scores_neither_overflow_nor_slow(level: str) -> None:
    """The largest score wins alone where the others' exponentials are below float32; it may be anywhere."""
    qkv = torch.zeros(1, 9, 96)
    qkv[..., 0], qkv[0, :, 32] = 1e4, torch.tensor([-1.0, 0, 1, 2, 3, 4, 5, 9, 8]) * 1e3
    qkv[0, :, 64] = torch.arange(9)
    out = attention(qkv, torch.ones(1, 9, dtype=torch.bool), 1, 0.0, 0, "native")
    assert out[0, :, 0].tolist() == [7.0] * 9


def test_torch_knows_the_operators(seed: int) -> None:
    qkv, seen = inputs(seed)
    torch.library.opcheck(torch.ops.sparse_ops.attention, (qkv, seen, 3, 0.2, 7))
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(qkv, seen, 3, 0.2, 7, "auto"), attention(qkv, seen, 3, 0.2, 7, "auto"))
    with FlopCounterMode(display=False) as counter:
        attention(qkv, seen, 3, 0.0, 0, "native").sum().backward()
    assert counter.get_total_flops() == (2 + 5) * 2 * 2 * 3 * 9 * 9 * 32


@pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 3), (0, 0)])
def test_nothing_at_all_gives_nothing(batch: int, length: int, level: str) -> None:
    """The operators by themselves: a length of 0 ended the process."""
    seen, heads, width = torch.ones(batch, length, dtype=torch.bool), 2, 32
    qkv, dout = torch.ones(batch, length, 3 * heads * width), torch.ones(batch, length, heads * width)
    out, rows = torch.ops.sparse_ops.attention(qkv, seen, heads, 0.0, 1)
    assert out.shape == dout.shape
    assert torch.ops.sparse_ops.attention_gradient(dout, qkv, seen, rows, 0.0, 1).shape == qkv.shape


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_second_derivatives_match_float64(dropout: float, level: str, seed: int) -> None:
    """Of probabilities written out, one sequence of which sees nothing; to a hundred roundings."""
    qkv, seen = inputs(seed)
    dout = torch.randn(2, 9, 96, generator=torch.Generator().manual_seed(seed + 1)).requires_grad_()

    def second(qkv: Tensor, dout: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(out, qkv, dout, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (qkv, dout))

    found = second(qkv, dout, attention(qkv, seen, 3, dropout, 7, "native"))
    qkv, dout = (t.detach().double().requires_grad_() for t in (qkv, dout))
    mask = kept((2, 3, 9, 9), dropout, 7).double() * seen.any(1)[:, None, None, None]
    out = torch.zeros(2, 9, 96, dtype=torch.float64)
    q, k, v = qkv.view(2, 9, 3, 3, 32).permute(2, 0, 3, 1, 4)
    for b, row in enumerate(seen):
        if row.any():
            scores = q[b] @ k[b].mT / math.sqrt(32)
            scores = torch.where(row, scores, -torch.inf)
            out[b] = ((torch.softmax(scores, -1) * mask[b]) @ v[b]).transpose(0, 1).reshape(9, 96)
    for name, ours, theirs in zip(("qkv", "dout"), found, second(qkv, dout, out)):
        assert (ours - theirs).norm() < 100 * 2.0**-24 * theirs.norm(), name


def test_autocast_does_not_round_a_gradient_with_a_graph(seed: int) -> None:
    """To a hundred roundings; the result is of float32, and its gradient was made of bfloat16 numbers."""
    qkv, seen = inputs(seed)
    with torch.autocast("cpu"):
        out = attention(qkv, seen, 3, 0.2, 7, "native").square().sum()
        with_graph, plain = (torch.autograd.grad(out, qkv, create_graph=graph)[0] for graph in (True, False))
    assert (with_graph - plain).norm() < 100 * 2.0**-24 * plain.norm()


@pytest.mark.parametrize(
    ("width", "dtype", "kernel"),
    [(8, torch.float32, "auto"), (32, torch.bfloat16, "native"), (32, torch.float32, "torch")],
)
def test_torch_computes_the_rest(width: int, dtype: torch.dtype, kernel: str, seed: int, monkeypatch) -> None:
    """Widths that the kernel does not take, other dtypes, and where torch's is asked for."""
    qkv, seen = inputs(seed, width, dtype)
    monkeypatch.setattr(native_attention, "_run", None)
    out = attention(qkv, seen, 3, 0.0, 0, kernel)
    q, k, v = (part.unflatten(-1, (3, width)).transpose(1, 2) for part in qkv.split(3 * width, -1))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])
    assert torch.equal(out, expected.transpose(1, 2).flatten(2))


def test_gradients_under_torch_func_are_torch_s(seed: int) -> None:
    qkv, seen = inputs(seed)
    found = torch.func.grad(lambda x: attention(x, seen, 3, 0.0, 0, "auto").square().sum())(qkv.detach())
    (ours,) = torch.autograd.grad(attention(qkv, seen, 3, 0.0, 0, "native").square().sum(), qkv)
    torch.testing.assert_close(ours, found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, r"qkv: expected \[B, S, 3H\] with H a multiple of 5 heads, found \[2, 9, 288\]"),
        (
            {"key_mask": torch.ones(2, 8, dtype=torch.bool)},
            r"key_mask: expected torch.bool \[2, 9\] on cpu, found .* \[2, 8\]",
        ),
        ({"key_mask": torch.ones(2, 9)}, r"key_mask: expected torch.bool \[2, 9\] .* found torch.float32 \[2, 9\]"),
        ({"heads": 0}, "qkv: expected .* a multiple of 0 heads"),
        # Told apart by device, torch took the operator's fake: a result of whatever was in memory.
        ({"key_mask": torch.ones(2, 9, dtype=torch.bool, device="meta")}, "expected .* on cpu, found .* on meta"),
        ({"kernel": "fast"}, "kernel: expected one of"),
        ({"dropout": 1.0, "kernel": "torch"}, "dropout: expected a probability"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), found 1.0"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    qkv, seen = inputs(0)
    with pytest.raises(ValueError, match=message):
        attention(**{"qkv": qkv, "key_mask": seen, "heads": 3, "dropout": 0.0, "key": 0, "kernel": "auto", **change})


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, -1])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_every_nan_stays_one(part: int, bits: int, level: str, seed: int) -> None:
    """Whatever its lower bits are: those of -1 (memory full of ones) made attention that looked right."""
    qkv, seen = inputs(seed)
    qkv.data.view(torch.int32)[0, 0, part * 96] = bits
    found = []
    for kernel in ("native", "torch"):
        out = attention(qkv, seen, 3, 0.0, 0, kernel)
        found.append((out, *torch.autograd.grad(out.sum(), qkv)))
    for ours, theirs in zip(*found):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert bool(ours.isnan().any())


@pytest.mark.parametrize("number", [1, 2])
def test_no_memory_is_an_error_whichever_thread_finds_it(number: int, threads: None) -> None:
    """More than there are addresses: an exception that left a thread of OpenMP's ended the process, or hung it."""
    torch.set_num_threads(number)
    names = ("qkv", "seen", "dout", "out", "rows")
    sizes = {"batch": 1, "length": 2**42, "heads": 2, "width": 32}
    call = native_attention._AttentionCall(
        **dict.fromkeys(names), **sizes, dropout=Dropout.of(0.0, 0), **native.threads_and_level()
    )
    with pytest.raises(MemoryError, match="out of memory for a workspace"):
        native.run("sparse_ops_attention", call)


def test_exponentials_are_within_units(level: str, seed: int) -> None:
    """Scores of one term each and values the identity: the result is softmax, and the bound is a few roundings."""
    qkv = torch.zeros(1, 32, 96)
    qkv[..., 0], qkv[0, :, 32] = math.sqrt(32), torch.rand(32, generator=torch.Generator().manual_seed(seed)) * 8
    qkv[0, :, 64:] = torch.eye(32)
    out = attention(qkv, torch.ones(1, 32, dtype=torch.bool), 1, 0.0, 0, "native")[0].double()
    expected = torch.softmax(qkv[0, :, 32].double(), 0)
    # A score of up to 8 log2 e is rounded five times, for itself and for the sum; 2 x 16 units and the sum of 32 more.
    assert bool(((out / expected - 1).abs() <= (2 * 5 * 8 + 2 * 16 + 32) * 2.0**-24).all())
