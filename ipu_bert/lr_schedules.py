"""Learning-rate schedules: share in [0, 1] of the steps after warm-up that is left -> factor of the peak rate.

A schedule is one function, registered by name; it starts at 1, where the warm-up ends.
"""

from __future__ import annotations

from typing import Callable

from sparse_ops.registry import Registry

LrSchedule = Callable[[float], float]
LR_SCHEDULES: Registry[LrSchedule] = Registry("learning-rate schedule")
register = LR_SCHEDULES.register  # makes a schedule known as `optim.schedule: name`


@register("linear")
def linear(left: float) -> float:
    """From 1 to 0 along a line, as in the paper (Appendix A)."""
    return left


@register("constant")
def constant(left: float) -> float:
    """Always 1."""
    return 1.0


def with_warmup(schedule: LrSchedule, total_steps: int, warmup_steps: int) -> Callable[[int], float]:
    """Factor of the learning rate after so many steps done: linear warm-up, then `schedule` over the rest of the run.

    The first step runs at 1 / warmup_steps, and the first after the warm-up at schedule(1). The last one has
    1 / (total_steps - warmup_steps) left, and from `total_steps` on 0 is left.
    Raises ValueError when warmup_steps is outside [0, total_steps].
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps: expected 0 to {total_steps}, the steps of the run, found {warmup_steps}")

    def factor(done: int) -> float:
        if done < warmup_steps:
            return (done + 1) / warmup_steps
        return schedule((total_steps - done) / (total_steps - warmup_steps) if done < total_steps else 0.0)

    return factor
