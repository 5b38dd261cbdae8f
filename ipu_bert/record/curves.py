"""What the pictures of a run are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np


@dataclass(frozen=True)
class LossCurve:
    """Losses [nats] over training steps, one entry each; None or NaN leaves a gap.

    other_words: of masked LM with other words around; empty where there is none.
    """

    steps: Sequence[int]
    mlm: Sequence[float | None]
    nsp: Sequence[float | None]
    other_words: Sequence[float | None] = ()


@dataclass(frozen=True)
class UpdateCurves:
    """What pattern updates did, one entry each; all but their numbers are shares in [0, 1], None leaves a gap.

    `moved`: of all blocks, which is what the pruning ratio asked for as far as there were free places. `layer_low` and
    `layer_high` are the explored DOF of the least and the most explored layer; empty where not known.
    """

    updates: Sequence[int]
    moved: Sequence[float | None]
    explored_dof: Sequence[float | None]
    removed_new: Sequence[float | None]
    layer_low: Sequence[float]
    layer_high: Sequence[float]


@dataclass(frozen=True)
class PatternChange:
    """Block positions of one weight when training began and when it ended, after `end_step`; each array is int [nnz].

    `grid` is (block rows, block columns) of the whole weight; `segment_names` label equal bands of block rows from the
    top ("query", "key", "value" of the fused weight) and are empty for an ordinary weight. Raises ValueError that names
    the layer for positions that do not fit the grid.
    """

    layer: str
    grid: tuple[int, int]
    block_size: int
    start_rows: Any
    start_cols: Any
    end_rows: Any
    end_cols: Any
    segment_names: Sequence[str]
    end_step: int

    def __post_init__(self) -> None:
        rows, cols = self.grid
        for when in ("start", "end"):
            r, c = self.positions(when)
            if r.shape != c.shape or r.ndim != 1:
                found = f"rows {r.shape} and columns {c.shape}"
                raise ValueError(f"{self.layer} at the {when}: expected two [nnz] arrays, found {found}")
            if r.size and (r.min() < 0 or c.min() < 0 or r.max() >= rows or c.max() >= cols):
                raise ValueError(f"{self.layer} at the {when}: a block lies outside the {rows} x {cols} block grid")
        if self.segment_names and rows % len(self.segment_names):
            raise ValueError(f"{self.layer}: {len(self.segment_names)} segments do not divide {rows} block rows")

    def positions(self, when: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows, cols), int64 [nnz], at the "start" or the "end"."""
        rows, cols = getattr(self, f"{when}_rows"), getattr(self, f"{when}_cols")
        return np.asarray(rows, dtype=np.int64), np.asarray(cols, dtype=np.int64)

    def occupied(self, when: str) -> np.ndarray:
        """bool [block rows, block columns]: where a block is."""
        grid = np.zeros(self.grid, dtype=bool)
        grid[self.positions(when)] = True
        return grid
