"""The dense gradient's largest free blocks, taken while a backward pass runs; the dense gradient is never formed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Mapping

import torch
from torch import Tensor

from sparse_ops.functional import observe_gradients
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.norms import BlockNorm, GradientBlocks, largest_gradient_blocks
from sparse_ops.pattern import BlockIndex


@contextmanager
def record_gradient_blocks(
    layers: Mapping[str, BlockSparseLinear], counts: Mapping[str, int] | None, norm: BlockNorm
) -> Iterator[dict[str, GradientBlocks]]:
    """A dict that the one backward pass inside the context fills with each layer's largest free blocks.

    counts: per layer how many free positions of a segment are wanted, as `PatternUpdater.gradient_counts` says; None:
    nothing is recorded.
    """
    found: dict[str, GradientBlocks] = {}
    if counts is None:
        yield found
        return
    names = {layer.rows.data_ptr(): name for name, layer in layers.items()}

    def observer(index: BlockIndex, x: Tensor, dy: Tensor) -> None:
        name = names.get(index.rows.data_ptr())
        if name is None:  # a layer that nobody asked for
            return
        with torch.no_grad():
            found[name] = largest_gradient_blocks(x.float(), dy.float(), layers[name].pattern, counts[name], norm)

    with observe_gradients(observer):
        yield found
