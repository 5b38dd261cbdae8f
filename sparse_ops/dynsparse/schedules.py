"""Pruning-ratio schedules: progress in [0, 1] of the update period -> share of the first pruning ratio, in [0, 1].

A schedule is one function, registered by name.
"""

from __future__ import annotations

import math
from typing import Callable

from sparse_ops.registry import Registry

Schedule = Callable[[float], float]
SCHEDULES: Registry[Schedule] = Registry("pruning schedule")
register = SCHEDULES.register  # makes a schedule known as `sparsity.schedule: name`


@register("cosine")
def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (Section 2.1)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


@register("linear")
def linear(progress: float) -> float:
    """From 1 to 0 along a line."""
    return 1.0 - progress


@register("constant")
def constant(progress: float) -> float:
    """Always 1."""
    return 1.0
