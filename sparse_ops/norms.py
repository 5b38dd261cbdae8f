"""Importance of blocks: norms of the weights (Eq. 1), and the dense gradient's largest blocks without forming it."""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from sparse_ops.pattern import BlockPattern
from sparse_ops.reference import Strip
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


class LargestBlocks:
    """The `count` free positions of each segment where a dense gradient has the largest block norm.

    This is what gradient growth (RigL) needs. The gradient is given strip by strip, and only the best candidates are
    kept: memory is a strip plus O(count + nnz), with 1x1 blocks too.
    """

    def __init__(self, pattern: BlockPattern, count: int, norm: BlockNorm) -> None:
        self._count, self._norm, self._grid = count, norm, pattern.grid
        self._rows, self._cols = pattern.rows.long(), pattern.cols.long()
        self._segment_rows = pattern.grid[0] // pattern.segments
        self._active = torch.zeros(pattern.nnz)
        self._best = [torch.empty(0) for _ in range(pattern.segments)]
        self._keys = [torch.empty(0, dtype=torch.int64) for _ in range(pattern.segments)]

    def add(self, strip: Strip, blocks: Tensor) -> None:
        """Take one strip of the gradient into account, each once: [strip rows, C, b, b], float32 or float64."""
        n_cols = self._grid[1]
        norms = self._norm(blocks)
        self._active = self._active.to(norms.dtype)
        rows, cols = self._rows[strip.slots] - strip.first_row, self._cols[strip.slots]
        self._active[strip.slots] = norms[rows, cols]
        norms[rows, cols] = -1.0  # below every norm: taken positions are no candidates
        segment = strip.first_row // self._segment_rows
        candidates = torch.cat([self._best[segment], norms.flatten()])
        strip_keys = torch.arange(strip.n_rows * n_cols) + strip.first_row * n_cols
        candidate_keys = torch.cat([self._keys[segment], strip_keys])
        top = candidates.topk(min(self._count, candidates.numel())).indices
        top = top[candidates[top] >= 0]
        self._best[segment], self._keys[segment] = candidates[top], candidate_keys[top]

    def found(self) -> GradientBlocks:
        """The best of the strips so far."""
        keys, n_cols = torch.cat(self._keys), self._grid[1]
        return GradientBlocks(keys // n_cols, keys % n_cols, torch.cat(self._best), self._active)
