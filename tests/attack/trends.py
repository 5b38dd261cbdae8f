"""Whether a noisy series grows: a robust slope, and how sure it is."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Sequence

POINTS = 240  # of a series, at most: there are so many pairs of them
Z = 2.6  # two-sided 99 %


@dataclass(frozen=True)
class Trend:
    """A series by Theil and Sen: the median slope of all pairs of points, and its 99 % interval after Kendall.

    level: median. growth, low, high: over the time from first to last point. allowed: growth that counts as none, since
    it could go on for the time watched without anybody noticing.
    """

    level: float
    growth: float
    low: float
    high: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Does not grow, or not surely, or not by what is worth a word."""
        return self.low <= 0.0 or self.growth <= self.allowed


def trend(times: Sequence[float], values: Sequence[float], allowed: float) -> Trend:
    """The trend of at least three points; means of neighbours where there are more than POINTS."""
    size = math.ceil(len(times) / POINTS)
    points = [
        (statistics.fmean(times[i : i + size]), statistics.fmean(values[i : i + size]))
        for i in range(0, len(times), size)
    ]
    slopes = sorted((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in itertools.combinations(points, 2) if x2 > x1)
    count, span = len(points), times[-1] - times[0]
    spread = Z * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)  # of Kendall's score
    low, high = ((len(slopes) - spread) / 2, (len(slopes) + spread) / 2)
    ends = (slopes[max(0, math.floor(low))], slopes[min(len(slopes) - 1, math.ceil(high))])
    return Trend(statistics.median(values), statistics.median(slopes) * span, ends[0] * span, ends[1] * span, allowed)
