"""Means and differences over seeds, and how sure they are."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Sequence

CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Mean:
    """Mean of some seeds. error: its standard error, None for a single one; spread: least and largest."""

    value: float
    error: float | None
    count: int
    spread: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.value:.4f}" + (f" ± {self.error:.4f}" if self.error is not None else "")


def mean(values: Sequence[float]) -> Mean:
    """Raises ValueError without values."""
    if not values:
        raise ValueError("mean: expected at least one value, found none")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(statistics.fmean(values), error, len(values), (min(values), max(values)))


@dataclass(frozen=True)
class Difference:
    """Of two means, first minus second. error: standard error of it, None where one of them has one seed.

    paired: by equal seeds, whose runs share their batches and starting weights, rather than of two independent samples.
    """

    value: float
    error: float | None
    paired: bool

    @property
    def clear(self) -> bool:
        """Beyond twice its standard error."""
        return self.error is not None and abs(self.value) > CLEAR * self.error

    def __str__(self) -> str:
        return f"{self.value:+.4f}" + (f" ± {self.error:.4f}" if self.error is not None else "")


def difference(first: dict[str, float], second: dict[str, float]) -> Difference:
    """Of the values by seed: paired where both have the same seeds, else Welch's standard error."""
    if first.keys() == second.keys():
        paired = mean([first[seed] - second[seed] for seed in first])
        return Difference(paired.value, paired.error, True)
    a, b = mean(list(first.values())), mean(list(second.values()))
    error = None if a.error is None or b.error is None else math.hypot(a.error, b.error)
    return Difference(a.value - b.value, error, False)
