"""Importance of blocks: norms of the weights (Eq. 1), and the dense gradient's largest blocks without forming it."""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from sparse_ops.pattern import BlockPattern
from sparse_ops.reference import dense_gradient_strip, strips
from sparse_ops.registry import Registry

BlockNorm = Callable[[Tensor], Tensor]  # values [..., b, b] -> [...] of `norm_dtype(values.dtype)`, never negative
NORMS: Registry[BlockNorm] = Registry("block norm")
register = NORMS.register  # makes a norm known by name


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """What norms of this dtype's numbers are computed in and kept as: float64 of float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def block_norm(values: Tensor, p: float) -> Tensor:
    """L^p norm of each block (Eq. 1). values [..., b, b], floating -> [...], float64 of float64 and else float32.

    Raises ValueError for another p than 1, 2 and inf.
    """
    if p not in (1.0, 2.0, math.inf):
        raise ValueError(f"block norm: expected p = 1, 2 or inf, found {p}")
    return torch.linalg.vector_norm(values, ord=p, dim=(-2, -1), dtype=norm_dtype(values.dtype))


@register("l1")
def l1(values: Tensor) -> Tensor:
    """Sum of magnitudes, the paper's choice: values [..., b, b] -> [...], as `block_norm`."""
    return block_norm(values, 1.0)


@register("l2")
def l2(values: Tensor) -> Tensor:
    """Root of the sum of squares: values [..., b, b] -> [...], as `block_norm`."""
    return block_norm(values, 2.0)


@register("linf")
def linf(values: Tensor) -> Tensor:
    """Largest magnitude: values [..., b, b] -> [...], as `block_norm`."""
    return block_norm(values, math.inf)


class GradientBlocks(NamedTuple):
    """The free positions with the largest dense gradient, and the gradient's norm at every block that exists."""

    rows: Tensor  # int64 [n], block row
    cols: Tensor  # int64 [n], block column
    norms: Tensor  # [n], float32, or float64 where the activations are
    active: Tensor  # [nnz] of that dtype, in slot order


def largest_gradient_blocks(
    x: Tensor, dy: Tensor, pattern: BlockPattern, count: int, norm: BlockNorm
) -> GradientBlocks:
    """The `count` free positions of each segment where the dense gradient dY^T X has the largest block norm.

    x [T, in] and dy [T, out] are float32 or float64. This is what gradient growth (RigL) needs. The dense gradient is
    computed strip by strip and only the best candidates are kept: memory is a strip plus O(count + nnz), with 1x1
    blocks too.
    """
    b, index = pattern.block_size, pattern.index()
    dtype = norm_dtype(x.dtype)
    active = torch.zeros(pattern.nnz, dtype=dtype)
    best = [torch.empty(0, dtype=dtype) for _ in range(pattern.segments)]
    keys = [torch.empty(0, dtype=torch.int64) for _ in range(pattern.segments)]
    n_cols = pattern.grid[1]
    segment_rows = pattern.grid[0] // pattern.segments
    for strip in strips(index, b, pattern.segments):
        norms = norm(dense_gradient_strip(x, dy, strip, b))
        rows, cols = index.rows[strip.slots].long() - strip.first_row, index.cols[strip.slots].long()
        active[strip.slots] = norms[rows, cols]
        norms[rows, cols] = -1.0  # below every norm: taken positions are no candidates
        segment = strip.first_row // segment_rows
        candidates = torch.cat([best[segment], norms.flatten()])
        strip_keys = torch.arange(strip.n_rows * n_cols) + strip.first_row * n_cols
        candidate_keys = torch.cat([keys[segment], strip_keys])
        top = candidates.topk(min(count, candidates.numel())).indices
        top = top[candidates[top] >= 0]
        best[segment], keys[segment] = candidates[top], candidate_keys[top]
    found = torch.cat(keys)
    return GradientBlocks(found // n_cols, found % n_cols, torch.cat(best), active)
