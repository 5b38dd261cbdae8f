"""The phases of a run, and how long each of them takes."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Callable, Iterator, Mapping

# Each phase and what is done in it.
PHASES: Mapping[str, str] = {
    "data": "making batches",
    "forward": "forward pass",
    "backward": "backward pass",
    "exchange": "waiting for other processes",
    "optimizer": "optimizer step",
    "update": "pattern updates",  # and the search for the dense gradient's largest blocks, where they go by it
    "evaluation": "evaluation on held-out text",
    "checkpoint": "writing checkpoints",
}
# What the speed of training leaves out.
OUTSIDE_TRAINING = ("evaluation", "checkpoint")


class Stopwatch:
    """Cumulative wall-clock seconds per phase of a run: `with timer("forward"): ...`.

    A phase inside another one pauses the outer, so the phases never add up to more than the time that passed. `seconds`
    continues from an earlier process's totals; `clock` gives the time in seconds. Raises ValueError for a phase that is
    not in PHASES.
    """

    def __init__(
        self, seconds: Mapping[str, float] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {phase: 0.0 for phase in PHASES}
        for phase, value in (seconds or {}).items():
            self._seconds[self._known(phase)] = float(value)
        self._active: list[str] = []
        self._since = 0.0

    @staticmethod
    def _known(phase: str) -> str:
        if phase not in PHASES:
            raise ValueError(f"unknown phase {phase!r}; expected one of {', '.join(PHASES)}")
        return phase

    def _switch(self) -> None:
        now = self._clock()
        if self._active:
            self._seconds[self._active[-1]] += now - self._since
        self._since = now

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time of the `with` body as `phase`; raises ValueError for a phase that is not in PHASES."""
        self._known(phase)
        self._switch()
        self._active.append(phase)
        try:
            yield
        finally:
            self._switch()
            self._active.pop()

    @property
    def seconds(self) -> dict[str, float]:
        """A copy of the totals so far; the open phase counts up to its last switch only."""
        return dict(self._seconds)
