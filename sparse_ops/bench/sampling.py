"""Timing on a machine that others use too: alternate what is compared, see which samples were disturbed, drop those.

Linux tells how long each of our threads was ready to run and had to wait, and how much time the host took from this
machine. Both come from counters that cost nothing while the code runs, and hold for samples of any length.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

# A sample counts as disturbed when its threads waited for a core for a larger share of it than this.
MAX_WAITING = 0.05
# This many samples count even where all were disturbed.
MINIMUM = 3
# Untimed calls before a rehearsed sample: as many as it takes until one maps no more pages anew than this, 5 ms work.
REHEARSALS = range(2, 5)
SETTLED = 1000


@dataclass(frozen=True)
class Sample:
    """One timed call: wall-clock seconds, the seconds its threads were kept waiting, and what the call returned."""

    seconds: float
    waited: float
    result: Any = None

    @property
    def waiting(self) -> float:
        """Time kept waiting as a share of the sample; above 1 when several threads waited at once."""
        return self.waited / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Summary:
    """Median, quartiles and least of the seconds of the samples that count.

    kept and discarded: numbers of samples. disturbed: too few samples were undisturbed, so the least disturbed ones
    had to do; waiting: the largest share of waiting among those that count.
    """

    seconds: float
    low: float
    high: float
    best: float
    kept: int
    discarded: int
    disturbed: bool
    waiting: float

    @property
    def kept_text(self) -> str:
        """How many samples count, how many do not, and a star where those that count were disturbed, too."""
        return f"{self.kept}-{self.discarded}{'*' if self.disturbed else ''}"


def seconds_waited() -> float:
    """Seconds so far that threads of this process waited for a core and the host ran something else; 0 if unknown."""
    waited = 0.0
    try:
        for thread in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
                    waited += int(file.read().split()[1]) * 1e-9
            except (OSError, IndexError):
                continue  # the thread has ended, or the kernel keeps no such count
        with open("/proc/stat", encoding="ascii") as file:
            waited += int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        pass
    return waited


def pages_mapped() -> int:
    """Pages so far that this process was given as it first touched them; 0 if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def rehearse(run: Callable[[], Any]) -> None:
    """Call it untimed until it finds its memory as it left it, some times at least and at most (REHEARSALS)."""
    for number in range(1, REHEARSALS.stop):
        before = pages_mapped()
        run()
        if number >= REHEARSALS.start and pages_mapped() - before <= SETTLED:
            return


def sample(run: Callable[[], Any]) -> Sample:
    """Run once, timed in seconds."""
    waited, start = seconds_waited(), time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    return Sample(seconds, max(0.0, seconds_waited() - waited), result)


def alternate(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int,
    patience: float = math.inf,
    minimum: int = MINIMUM,
    max_waiting: float = MAX_WAITING,
    rehearsed: bool = False,
) -> dict[str, list[Sample]]:
    """Call every run once to warm up, then time each once per round, in turn, for at most twice `repeats` rounds.

    rehearsed: each run is rehearsed before each of its samples, in place of the warm-up. For steps of large models: in
    turn with others the first steps find their part of the heap taken and have pages mapped anew, 0.9 s of system time
    for BERT-Base, which a run that makes one step after the other does not pay.

    A run sits the other rounds out once it has `repeats` undisturbed samples, or `minimum` samples that took more than
    `patience` seconds together. Alternating spreads what changes slowly (clock, neighbours) over everything that is
    compared. What a run returns is kept, so one that makes large tensors should return none.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for run in () if rehearsed else runs.values():
        run()
    for _ in range(2 * repeats):
        for name, run in runs.items():
            taken = samples[name]
            enough = sum(s.waiting <= max_waiting for s in taken) >= repeats
            slow = len(taken) >= minimum and sum(s.seconds for s in taken) > patience
            if not (enough or slow):
                if rehearsed:
                    rehearse(run)
                taken.append(sample(run))
    return samples


def choose(samples: Sequence[Sample], minimum: int = MINIMUM, max_waiting: float = MAX_WAITING) -> list[Sample]:
    """The undisturbed samples, or the `minimum` least disturbed ones where there are fewer of them."""
    ordered = sorted(samples, key=lambda s: s.waiting)
    undisturbed = sum(s.waiting <= max_waiting for s in ordered)
    return ordered[: max(undisturbed, min(minimum, len(ordered)))]


def summarize(samples: Sequence[Sample], minimum: int = MINIMUM, max_waiting: float = MAX_WAITING) -> Summary:
    """Median, quartiles and least of `choose(samples, ...)`. Raises ValueError without samples."""
    if not samples:
        raise ValueError("summarize: expected at least one sample, found none")
    chosen = choose(samples, minimum, max_waiting)
    seconds = sorted(s.seconds for s in chosen)
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    worst = max(s.waiting for s in chosen)
    return Summary(
        seconds=statistics.median(seconds),
        low=low,
        high=high,
        best=seconds[0],
        kept=len(chosen),
        discarded=len(samples) - len(chosen),
        disturbed=worst > max_waiting,
        waiting=worst,
    )
