"""Positions of blocks as a file has them: about one byte a block, where a layer has two numbers of 32 bits."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor

_STEPS = ".steps"
_ON = 255  # goes on by so many positions, where no block is


def packed(state: Mapping[str, Tensor], columns: Mapping[str, int]) -> dict[str, Tensor]:
    """A state dict with `NAME.steps` in the place of `NAME.rows` and `NAME.cols`, where slots are in row-major order.

    A layer whose slots are in another order, as after moves, keeps its rows and cols: an optimizer's moments in a file
    of their own go by slot, and would meet other blocks. columns: block columns of the grid of each sparse layer, by
    name. steps uint8: how many positions, row by row, a block comes after the one before it, the first after position
    -1; every 255 before that stands for 255 positions more. That is 1 + 1 / (255 density) bytes a block or less: 1.04
    at density 0.1.
    """
    found = dict(state)
    for name, n_cols in columns.items():
        keys = _keys(found, name, n_cols)
        gaps = torch.diff(keys, prepend=keys.new_tensor([-1]))
        if bool((gaps < 1).any()):
            continue
        last = (gaps // _ON + 1).cumsum(0) - 1
        steps = torch.full((int(last[-1]) + 1,), _ON, dtype=torch.uint8)
        steps[last] = (gaps % _ON).to(torch.uint8)
        found[name + _STEPS] = steps
        del found[f"{name}.rows"], found[f"{name}.cols"]
    return found


def row_major(state: Mapping[str, Tensor], columns: Mapping[str, int]) -> dict[str, Tensor]:
    """A state dict of the same matrices with the slots of each layer in row-major order; columns as of `packed`."""
    found = dict(state)
    for name, n_cols in columns.items():
        order = _keys(found, name, n_cols).argsort()
        found.update({f"{name}.{key}": found[f"{name}.{key}"][order] for key in ("rows", "cols", "values")})
    return found


def _keys(state: Mapping[str, Tensor], name: str, n_cols: int) -> Tensor:
    """Row-major positions of a layer's slots, int64 [nnz]."""
    return state[f"{name}.rows"].long() * n_cols + state[f"{name}.cols"].long()


def unpacked(state: Mapping[str, Tensor], columns: Mapping[str, int]) -> dict[str, Tensor]:
    """The state dict that `packed` was made from, slots in its order; a layer with rows and cols stays as it is.

    Raises ValueError for steps that are no uint8 [n], and where there are rows or cols beside them.
    """
    found = dict(state)
    for name, n_cols in columns.items():
        if name + _STEPS in found:
            steps = found.pop(name + _STEPS)
            if steps.dtype != torch.uint8 or steps.dim() != 1:
                raise ValueError(f"{name}{_STEPS}: expected uint8 [n], found {steps.dtype} {list(steps.shape)}")
            if f"{name}.rows" in found or f"{name}.cols" in found:
                raise ValueError(f"{name}: expected steps, or rows and cols, found both")
            keys = steps.long().cumsum(0)[steps != _ON] - 1
            found[f"{name}.rows"], found[f"{name}.cols"] = (keys // n_cols).int(), (keys % n_cols).int()
    return found
