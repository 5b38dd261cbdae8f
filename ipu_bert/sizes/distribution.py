"""Which encoder weights are sparse, and how sparse each one is."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Protocol, Sequence, TypeVar

DISTRIBUTIONS = ("uniform", "erdos_renyi_kernel")


class Weight(Protocol):
    """What a distribution goes by: see EncoderWeight."""

    @property
    def name(self) -> str:
        """As in the model."""

    @property
    def size(self) -> int:
        """Elements if dense."""

    @property
    def segment_shape(self) -> tuple[int, int]:
        """(out, in) of one segment."""


AnyWeight = TypeVar("AnyWeight", bound=Weight)


def match_weights(weights: Sequence[AnyWeight], patterns: Sequence[str]) -> list[AnyWeight]:
    """Weights whose name matches any shell pattern (`*`, `?`, `[..]`) of `patterns`, in their own order.

    Raises ValueError for a pattern that matches no weight, and where there is no pattern at all.
    """
    if not patterns:
        raise ValueError("sparse layers: expected at least one name pattern, found an empty list")
    for pattern in patterns:
        if not any(fnmatchcase(weight.name, pattern) for weight in weights):
            names = ", ".join(weight.name for weight in weights[:4])
            raise ValueError(f"sparse layers: pattern {pattern!r} matches no encoder weight; names look like {names}")
    return [weight for weight in weights if any(fnmatchcase(weight.name, pattern) for pattern in patterns)]


def sparsity_by_weight(
    weights: Sequence[Weight], sparsity: float, distribution: str, patterns: Sequence[str]
) -> dict[str, float]:
    """Sparsity of every weight that `patterns` names; weights left out of the answer are dense.

    `uniform` gives each weight the same sparsity (the paper, Section 2.1). `erdos_renyi_kernel` (RigL, Evci et al.
    2019, for linear layers) makes the density of a weight proportional to (in + out) / (in * out), scaled so that the
    weights together keep as many non-zeros as `uniform` would; a weight whose density would pass 1 becomes dense
    (sparsity 0.0) and the scale is solved again for the others. A segment counts with its own shape.
    Raises ValueError for a sparsity outside [0, 1), an unknown distribution, and a pattern that matches nothing.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must be in [0, 1), found {sparsity}")
    chosen = match_weights(weights, patterns)
    if distribution == "uniform":
        return {weight.name: sparsity for weight in chosen}
    if distribution == "erdos_renyi_kernel":
        return _erdos_renyi_kernel(chosen, sparsity)
    raise ValueError(f"sparsity distribution: expected one of {', '.join(DISTRIBUTIONS)}, found {distribution!r}")


def _erdos_renyi_kernel(weights: Sequence[Weight], sparsity: float) -> dict[str, float]:
    budget = (1.0 - sparsity) * sum(weight.size for weight in weights)
    # density = scale * ratio, so a weight's non-zeros are scale * ratio * size.
    ratio = {
        weight.name: sum(weight.segment_shape) / (weight.segment_shape[0] * weight.segment_shape[1])
        for weight in weights
    }
    size = {weight.name: weight.size for weight in weights}
    free = list(ratio)
    full: list[str] = []
    scale = 0.0
    while free:
        left = budget - sum(size[name] for name in full)
        scale = left / sum(ratio[name] * size[name] for name in free)
        # The margin keeps rounding from turning a density of exactly 1 (sparsity 0 asked for) into one above it.
        over = [name for name in free if scale * ratio[name] > 1.0 - 1e-12]
        if not over:
            break
        full += over
        free = [name for name in free if name not in over]
    return {name: 0.0 if name in full else 1.0 - scale * ratio[name] for name in ratio}
