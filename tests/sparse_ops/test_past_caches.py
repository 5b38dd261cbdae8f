"""Results so large that they go past the caches have the bits of the same results made in parts that do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable

import pytest
import torch
from compiler import LEVELS, needs_kernels
from torch import Tensor

from sparse_ops import native
from sparse_ops.add_norm import add_norm
from sparse_ops.attention import attention
from sparse_ops.pattern import BLOCK_SIZES, BlockPattern
from sparse_ops.random_bits import kept

pytestmark = needs_kernels

PARTS = 4
SOURCE = Path(native.__file__).parent / "csrc" / "cpu" / "vec.hpp"


@pytest.fixture(autouse=True, params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_OPS_LEVEL", request.param)


def least_floats() -> int:
    """From so many on a result goes past the caches."""
    found = re.search(r"kPastCaches = (\d+) << (\d+);", SOURCE.read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) << int(found[2])


def check(large: Callable[..., list[Tensor]], inputs: list[Tensor]) -> None:
    """large(*inputs) over all rows, and over a quarter of them at a time."""
    found = large(*inputs)
    assert all(least_floats() <= made.numel() < PARTS * least_floats() for made in found)
    parts = [large(*(t.chunk(PARTS)[p].contiguous() for t in inputs)) for p in range(PARTS)]
    for made, expected in zip(found, zip(*parts)):
        assert torch.equal(made, torch.cat(expected))


# 520 features: rows of half a cache line more than whole ones, which are stored as ever
@pytest.mark.parametrize(("b", "features"), [*((b, 512) for b in BLOCK_SIZES), (8, 520)])
def test_products(b: int, features: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pattern = BlockPattern.random((features, features), b, 0.96, generator)
    values, bias = torch.randn(pattern.nnz, b, b, generator=generator), torch.randn(features, generator=generator)
    index = pattern.index()
    x = torch.randn(least_floats() // 512 + 32, features, generator=generator)
    check(lambda x: [native.forward(x, values, index, bias)], [x])
    check(lambda x: list(native.forward_gelu(x, values, index, bias, True)), [x])
    check(lambda dy: [native.grad_input(dy, values, index)], [x])
    factor = torch.randn(x.shape, generator=generator)
    check(lambda dy, factor: [native.grad_input(dy, values, index, factor)], [x, factor])


def test_the_end_of_a_layer(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, residual, dy = (torch.randn(least_floats() // 512 + 32, 512, generator=generator) for _ in range(3))
    weight, bias = torch.randn(512, generator=generator), torch.randn(512, generator=generator)

    def results(x: Tensor, residual: Tensor, dy: Tensor, dropout: float = 0.0) -> list[Tensor]:
        x, residual = x.requires_grad_(), residual.requires_grad_()
        y = add_norm(x, residual, weight, bias, 1e-12, dropout, 7, "native")
        return [y.detach(), *torch.autograd.grad(y, (x, residual), dy)]

    check(results, [x, residual, dy])
    _, dx, dresidual = results(x, residual, dy, 0.1)
    assert torch.equal(dx, dresidual * kept(tuple(x.shape), 0.1, 7))


def test_attention(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sequences = PARTS * (least_floats() // (16 * 512 * PARTS) + 1)
    qkv = torch.randn(sequences, 16, 3 * 512, generator=generator)
    dout = torch.randn(sequences, 16, 512, generator=generator)

    def results(qkv: Tensor, dout: Tensor) -> list[Tensor]:
        qkv = qkv.requires_grad_()
        seen = torch.ones(qkv.shape[:2], dtype=torch.bool)
        out = attention(qkv, seen, 8, 0.0, 7, "native")
        return [out.detach(), torch.autograd.grad(out, qkv, dout)[0]]

    check(results, [qkv, dout])
