"""What pattern updates did to a layer: explored positions, age of blocks, new blocks removed again (Section 3.1)."""

from __future__ import annotations

from typing import Mapping

import numpy as np
import torch
from torch import Tensor

from sparse_ops.pattern import BlockPattern

_BITS_SET = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint8)  # of each byte


class LayerHistory:
    """The record of one sparse weight; small next to the weight: a bit per block position and an int per slot."""

    def __init__(self, pattern: BlockPattern) -> None:
        self.positions = pattern.grid[0] * pattern.grid[1]
        self.bitmap = torch.zeros((self.positions + 7) // 8, dtype=torch.uint8)  # a set bit: was active at any time
        self.born = torch.zeros(pattern.nnz, dtype=torch.int32)  # the step after which each slot's block was put there
        self.added = 0  # blocks put down by the last update
        self._mark(pattern.keys())

    @property
    def explored_dof(self) -> float:
        """Share of the dense tensor's positions that were active at any time: the paper's ratio of DOF covered."""
        return int(_BITS_SET[self.bitmap.numpy()].sum(dtype=np.int64)) / self.positions

    def record(self, slots: Tensor, keys: Tensor, step: int, previous_step: int) -> float | None:
        """Enter that `slots` moved to positions `keys` after `step`.

        Returns the share of the previous update's new blocks that this one removed, None where there are none.
        """
        again = int((self.born[slots] == previous_step).sum())
        removed_new = again / self.added if self.added else None
        self._mark(keys)
        self.born[slots] = step
        self.added = slots.numel()
        return removed_new

    def mean_age(self, step: int) -> float:
        """Mean number of steps since the present blocks were put down."""
        return float((step - self.born).double().mean())

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that resuming needs."""
        return {"bitmap": self.bitmap, "born": self.born, "added": torch.tensor(self.added)}

    def check(self, state: Mapping[str, Tensor], last: int) -> None:
        """ValueError when a state is of a layer of another size, or has a block put down after `last`, or before 0."""
        for name, mine in self.state_dict().items():
            found = state.get(name)
            if found is None or found.shape != mine.shape or found.dtype != mine.dtype:
                what = "no such tensor" if found is None else f"{found.dtype} {list(found.shape)}"
                raise ValueError(f"{name}: expected {mine.dtype} {list(mine.shape)}, found {what}")
        for name, most in (("born", last), ("added", self.born.numel())):
            low, high = int(state[name].min()), int(state[name].max())
            if low < 0 or high > most:
                raise ValueError(f"{name}: expected whole numbers of 0 to {most}, found {low} to {high}")

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that `check` allows."""
        self.bitmap.copy_(state["bitmap"])
        self.born.copy_(state["born"])
        self.added = int(state["added"])

    def _mark(self, keys: Tensor) -> None:
        positions = keys.numpy()
        np.bitwise_or.at(self.bitmap.numpy(), positions >> 3, np.uint8(128) >> (positions & 7).astype(np.uint8))
