"""Positions of blocks as a file has them: one small number a block, where a layer has two of 32 bits."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor

_GAPS = ".gaps"


def packed(state: Mapping[str, Tensor], columns: Mapping[str, int]) -> dict[str, Tensor]:
    """A state dict with `NAME.gaps` in the place of `NAME.rows` and `NAME.cols`, and blocks in row-major order.

    columns: block columns of the grid of each sparse layer, by name. gaps [nnz]: how many positions, row by row, a
    block comes after the one before it, the first after position -1; uint8 where all are below 256, else int16 or
    int32. At density 0.1 a gap of 256 has probability 0.9^256, 2e-12.
    """
    found = dict(state)
    for name, n_cols in columns.items():
        keys, order = (found.pop(f"{name}.rows").long() * n_cols + found.pop(f"{name}.cols").long()).sort()
        gaps = torch.diff(keys, prepend=keys.new_tensor([-1]))
        most = int(gaps.max()) if gaps.numel() else 0
        found[name + _GAPS] = gaps.to(torch.uint8 if most < 1 << 8 else torch.int16 if most < 1 << 15 else torch.int32)
        found[f"{name}.values"] = found[f"{name}.values"][order]
    return found


def unpacked(state: Mapping[str, Tensor], columns: Mapping[str, int]) -> dict[str, Tensor]:
    """The state dict that `packed` was made from, blocks in row-major order; one with rows and cols stays as it is."""
    found = dict(state)
    for name, n_cols in columns.items():
        if name + _GAPS in found:
            keys = found.pop(name + _GAPS).long().cumsum(0) - 1
            found[f"{name}.rows"], found[f"{name}.cols"] = (keys // n_cols).int(), (keys % n_cols).int()
    return found
