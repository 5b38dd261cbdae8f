"""PopART's automatic loss scaling: half the scale where float16 gradients are near their limit, else double it."""

from __future__ import annotations

from typing import Iterable

from torch import Tensor

EDGE = 0.125 * 65504.0  # binEdgeLocation, a share of the largest half (sessionoptions.hpp 104, 3.4)
MOST_ABOVE = 1e-7  # thresholdUpperCountProportion, of all elements (sessionoptions.hpp 111)


class AutomaticLossScale:
    """Counts large elements over the micro-batches of a step. PopART looks at all gradients, this at the parameters'.

    Where `enabled` is false the factor is 1.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled, self._above, self._all = enabled, 0, 0

    def count(self, gradients: Iterable[Tensor]) -> None:
        """Note a micro-batch's float16 gradients (of any dtype), which still have the scale."""
        if not self._enabled:
            return
        for gradient in gradients:
            self._above += int((gradient.abs() > EDGE).sum() + gradient.isnan().sum())
            self._all += gradient.numel()

    def factor(self) -> float:
        """What the scale of the next step is this one's times; counting begins anew."""
        if not self._enabled:
            return 1.0
        above, everything, self._above, self._all = self._above, self._all, 0, 0
        return 0.5 if above > MOST_ABOVE * everything else 2.0
