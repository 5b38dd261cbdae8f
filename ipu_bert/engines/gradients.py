"""The dense gradient's largest free blocks, taken while a backward pass runs; the dense gradient is never formed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Mapping

import torch
from torch import Tensor

from sparse_ops.linear import BlockSparseLinear
from sparse_ops.norms import GradientBlocks, largest_gradient_blocks


@contextmanager
def record_gradient_blocks(
    layers: Mapping[str, BlockSparseLinear], counts: Mapping[str, int], norm: float
) -> Iterator[dict[str, GradientBlocks]]:
    """Fill a dict, per layer, during the one backward pass inside the context."""
    found: dict[str, GradientBlocks] = {}
    handles = [
        layer.register_forward_hook(_observer(found, name, counts[name], norm)) for name, layer in layers.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _observer(found: dict[str, GradientBlocks], name: str, count: int, norm: float) -> Any:
    def after_forward(layer: BlockSparseLinear, inputs: Any, output: Tensor) -> None:
        x = inputs[0].detach()

        def after_backward(dy: Tensor) -> None:
            with torch.no_grad():
                found[name] = largest_gradient_blocks(
                    x.flatten(0, -2).float(), dy.flatten(0, -2).float(), layer.pattern, count, norm
                )

        output.register_hook(after_backward)

    return after_forward
