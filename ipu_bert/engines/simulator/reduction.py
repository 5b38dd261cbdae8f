"""How gradients of micro-batches and replicas become one: PopART's accumulator and its reduction over replicas."""

from __future__ import annotations

from typing import Dict

import torch
from torch import Tensor

from ipu_bert.engines.simulator.arithmetic import Rounding
from ipu_bert.engines.simulator.options import ReductionType

Gradients = Dict[str, Tensor]  # by parameter, float32; where accumulators are half, the values of halves


class GradientReduction:
    """Sum or mean over micro-batches, then over replicas; `half`: accumulators are float16 and every result is rounded.

    A mean in float16 is a running one (PopTorch sets MeanReductionStrategy.Running for such accumulators), so it is
    never larger than a micro-batch's gradient; in float32 the sum is divided at the end (Post).
    """

    def __init__(self, reduction: ReductionType, half: bool, rounding: Rounding) -> None:
        self._mean, self._half, self._rounding = reduction is ReductionType.Mean, half, rounding

    @torch.no_grad()
    def accumulate(self, total: Gradients, gradients: Gradients, done: int) -> None:
        """Add a micro-batch's gradients to those of the `done` before it, in place."""
        if not total:
            total.update({name: gradient.clone() for name, gradient in gradients.items()})
        else:
            sums, added = list(total.values()), list(gradients.values())
            running = self._mean and self._half
            if running:
                torch._foreach_mul_(sums, done)
            torch._foreach_add_(sums, added)
            if running:
                torch._foreach_div_(sums, done + 1)
        self._round(total)

    @torch.no_grad()
    def over_replicas(self, replicas: list[Gradients], micro_batches: int) -> Gradients:
        """One gradient of all replicas', each accumulated over `micro_batches`."""
        reduced = {}
        for name in replicas[0]:
            gradient = torch.stack([each[name] for each in replicas]).sum(0)
            if self._mean:
                gradient = gradient / (len(replicas) * (1 if self._half else micro_batches))
            reduced[name] = gradient
        self._round(reduced)
        return reduced

    def _round(self, gradients: Gradients) -> None:
        if self._half:
            for name, gradient in gradients.items():
                gradients[name] = self._rounding.in_place(gradient)
