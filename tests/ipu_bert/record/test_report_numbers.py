"""A hand-worked report; runs that were resumed, and times that do not add up."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from report_case import OUTCOME, RECORDS, train

from ipu_bert.record.report import _heldout_curve, as_json
from ipu_bert.record.report_numbers import build_report, step_times, throughput, time_share
from ipu_bert.record.report_page import render_page
from ipu_bert.stopwatch import PHASES


def test_speed_worked_by_hand() -> None:
    speed = as_json(build_report(RECORDS, OUTCOME), {})["throughput"]
    assert speed["step_seconds"] == {
        "mean": 0.25,
        "median": 0.2,
        "measured_steps": 40,
        "warmup_steps_left_out": 10,
        "resumed_steps_left_out": 0,
    }
    assert speed["sequences_per_second"] == pytest.approx(8 / 0.25)
    assert speed["tokens_per_second"] == pytest.approx(8 / 0.25 * 128)
    assert speed["executed_flops_per_second"] == pytest.approx(32 * 2e6)
    assert speed["dense_equivalent_flops_per_second"] == pytest.approx(32 * 1e7)
    assert speed["median"]["sequences_per_second"] == pytest.approx(8 / 0.2)
    assert speed["median"]["dense_equivalent_flops_per_second"] == pytest.approx(40 * 1e7)
    assert speed["whole_run"]["sequences_per_second"] == pytest.approx(400 / 20.0)


def test_shares_losses_and_patterns_worked_by_hand() -> None:
    report = as_json(build_report(RECORDS, OUTCOME), {})
    assert report["time_share"] == pytest.approx(
        {
            "data": 0.05,
            "forward": 0.2,
            "backward": 0.4,
            "exchange": 0.0,
            "optimizer": 0.1,
            "update": 0.05,
            "evaluation": 0.15,
            "checkpoint": 0.0,
            "other": 0.05,
        }
    )
    assert report["heldout"] == {
        "mlm_loss": 6.0,
        "nsp_loss": 0.6,
        "unigram_entropy": 6.75,
        "other_words_loss": 6.25,
        "other_words_error": 0.05,
        "word_frequencies_loss": 6.5,
        "mlm_labels": 9700,
        "other_words_share": 0.875,
        "initial_mlm_loss": 9.0,
        "mlm_accuracy": 0.125,
        "nsp_accuracy": 0.75,
        "context_gain": 0.25,
        "reads_context": True,
        "nsp_learned": True,
        "best_mlm_loss": 6.25,
        "best_step": 30,
        "best_checkpoint": None,
    }
    pattern = report["pattern"]
    assert pattern["layers"] == {"a": {"explored_dof": 0.16}}
    del pattern["layers"]
    assert pattern == pytest.approx(
        {
            "updates": 2,
            "density": 0.1,
            "sparsity": 0.9,
            "blocks": 60,
            "moved_total": 42,
            "returned_total": None,
            "explored_dof": 0.16,
            "removed_new": 0.4,
            "removed_new_last": 0.4,
            "churn": 0.35,
            "mean_age": 1.0,
            "seconds_per_update": 0.5,
            "searched": False,
            "transfers": None,
        }
    )
    assert report["parameters"] == {"sparse": 1000, "dense": 500, "sparse_dense_equivalent": 10000, "total": 1500}
    assert report["flops_per_sequence"] == {"executed": 2e6, "dense_equivalent": 1e7}
    assert (report["steps"], report["sequences"], report["tokens"]) == (50, 400, 51200)
    assert report["data"]["stream_sequences_per_second"] == 400.0
    assert report["peak_memory_bytes"] == 3 * 2**30


def judged(step: int, batches: int, mlm_loss: float) -> dict[str, Any]:
    means = {"mlm_loss": mlm_loss, "nsp_loss": 0.7, "mlm_accuracy": 0.0, "nsp_accuracy": 0.5}
    return {"kind": "eval", "step": step, "batches": batches, **means}


def test_only_evaluations_by_as_many_batches_as_the_last_are_compared() -> None:
    """After a resume with other `eval.batches` the best was one by eight, and the loss by one "had risen" since."""
    eight = [judged(0, 8, 9.0), judged(10, 8, 5.166), judged(30, 8, 5.3)]
    one = [judged(30, 1, 5.5), judged(40, 1, 5.4), judged(50, 1, 6.0)]
    heldout = build_report([*eight, *one], OUTCOME).heldout
    assert (heldout.initial_mlm_loss, heldout.best_mlm_loss, heldout.best_step) == (None, 5.4, 40)
    assert "risen since the best evaluation, 5.400 at step 40" in render_page(build_report([*eight, *one], OUTCOME), {})
    curve = _heldout_curve([*eight, *one], build_report([*eight, *one], OUTCOME))
    assert (curve.steps, curve.mlm) == ([30, 40, 50], [5.5, 5.4, 6.0])
    heldout = build_report(eight, OUTCOME).heldout
    assert (heldout.initial_mlm_loss, heldout.best_mlm_loss, heldout.best_step) == (9.0, 5.166, 10)
    older = [{key: value for key, value in record.items() if key != "batches"} for record in eight]
    assert build_report(older, OUTCOME).heldout == heldout
    assert build_report([*older[:2], eight[2]], OUTCOME).heldout == heldout  # an older version's run that went on


def test_mean_and_median_against_any_step_times(seed: int) -> None:
    rng = random.Random(seed)
    seconds = [rng.uniform(0.01, 1.0) for _ in range(101)]
    records = [train(step, sum(seconds[:step])) for step in range(1, 102)]
    speed = throughput(records, replace(OUTCOME, steps=101))
    measured = sorted(seconds[10:])  # the first ten are warm-up
    assert speed.step_seconds is not None
    assert speed.step_seconds.median == pytest.approx(measured[45])
    assert speed.sequences_per_second == pytest.approx(8 * 91 / sum(measured))


def test_the_gap_of_a_resumed_run_is_no_step_time() -> None:
    records = [
        train(10, 1.0),
        train(20, 2.0),
        {"kind": "resume", "step": 20},
        train(30, 900.0),
        train(40, 901.0),
    ]
    assert step_times(records, 10) == [(10, 10, pytest.approx(0.1)), (30, 10, pytest.approx(0.1))]
    restarted_clock = [train(10, 5.0), train(20, 6.0), train(30, 0.5), train(40, 1.5)]
    assert step_times(restarted_clock, 0) == [(10, 10, pytest.approx(0.1)), (30, 10, pytest.approx(0.1))]


@pytest.mark.parametrize(("every", "resumed"), [(50, 0), (7, 0), (1, 1), (20, 2)])
def test_the_steps_that_are_left_out_are_told(every: int, resumed: int) -> None:
    """They were told as the first ten, where log.every left out more, and those around a resume were not told."""
    steps = 101
    at = sorted({*range(every, steps + 1, every), steps})
    records = []
    for step in at:
        if step in at[-2 * resumed :: 2][:resumed]:
            records.append({"kind": "resume", "step": at[at.index(step) - 1]})
        records.append(train(step, 0.1 * step))
    first = next(step for step in at if step >= 10)
    gone = sum(step - at[at.index(step) - 1] for step in at[-2 * resumed :: 2][:resumed])
    report = build_report(records, replace(OUTCOME, steps=steps))
    speed = report.throughput.step_seconds
    assert speed is not None
    assert (speed.warmup_steps_left_out, speed.resumed_steps_left_out) == (first, gone)
    assert first + gone + speed.measured_steps == steps
    told = f"leave out the run's first {first} steps" + f", {gone} more in which it was resumed" * (gone > 0)
    assert f"{told}, evaluations and checkpoints" in render_page(report, {})


def test_shares_sum_to_one_even_if_phases_exceed_the_clock() -> None:
    nothing = dict.fromkeys(PHASES, 0.0)
    shares = time_share({**nothing, "forward": 3.0, "backward": 9.0}, 10.0)
    assert shares["backward"] == 0.75
    assert shares["other"] == 0.0
    assert sum(time_share(nothing, 0.0).values()) == 1.0


def test_a_page_says_from_where_on_there_are_records() -> None:
    told = "The records here begin after step 30: "
    part = [{"kind": "resume", "step": 30}, *(record for record in RECORDS if record["step"] > 30)]
    assert told in render_page(build_report(part, OUTCOME), {})
    assert "The records here begin" not in render_page(build_report(RECORDS, OUTCOME), {})


def test_two_ranks_worked_by_hand() -> None:
    """Rank 1 is the slower, and waited half as long."""
    report = build_report(RECORDS, replace(OUTCOME, waited_share=[0.2, 0.1]))
    assert as_json(report, {})["exchange"] == {
        "ranks": 2,
        "bytes_per_step": {"encoder": 4400, "embeddings": 1200, "heads": 400, "as_dense": 42000},
        "waited_share": [0.2, 0.1],
        "efficiency": pytest.approx(0.85),
    }
    page = render_page(report, {})
    assert "waited for each other 10.0 % (rank 1, the slowest) to 20.0 % of the training time" in page
    assert "the work of 1.70 that never wait" in page
    assert "| in all | 6 kB |" in page
    assert "each rank sends 1.00 times that, 6 kB a step" in page
    alone = build_report(RECORDS, OUTCOME)
    assert as_json(alone, {})["exchange"] is None
    assert "waiting for other processes" not in render_page(alone, {})


def test_blocks_that_came_back_are_told_where_all_updates_say_so() -> None:
    """Of a run that an older version began, those of its own updates alone were told, beside the moves of all."""
    records = [{**record, "returned": 3} if record["kind"] == "update" else record for record in RECORDS]
    updates = sum(record["kind"] == "update" for record in records)
    assert build_report(records, OUTCOME).pattern.returned_total == 3 * updates > 3
    first = next(number for number, record in enumerate(records) if record["kind"] == "update")
    older = [*records[:first], RECORDS[first], *records[first + 1 :]]
    assert build_report(older, OUTCOME).pattern.returned_total is None
