"""Which samples of a benchmark count, worked by hand."""

from __future__ import annotations

import time

import pytest

from sparse_ops.sampling import Sample, alternate, choose, sample, seconds_waited, summarize


def test_disturbed_samples_are_discarded_and_counted():
    samples = [Sample(1.0, 0.0), Sample(9.0, 4.0), Sample(3.0, 0.1), Sample(2.0, 0.02), Sample(8.0, 0.5)]
    assert sorted(s.seconds for s in choose(samples)) == [1.0, 2.0, 3.0]
    found = summarize(samples)
    assert (found.seconds, found.low, found.high) == (2.0, 1.5, 2.5)
    assert (found.kept, found.discarded, found.disturbed) == (3, 2, False)
    assert found.waiting == pytest.approx(0.1 / 3.0)


def test_on_a_machine_that_is_never_quiet_the_least_disturbed_samples_count_and_it_is_said():
    samples = [Sample(1.0, 0.9), Sample(2.0, 0.6), Sample(4.0, 0.8), Sample(1.0, 0.7), Sample(1.0, 5.0)]
    found = summarize(samples, minimum=3)
    assert (found.seconds, found.kept, found.discarded, found.disturbed) == (2.0, 3, 2, True)
    assert found.waiting == pytest.approx(0.7)


def test_one_sample_has_no_spread_and_none_is_refused():
    found = summarize([Sample(1.5, 0.0)])
    assert (found.seconds, found.low, found.high, found.kept) == (1.5, 1.5, 1.5, 1)
    with pytest.raises(ValueError, match="at least one sample"):
        summarize([])


def test_alternate_goes_round_and_stops_when_it_has_enough(monkeypatch):
    order, waits = [], {"a": iter([0.0, 0.0, 0.0]), "b": iter([9.0, 0.0, 9.0, 9.0])}

    def fake(run):
        name = run()
        order.append(name)
        return Sample(1.0, next(waits[name]), name)

    monkeypatch.setattr("sparse_ops.sampling.sample", fake)
    found = alternate({"a": lambda: "a", "b": lambda: "b"}, repeats=2, max_rounds=4)
    assert order == ["a", "b", "a", "b", "b", "b"]
    assert [len(found["a"]), len(found["b"])] == [2, 4]


def test_a_sample_is_timed_and_carries_the_result():
    found = sample(lambda: time.sleep(0.05) or "done")
    assert found.result == "done"
    assert found.seconds >= 0.05
    assert found.waited >= 0.0
    assert 0.0 <= seconds_waited() <= seconds_waited() + 1e-9
