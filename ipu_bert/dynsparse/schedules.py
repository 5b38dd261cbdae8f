"""Pruning-ratio schedules: progress in [0, 1] of the update period -> share of the first pruning ratio, in [0, 1]."""

from __future__ import annotations

import math
from typing import Callable

Schedule = Callable[[float], float]


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (Section 2.1)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """From 1 to 0 along a line."""
    return 1.0 - progress


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear, "constant": constant}
