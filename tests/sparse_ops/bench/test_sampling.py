"""Which samples of a benchmark count, worked by hand."""

from __future__ import annotations

import mmap
import time

import pytest

from sparse_ops.bench import sampling
from sparse_ops.bench.sampling import Sample, alternate, choose, sample, seconds_waited, summarize


class Machine:
    """A clock and a count of waiting that only the runs made here move on, each by what was written down for it."""

    def __init__(self, monkeypatch) -> None:
        self.clock = self.waited = 0.0
        self.order = ""
        monkeypatch.setattr("sparse_ops.bench.sampling.time.perf_counter", lambda: self.clock)
        monkeypatch.setattr("sparse_ops.bench.sampling.seconds_waited", lambda: self.waited)

    def run(self, name: str, seconds: list[float], waited: list[float]):
        calls = iter(zip(seconds, waited))

        def call() -> str:
            passed, kept_waiting = next(calls)
            self.clock += passed
            self.waited += kept_waiting
            self.order += name
            return name

        return call


def test_disturbed_samples_are_discarded_and_counted():
    samples = [Sample(1.0, 0.0), Sample(9.0, 4.0), Sample(3.0, 0.1), Sample(2.0, 0.02), Sample(8.0, 0.5)]
    assert sorted(s.seconds for s in choose(samples)) == [1.0, 2.0, 3.0]
    found = summarize(samples)
    assert (found.seconds, found.low, found.high, found.best) == (2.0, 1.5, 2.5, 1.0)
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
    machine = Machine(monkeypatch)
    runs = {
        "a": machine.run("a", seconds=[5.0, 1.0, 1.0], waited=[9.0, 0.0, 0.0]),
        "b": machine.run("b", seconds=[5.0, 1.0, 1.0, 1.0, 1.0], waited=[0.0, 9.0, 0.0, 9.0, 9.0]),
    }
    found = alternate(runs, repeats=2)
    assert machine.order == "ab" + "ab" * 2 + "bb"  # one call each to warm up, and at most twice the repeats
    assert found["a"] == [Sample(1.0, 0.0, "a")] * 2
    assert [s.waited for s in found["b"]] == [9.0, 0.0, 9.0, 9.0]


@pytest.mark.parametrize(("pages", "untimed"), [([9, 0], 2), ([0, 1000], 2), ([0, 1001, 1000], 3), ([1001] * 5, 4)])
def test_a_rehearsed_sample_comes_once_its_memory_has_settled(pages, untimed, monkeypatch):
    """pages: that each call before the sample maps anew."""
    machine = Machine(monkeypatch)
    monkeypatch.setattr(sampling, "pages_mapped", lambda: sum(pages[: len(machine.order)]))
    run = machine.run("a", seconds=[5.0] * untimed + [1.0], waited=[9.0] * untimed + [0.0])
    assert alternate({"a": run}, repeats=1, rehearsed=True) == {"a": [Sample(1.0, 0.0, "a")]}
    assert machine.order == "a" * (untimed + 1)


def test_pages_that_are_first_touched_are_counted():
    before = sampling.pages_mapped()
    memory = mmap.mmap(-1, 3000 * mmap.PAGESIZE)
    for page in range(3000):
        memory[page * mmap.PAGESIZE] = 1
    assert sampling.pages_mapped() - before >= 6  # huge pages are 512 of them


def test_slow_runs_sit_out_once_they_have_the_fewest_samples_that_count(monkeypatch):
    machine = Machine(monkeypatch)
    runs = {
        "quick": machine.run("q", seconds=[0.125] * 6, waited=[0.0] * 6),
        "slow": machine.run("s", seconds=[2.0] * 6, waited=[0.0] * 6),
    }
    found = alternate(runs, repeats=5, patience=1.0)
    assert machine.order == "qs" + "qs" * 3 + "q" * 2
    assert [len(found["quick"]), len(found["slow"])] == [5, 3]


def test_a_slow_run_does_not_wait_for_undisturbed_samples(monkeypatch):
    machine = Machine(monkeypatch)
    found = alternate({"s": machine.run("s", [2.0] * 9, [1.0] * 9)}, repeats=4, patience=1.0)["s"]
    assert len(found) == 3
    assert summarize(found).disturbed


def test_a_sample_is_timed_and_carries_the_result():
    found = sample(lambda: time.sleep(0.05) or "done")
    assert found.result == "done"
    assert found.seconds >= 0.05
    assert found.waited >= 0.0
    assert 0.0 <= seconds_waited() <= seconds_waited() + 1e-9
