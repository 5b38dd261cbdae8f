"""Seconds by phase, with a clock that the test turns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ipu_bert.stopwatch import OUTSIDE_TRAINING, PHASES, Stopwatch


def test_stopwatch_adds_up_pauses_the_outer_phase_and_survives_errors() -> None:
    clock = SimpleNamespace(now=0.0)
    timer = Stopwatch({"data": 10.0}, clock=lambda: clock.now)
    with timer("data"):
        clock.now += 1
    clock.now += 100  # between phases: nobody's
    with timer("evaluation"):
        clock.now += 2
        with timer("forward"):
            clock.now += 4
        clock.now += 8

    def fail() -> None:
        with timer("backward"):
            clock.now += 16
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    seconds = timer.seconds
    assert seconds == {
        "data": 11,
        "forward": 4,
        "backward": 16,
        "exchange": 0,
        "optimizer": 0,
        "update": 0,
        "evaluation": 10,
        "checkpoint": 0,
    }
    with pytest.raises(ValueError, match="unknown phase 'fwd'; expected one of data, forward"), timer("fwd"):
        pass
    with pytest.raises(ValueError, match="unknown phase"):
        Stopwatch({"nap": 1.0})


def test_what_lies_outside_training_are_phases() -> None:
    assert set(OUTSIDE_TRAINING) < set(PHASES)
    assert set(Stopwatch().seconds) == set(PHASES)
