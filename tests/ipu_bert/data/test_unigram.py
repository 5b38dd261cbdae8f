"""What word frequencies are worth, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ipu_bert.data.unigram import surprises, unigram_baseline


def test_by_hand() -> None:
    # Ids 1, 5 and 6 can be asked for, seen 1, 5 and 3 times, plus one: 2/12, 6/12 and 4/12.
    seen, left_out = np.array([9, 1, 9, 9, 9, 5, 3]), (0, 2, 3, 4)
    found = surprises(seen, np.array([5, 6, 1, 5]), left_out)
    assert found == pytest.approx([math.log(2), math.log(3), math.log(6), math.log(2)])
    assert surprises(seen, np.array([], np.int64), left_out).shape == (0,)
    heldout = np.array([7, 1, 0, 0, 0, 2, 1])  # the same labels, as counts; specials do not count
    baseline = unigram_baseline(seen, heldout, left_out)
    assert baseline["heldout_cross_entropy"] == pytest.approx(found.mean())
    assert baseline["heldout_accuracy"] == pytest.approx(2 / 4)
