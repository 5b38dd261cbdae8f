"""Blocks of the dense gradient that a library's user records: of one backward pass, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_ops.dynsparse.gradients import record_gradient_blocks
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.norms import l1, l2


def under_torch_func(layer: BlockSparseLinear, x: Tensor) -> Any:
    return torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).sum())(dict(layer.named_parameters()))


@pytest.mark.parametrize(
    ("work", "times"),
    [
        (lambda layer, x: None, 0),
        (lambda layer, x: torch.autograd.grad(layer(x).sum(), layer.values, create_graph=True), 0),
        (under_torch_func, 0),
        (lambda layer, x: [layer(x).sum().backward() for _ in range(2)], 2),
        (lambda layer, x: layer(layer(x)).sum().backward(), 2),
    ],
    ids=["no backward pass", "create_graph", "torch.func", "two passes", "a layer used twice"],
)
def test_what_is_not_one_backward_pass_is_refused(work, times):
    """Growth by it found too few blocks, put all where they had been, or put two on one place."""
    layer, x = BlockSparseLinear(16, 16, 4, 0.5), torch.randn(3, 16)
    message = f"^a: expected one backward pass .*, found {times}$"
    with pytest.raises(ValueError, match=message), record_gradient_blocks({"a": layer}, {"a": 2}, l1):
        work(layer, x)


def test_one_backward_pass_is_recorded():
    layer, x = BlockSparseLinear(16, 16, 4, 0.5), torch.randn(3, 16)
    with record_gradient_blocks({"a": layer}, {"a": 2}, l1) as found:
        layer(x).sum().backward()
    positions = found["a"].rows * 4 + found["a"].cols
    assert positions.numel() == 2
    assert not torch.isin(positions, layer.pattern.keys()).any()


def test_a_loss_scale_is_taken_out_before_norms_are_made(seed: int):
    """The largest free blocks are those of the dense gradient dY^T X of the loss itself, made here in float64."""
    generator = torch.Generator().manual_seed(seed)
    layer, x = BlockSparseLinear(16, 16, 4, 0.5), torch.randn(3, 16, generator=generator)
    dy = torch.randn(3, 16, generator=generator)
    norms = (dy.double().t() @ x.double()).view(4, 4, 4, 4).transpose(1, 2).square().sum((2, 3)).sqrt().flatten()
    norms[layer.pattern.keys()] = 0.0
    for scale in (1.0, 2.0**80, 1e25):  # squares of the scaled ones are infinite
        with record_gradient_blocks({"a": layer}, {"a": 2}, l2, loss_scale=scale) as found:
            ((layer(x) * dy).sum() * scale).backward()
        best = norms.topk(2)
        assert sorted((found["a"].rows * 4 + found["a"].cols).tolist()) == sorted(best.indices.tolist())
        torch.testing.assert_close(
            found["a"].norms.sort(descending=True).values.double(), best.values, rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_loss_scale_that_cannot_be_taken_out_is_refused(scale: float):
    layer = BlockSparseLinear(16, 16, 4, 0.5)
    message = f"^loss_scale: expected a finite number above 0, found {scale}$"
    with pytest.raises(ValueError, match=message), record_gradient_blocks({"a": layer}, {"a": 2}, l1, scale):
        pass
