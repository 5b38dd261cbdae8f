"""What the soak calls flat: noise, and what becomes less; not growth that is larger than what may be."""

from __future__ import annotations

import numpy as np
import pytest
from trends import trend


def series(seed: int, drift: float, points: int = 400) -> tuple[list[float], list[float]]:
    """Seconds, and values around 100 with noise of 3 that grow by `drift` over the time."""
    times = np.arange(points, dtype=float)
    noise = 3.0 * np.random.default_rng(seed).standard_normal(points)
    return times.tolist(), (100.0 + noise + drift * times / points).tolist()


def test_slope_and_level_by_hand():
    """Slopes of the pairs: 1, 1, 1, 1, 10, 5.5, 4 ...: the median ignores the outlier."""
    found = trend([0, 1, 2, 3, 4], [0, 1, 2, 3, 40], allowed=0.0)
    assert (found.level, found.growth) == (2, 4)


def test_noise_is_flat(seed: int):
    assert trend(*series(seed, 0.0), allowed=2.0).flat


@pytest.mark.parametrize("drift", [6.0, -6.0])
def test_what_grows_is_not_flat(seed: int, drift: float):
    """The slope's standard error is 3 x sqrt(12 / 400) = 0.5 over the whole time."""
    found = trend(*series(seed, drift), allowed=2.0)
    assert found.flat == (drift < 0)
    assert found.growth == pytest.approx(drift, abs=2.5)


def test_a_drift_too_small_to_matter_is_flat(seed: int):
    assert trend(*series(seed, 2.0), allowed=5.0).flat
