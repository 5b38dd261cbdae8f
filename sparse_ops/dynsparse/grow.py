"""Growth rules: where the blocks that were pruned are put. A rule is one function, registered by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from sparse_ops.pattern import free_positions, sample_distinct
from sparse_ops.registry import Registry


class FreePositions:
    """The places of one weight segment that a block may be put on, numbered in row-major order; never listed."""

    def __init__(self, taken: Tensor, positions: int) -> None:
        """taken: sorted unique int64 positions that are not free; positions: size of the segment's block grid."""
        self._taken, self._positions = taken, positions

    def __len__(self) -> int:
        return self._positions - self._taken.numel()

    def at(self, ranks: Tensor) -> Tensor:
        """The free positions of the given ranks in [0, len(self)); int64 [n]."""
        return free_positions(self._taken, ranks)

    def contains(self, positions: Tensor) -> Tensor:
        """Whether each position is free; bool [n]."""
        return ~torch.isin(positions, self._taken)


@dataclass(frozen=True)
class GrowContext:
    """What a growth rule may use besides the free positions."""

    generator: torch.Generator
    candidates: Tensor | None  # int64 [n]: positions with the largest dense gradient, if the rule needs them
    gradient_norms: Tensor | None  # float32 [n]: the block norm of the dense gradient at each candidate


Grow = Callable[[FreePositions, int, GrowContext], Tensor]


@dataclass(frozen=True)
class GrowRule:
    """A growth rule as registered."""

    grow: Grow
    needs_gradient: bool  # whether its context is to have `candidates` and `gradient_norms`


GROW_RULES: Registry[GrowRule] = Registry("growth rule")


def register(name: str, needs_gradient: bool = False) -> Callable[[Grow], Grow]:
    """Decorator: the function below is the growth rule `sparsity.growth: name`."""

    def add(grow: Grow) -> Grow:
        GROW_RULES.register(name)(GrowRule(grow, needs_gradient))
        return grow

    return add


@register("random")
def grow_random(free: FreePositions, count: int, context: GrowContext) -> Tensor:
    """`count` free positions, every subset equally likely: the paper's rule; int64 [count]."""
    return free.at(sample_distinct(len(free), count, context.generator))


@register("gradient", needs_gradient=True)
def grow_gradient(free: FreePositions, count: int, context: GrowContext) -> Tensor:
    """The `count` free positions with the largest block norm of the dense gradient (RigL); int64 [count]."""
    assert context.candidates is not None
    assert context.gradient_norms is not None
    allowed = free.contains(context.candidates)
    positions, norms = context.candidates[allowed], context.gradient_norms[allowed]
    return positions[norms.topk(count).indices]
