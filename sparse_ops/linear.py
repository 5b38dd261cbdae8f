"""BlockSparseLinear: a linear layer whose weight exists only at its blocks, and whose blocks can be re-allocated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_ops.functional import block_linear
from sparse_ops.pattern import BlockIndex, BlockPattern


class BlockSparseLinear(nn.Module):
    """y = x W^T + bias with W [out, in] held as `values` [nnz, b, b], one block per slot.

    Slots are fixed for the layer's life: `reallocate` moves some to other positions in place, so that no tensor changes
    shape and no parameter is replaced. `rows` and `cols` int32 [nnz] are in the state dict; the kernel index is
    rebuilt when they change. Values and bias [out] start as float32 zeros. kernel: as in `block_linear`.
    Raises ValueError, as BlockPattern does, when a state dict holds positions that a pattern cannot have.
    """

    rows: Tensor
    cols: Tensor

    def __init__(self, pattern: BlockPattern, bias: bool = True, kernel: str = "auto") -> None:
        super().__init__()
        self.out_features, self.in_features = pattern.shape
        self.block_size, self.segments, self.kernel = pattern.block_size, pattern.segments, kernel
        b = pattern.block_size
        self.values = nn.Parameter(torch.zeros(pattern.nnz, b, b))
        self.bias = nn.Parameter(torch.zeros(self.out_features)) if bias else None
        self.register_buffer("rows", pattern.rows.clone())
        self.register_buffer("cols", pattern.cols.clone())
        for name, tensor in zip(BlockIndex._fields[2:], pattern.index()[2:]):
            self.register_buffer(name, tensor, persistent=False)
        self.register_load_state_dict_post_hook(_refresh_after_load)

    @property
    def pattern(self) -> BlockPattern:
        """The present positions (a copy that later updates do not change)."""
        rows, cols = self.rows.cpu().clone(), self.cols.cpu().clone()
        return BlockPattern((self.out_features, self.in_features), self.block_size, rows, cols, self.segments)

    @property
    def index(self) -> BlockIndex:
        """The kernel index of the present positions."""
        return BlockIndex(*(getattr(self, name) for name in BlockIndex._fields))

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """x [*, in] -> [*, out]; with `gelu` the GELU of it, made as results are written. Errors of `block_linear`."""
        return block_linear(x, self.values, self.index, self.bias, self.kernel, gelu)

    @torch.no_grad()
    def reallocate(self, slots: Tensor, rows: Tensor, cols: Tensor) -> None:
        """Move `slots` to the block positions (rows, cols), integers [n] each, and zero their values, in place.

        Raises ValueError, and changes nothing, when a position is taken or lies outside the slot's segment.
        """
        pattern = self.pattern
        before = pattern.slot_segments()[slots]
        pattern.rows[slots], pattern.cols[slots] = rows.int(), cols.int()
        moved = BlockPattern(pattern.shape, pattern.block_size, pattern.rows, pattern.cols, pattern.segments)
        if not torch.equal(moved.slot_segments()[slots], before):
            raise ValueError("reallocate: expected every slot to stay in its segment, found one that leaves it")
        self._place(moved)
        self.values[slots] = 0.0

    @torch.no_grad()
    def _place(self, pattern: BlockPattern) -> None:
        for name, tensor in zip(BlockIndex._fields, pattern.index()):
            getattr(self, name).copy_(tensor)

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """The dense weight [out, in] of the values' dtype; for export and tests, never while training."""
        n_rows, n_cols = self.index.grid
        dense = self.values.new_zeros(n_rows, n_cols, self.block_size, self.block_size)
        dense[self.rows.long(), self.cols.long()] = self.values
        return dense.transpose(1, 2).reshape(self.out_features, self.in_features)

    @torch.no_grad()
    def from_dense(self, weight: Tensor) -> None:
        """Take the values at this layer's blocks from a dense weight [out, in]; what lies elsewhere is left out.

        Raises ValueError when the weight has another shape.
        """
        if tuple(weight.shape) != (self.out_features, self.in_features):
            raise ValueError(f"weight: expected [{self.out_features}, {self.in_features}], found {list(weight.shape)}")
        b = self.block_size
        blocks = weight.reshape(self.out_features // b, b, self.in_features // b, b).transpose(1, 2)
        self.values.copy_(blocks[self.rows.long(), self.cols.long()])

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, block_size={self.block_size}, "
            f"blocks={self.values.shape[0]}, segments={self.segments}, bias={self.bias is not None}"
        )


def _refresh_after_load(layer: Any, incompatible_keys: Any) -> None:
    layer._place(layer.pattern)
