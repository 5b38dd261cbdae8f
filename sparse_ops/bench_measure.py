"""Time functions against each other on a machine that others use too: alternating, with preempted samples discarded."""

from __future__ import annotations

import statistics
import time
from typing import Callable, NamedTuple

try:
    import resource
except ImportError:  # no such counter here: nothing is discarded
    resource = None  # type: ignore[assignment]


class Timing(NamedTuple):
    """Seconds per call from the samples that were kept."""

    median: float
    best: float
    spread: float  # third quartile over first, 1.0 is perfectly steady
    kept: int  # samples without an involuntary context switch
    taken: int


class _Samples:
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.preempted: list[bool] = []

    def timing(self) -> Timing:
        kept = [s for s, bad in zip(self.seconds, self.preempted) if not bad]
        used = sorted(kept if len(kept) >= 2 else self.seconds)
        first, third = used[len(used) // 4], used[(3 * len(used)) // 4]
        return Timing(statistics.median(used), used[0], third / first, len(kept), len(self.seconds))


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def alternate(functions: dict[str, Callable[[], object]], rounds: int, patience: float) -> dict[str, Timing]:
    """Call every function once per round for `rounds` rounds, after one call to warm up; slow ones less often.

    A function that has used `patience` seconds and has three samples sits the other rounds out. A sample during which
    the system took a core from this process is discarded, unless hardly any other is left.
    """
    samples = {name: _Samples() for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            taken = samples[name]
            if len(taken.seconds) >= 3 and sum(taken.seconds) > patience:
                continue
            before, start = _switches(), time.perf_counter()
            function()
            taken.seconds.append(time.perf_counter() - start)
            taken.preempted.append(_switches() != before)
    return {name: taken.timing() for name, taken in samples.items()}
