"""The products with a block-sparse weight in plain torch: the oracle of every other kernel, and the fallback anywhere.

One strip of block rows at a time is written out densely, multiplied with torch's own dense product, and thrown away.
This is exact for every block size, needs no compiler and at most an eighth of the dense weight's memory at a time; it
saves memory and no time. Measured on two cores, this was faster than gathering inputs per block row or batched block
products at every size tried.

Names: x [T, in], dy [T, out], values [nnz, b, b], all of one floating dtype; T tokens.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ops.pattern import BlockIndex

NAME = "torch"
_STRIPS = 8
_MAX_STRIP_ROWS = 512


def forward(x: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None) -> Tensor:
    """Y = X W^T + bias: [T, out]."""
    y = x.new_empty(x.shape[0], index.grid[0] * values.shape[-1])
    for strip in strips(index, values.shape[-1]):
        weight = _dense_strip(values, index, strip)
        if bias is None:
            y[:, strip.outputs] = x @ weight.t()
        else:
            y[:, strip.outputs] = torch.addmm(bias[strip.outputs], x, weight.t())
    return y


def forward_gelu(
    x: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """GELU(X W^T + bias) [T, out] and its derivative there [T, out] (empty unless wanted)."""
    y = forward(x, values, index, bias)
    if not with_slope:
        return F.gelu(y), y.new_empty(0)
    return F.gelu(y), torch.ops.aten.gelu_backward(torch.ones_like(y), y)


def grad_input(dy: Tensor, values: Tensor, index: BlockIndex, slope: Tensor | None = None) -> Tensor:
    """dX = dY W, times `slope` [T, in] where there is one: [T, in]."""
    dx = dy.new_zeros(dy.shape[0], index.grid[1] * values.shape[-1])
    for strip in strips(index, values.shape[-1]):
        dx.addmm_(dy[:, strip.outputs], _dense_strip(values, index, strip))
    return dx if slope is None else dx.mul_(slope)


def grad_values(
    x: Tensor, dy: Tensor, index: BlockIndex, block_size: int, with_bias: bool = False
) -> tuple[Tensor, Tensor]:
    """dW at the existing blocks, [nnz, b, b] in slot order, and dY summed over tokens, [out] (empty unless wanted)."""
    gradient = x.new_zeros(index.rows.numel(), block_size, block_size)
    for strip in strips(index, block_size):
        blocks = dense_gradient_strip(x, dy, strip, block_size)
        gradient[strip.slots] = blocks[index.rows[strip.slots].long() - strip.first_row, index.cols[strip.slots].long()]
    return gradient, dy.sum(0) if with_bias else dy.new_empty(0)


class Strip(NamedTuple):
    """Some neighbouring block rows of a weight."""

    first_row: int  # block row
    n_rows: int  # block rows
    outputs: slice  # the strip's rows in elements
    slots: Tensor  # int64, the slots in the strip


def strips(index: BlockIndex, block_size: int, parts: int = 1) -> Iterator[Strip]:
    """Cut a weight into strips of at most an eighth of its rows, each inside one of `parts` equal parts."""
    n_rows = index.grid[0]
    step = max(1, min(n_rows // (_STRIPS * parts), _MAX_STRIP_ROWS // block_size))
    pointer = index.row_ptr.tolist()
    part_rows = n_rows // parts
    for part in range(parts):
        for row in range(part * part_rows, (part + 1) * part_rows, step):
            end = min(row + step, (part + 1) * part_rows)
            slots = index.row_slots[pointer[row] : pointer[end]].long()
            yield Strip(row, end - row, slice(row * block_size, end * block_size), slots)


def dense_gradient_strip(x: Tensor, dy: Tensor, strip: Strip, block_size: int) -> Tensor:
    """The dense gradient of one strip as blocks: [strip rows, C, b, b] (a view)."""
    gradient = dy[:, strip.outputs].t() @ x
    return gradient.view(strip.n_rows, block_size, -1, block_size).transpose(1, 2)


def _dense_strip(values: Tensor, index: BlockIndex, strip: Strip) -> Tensor:
    b = values.shape[-1]
    weight = values.new_zeros(strip.n_rows, b, index.grid[1], b)
    rows, cols = index.rows[strip.slots].long() - strip.first_row, index.cols[strip.slots].long()
    weight.transpose(1, 2)[rows, cols] = values[strip.slots]
    return weight.view(strip.n_rows * b, -1)
