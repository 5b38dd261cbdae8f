"""Means and differences over seeds, and how sure they are."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Sequence

from scipy import stats

CLEAR = 0.05  # of equal models so many differences are told apart by chance


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
    p: how often models that are equal would differ as much, by Student's distribution, which knows that an error of few
    seeds is itself uncertain: beyond twice the standard error are 18 % of three seeds' differences; None without error.
    """

    value: float
    error: float | None
    paired: bool
    p: float | None

    @property
    def clear(self) -> bool:
        """Whether chance alone makes so large a difference in fewer than one of twenty cases."""
        return self.p is not None and self.p < CLEAR

    def __str__(self) -> str:
        return f"{self.value:+.4f}" + (f" ± {self.error:.4f}" if self.error is not None else "")


def difference(first: dict[str, float], second: dict[str, float]) -> Difference:
    """Of the values by seed: paired where both have the same seeds, else Welch's standard error."""
    if first.keys() == second.keys():
        paired = mean([first[seed] - second[seed] for seed in first])
        return Difference(paired.value, paired.error, True, _p(paired.value, paired.error, paired.count - 1))
    a, b = mean(list(first.values())), mean(list(second.values()))
    if a.error is None or b.error is None:
        return Difference(a.value - b.value, None, False, None)
    error = math.hypot(a.error, b.error)
    # Welch and Satterthwaite's.
    freedom = 1 / sum((one.error / error) ** 4 / (one.count - 1) for one in (a, b) if one.error) if error else 1.0
    return Difference(a.value - b.value, error, False, _p(a.value - b.value, error, freedom))


def _p(value: float, error: float | None, freedom: float) -> float | None:
    """Of both sides. Without any spread nothing is left to chance."""
    if error is None:
        return None
    return float(2 * stats.t.sf(abs(value) / error, freedom)) if error else float(not value)
