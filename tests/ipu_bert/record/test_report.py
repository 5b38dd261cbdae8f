"""A hand-worked report, the words chosen from the numbers, runs that are short, static, dense or resumed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from ipu_bert.record.metrics import JsonlSink, Metrics
from ipu_bert.record.plots import PatternChange
from ipu_bert.record.report import REQUIRED, build_report, step_times, throughput, time_share, write_report
from ipu_bert.record.report_page import memory, render_page, scaled, verdict

SUMMARY: dict[str, Any] = {
    "name": "demo",
    "config": {"sparsity": {"block_size": 16, "sparsity": 0.9}, "run": {"seed": 3}},
    "model": {"layers": 2, "hidden_size": 256},
    "parameters": {"sparse": 1000, "dense": 500, "sparse_dense_equivalent": 10000, "total": 1500},
    "flops_per_sequence": {"executed": 2e6, "dense_equivalent": 1e7},
    "heldout": {
        "mlm_loss": 6.0,
        "nsp_loss": 0.6,
        "mlm_accuracy": 0.125,
        "nsp_accuracy": 0.75,
        "unigram_entropy": 6.5,
        "initial_mlm_loss": 9.0,
    },
    "data": {"documents": 249, "tokens": 2430000, "vocab_size": 8192, "stream_sequences_per_second": 400.0},
    "seconds": {
        "data": 1.0,
        "forward": 4.0,
        "backward": 8.0,
        "optimizer": 2.0,
        "update": 1.0,
        "evaluation": 3.0,
    },
    "steps": 50,
    "sequences": 400,
    "tokens": 51200,
    "elapsed_seconds": 20.0,
    "peak_memory_bytes": 3 * 2**30,
    "machine": {"cores": 2},
    "updates": 2,
}


def train(step: int, elapsed: float, evaluation: float = 0.0) -> dict[str, Any]:
    seconds = {"forward": 0.1 * step, "evaluation": evaluation}
    return {
        "kind": "train",
        "step": step,
        "mlm_loss": 7.0,
        "nsp_loss": 0.7,
        "elapsed": elapsed,
        "seconds": seconds,
    }


# A run of 50 steps, 8 sequences each, a record every 10. Warm-up: the first 10 steps, which took 9 s.
# Then 10 steps in 2 s, in 2 s, in 5 s of which 3 s evaluated, and in 4 s with a pattern update:
# 40 steps in 2 + 2 + 2 + 4 = 10 s, 0.25 s a step in the mean and 0.2 s in the median.
RECORDS: list[dict[str, Any]] = [
    {"kind": "start", "step": 0},
    train(10, 9.0),
    {
        "kind": "update",
        "step": 10,
        "update": 1,
        "ratio": 0.5,
        "moved": 30,
        "blocks": 60,
        "explored_dof": 0.14,
        "removed_new": None,
        "churn": 0.5,
        "mean_age": 0.5,
        "seconds": 0.25,
        "layers": {"a": {"explored_dof": 0.14}},
    },
    train(20, 11.0),
    train(30, 13.0),
    {
        "kind": "eval",
        "step": 30,
        "mlm_loss": 6.25,
        "nsp_loss": 0.65,
        "mlm_accuracy": 0.1,
        "nsp_accuracy": 0.7,
    },
    train(40, 18.0, 3.0),
    {
        "kind": "update",
        "step": 40,
        "update": 2,
        "ratio": 0.2,
        "moved": 12,
        "blocks": 60,
        "explored_dof": 0.16,
        "removed_new": 0.4,
        "churn": 0.2,
        "mean_age": 1.0,
        "seconds": 0.75,
        "layers": {"a": {"explored_dof": 0.16}},
    },
    train(50, 22.0, 3.0),
    {"kind": "end", "step": 50},
]


def with_heldout(**values: Any) -> dict[str, Any]:
    return {**SUMMARY, "heldout": {**SUMMARY["heldout"], **values}}


def test_a_report_worked_by_hand() -> None:
    report = build_report(RECORDS, SUMMARY)
    speed = report["throughput"]
    assert speed["step_seconds"] == {
        "mean": 0.25,
        "median": 0.2,
        "measured_steps": 40,
        "warmup_steps_left_out": 10,
    }
    assert speed["sequences_per_second"] == pytest.approx(8 / 0.25)
    assert speed["tokens_per_second"] == pytest.approx(8 / 0.25 * 128)
    assert speed["executed_flops_per_second"] == pytest.approx(32 * 2e6)
    assert speed["dense_equivalent_flops_per_second"] == pytest.approx(32 * 1e7)
    assert speed["median"]["sequences_per_second"] == pytest.approx(8 / 0.2)
    assert speed["median"]["dense_equivalent_flops_per_second"] == pytest.approx(40 * 1e7)
    assert speed["whole_run"]["sequences_per_second"] == pytest.approx(400 / 20.0)
    assert report["time_share"] == pytest.approx(
        {
            "data": 0.05,
            "forward": 0.2,
            "backward": 0.4,
            "optimizer": 0.1,
            "update": 0.05,
            "evaluation": 0.15,
            "checkpoint": 0.0,
            "other": 0.05,
        }
    )
    assert report["heldout"] == {
        **SUMMARY["heldout"],
        "below_unigram": 0.5,
        "beats_unigram": True,
        "nsp_learned": True,
        "best_mlm_loss": 6.25,
        "best_step": 30,
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
            "explored_dof": 0.16,
            "removed_new": 0.4,
            "removed_new_last": 0.4,
            "churn": 0.35,
            "mean_age": 1.0,
            "seconds_per_update": 0.5,
            "transfers": None,
        }
    )
    assert report["parameters"]["sparse"] == 1000
    assert report["parameters"]["dense"] == 500
    assert report["peak_memory_bytes"] == 3 * 2**30


def test_what_an_update_moved_is_said_where_weights_live_elsewhere() -> None:
    transfers = {"bytes_down": 2000, "bytes_up": 3000, "compilations": 1}
    records = [{**r, "transfers": transfers} if r["kind"] == "update" else r for r in RECORDS]
    page = render_page(build_report(records, SUMMARY))
    assert "moved 2,000 bytes from the device and 3,000 bytes to it" in page
    assert "compiled once" in page
    assert "from the device" not in render_page(build_report(RECORDS, SUMMARY))


def test_mean_and_median_against_any_step_times(seed: int) -> None:
    rng = random.Random(seed)
    seconds = [rng.uniform(0.01, 1.0) for _ in range(101)]
    records = [train(step, sum(seconds[:step])) for step in range(1, 102)]
    speed = throughput(records, {**SUMMARY, "steps": 101, "sequences": 808})
    measured = sorted(seconds[10:])  # the first ten are warm-up
    assert speed["step_seconds"]["median"] == pytest.approx(measured[45])
    assert speed["sequences_per_second"] == pytest.approx(8 * 91 / sum(measured))


def test_the_gap_of_a_resumed_run_is_no_step_time() -> None:
    records = [
        train(10, 1.0),
        train(20, 2.0),
        {"kind": "resume", "step": 20},
        train(30, 900.0),
        train(40, 901.0),
    ]
    assert step_times(records, 10) == [(10, pytest.approx(0.1)), (10, pytest.approx(0.1))]
    restarted_clock = [train(10, 5.0), train(20, 6.0), train(30, 0.5), train(40, 1.5)]
    assert step_times(restarted_clock, 0) == [(10, pytest.approx(0.1)), (10, pytest.approx(0.1))]


def test_shares_sum_to_one_even_if_phases_exceed_the_clock() -> None:
    shares = time_share({"forward": 3.0, "backward": 9.0}, 10.0)
    assert shares["backward"] == 0.75
    assert shares["other"] == 0.0
    assert sum(time_share({}, None).values()) == 1.0


def test_missing_entries_of_the_summary_are_named() -> None:
    with pytest.raises(ValueError, match="missing heldout, tokens"):
        build_report([], {key: SUMMARY[key] for key in REQUIRED if key not in ("heldout", "tokens")})


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mlm_loss": 6.0}, "**Yes: the model reads context.**"),
        ({"mlm_loss": 6.0}, "Its held-out masked-LM loss, 6.000 nats, is 0.500 below the 6.500"),
        ({"mlm_loss": 6.0}, f"{math.exp(0.5):.2f} times the probability"),
        ({"mlm_loss": 6.48}, "**Not clearly.**"),
        ({"mlm_loss": 6.5}, "**No: the model has NOT beaten word frequencies.**"),
        ({"mlm_loss": 7.25}, "7.250 nats, is 0.750 above the 6.500"),
        ({"mlm_loss": 7.25}, "no more than which words are frequent"),
        ({"mlm_loss": 9.0}, "no better than the untrained model"),
        ({"mlm_loss": math.nan}, "**Unknown: there is no finite held-out loss**"),
        ({"unigram_entropy": None}, "it cannot be said whether that is more than counting words"),
    ],
)
def test_the_verdict_follows_the_numbers(values: dict[str, Any], says: str) -> None:
    report = build_report(RECORDS, with_heldout(**values))
    said = verdict(report["heldout"])
    assert says in said
    assert said in render_page(report)
    assert ("Yes" in said) == (values.get("mlm_loss") == 6.0)


def test_the_page_says_what_a_newcomer_needs() -> None:
    page = render_page({**build_report(RECORDS, SUMMARY), "figures": {"loss_curves": "loss_curves.png"}})
    for words in (
        "A BERT with 2 layers of width 256 was pre-trained for 50 steps on 400 sequences",
        "(51,200 tokens) in 20 s.",
        "block-sparse: 90.0 % of their entries do not exist, and the rest is kept in blocks of 16 x 16",
        "| masked LM (MLM) | 6.000 | 6.500 (word frequencies) | 12.5 % |",
        "| next sentence (NSP) | 0.600 | 0.693 (coin toss, ln 2) | 75.0 % |",
        "| executed FLOP/s | 64 MFLOP/s | 80 MFLOP/s | 40 MFLOP/s |",
        "| dense-equivalent FLOP/s | 320 MFLOP/s | 400 MFLOP/s | 200 MFLOP/s |",
        "10 MFLOP, 5.0 times as much",
        "makes 400 sequences/s, 12.5 times what training used.",
        "| backward pass | 40.0 % | `############` |",
        "| peak memory of the process | 3.00 GiB |",
        "2 pattern updates removed the weakest blocks (of 60) and put as many elsewhere, 42 moves",
        "over the whole run 16.0 % were tried at least once",
        "the next one removed 40.0 % on average",
        "![Loss over training steps](loss_curves.png)",
        "sparsity.block_size = 16",
        "- cores: 2",
    ):
        assert words in page, words
    assert "pattern_updates.png" not in page  # not drawn, not shown


def test_a_slow_stream_a_stuck_nsp_and_overfitting_are_said() -> None:
    summary = {**with_heldout(mlm_loss=6.4, nsp_loss=0.69), "data": {"stream_sequences_per_second": 40.0}}
    page = render_page(build_report(RECORDS, summary))
    assert "training may be waiting for data" in page
    assert "NOT moved clearly below a coin toss" in page
    assert "The best evaluation was 6.250 at step 30; since then the held-out loss has risen" in page


def test_the_untrained_loss_comes_from_the_evaluation_at_step_0_and_counts_from_splits() -> None:
    summary = {
        **SUMMARY,
        "heldout": {"mlm_loss": 8.995, "nsp_loss": 0.69, "unigram_entropy": 6.5},
        "data": {"splits": {"train": {"documents": 200, "tokens": 1500}, "heldout": {"documents": 9, "tokens": 500}}},
        "flops_per_sequence": {"executed": 2e6, "dense_equivalent": 1e7, "encoder": 1.5e6},
    }
    report = build_report([{"kind": "eval", "step": 0, "mlm_loss": 9.0, "nsp_loss": 0.7}, *RECORDS], summary)
    assert report["heldout"]["initial_mlm_loss"] == 9.0
    page = render_page(report)
    assert "no better than the untrained model" in page
    assert "The corpus: 209 documents, 2,000 tokens." in page
    assert "The encoder alone, which is what the paper counts: 1.5 MFLOP." in page


def test_dense_and_static_runs() -> None:
    records = [r for r in RECORDS if r["kind"] != "update"]
    page = render_page(build_report(records, SUMMARY))
    assert "no update changed it" in page
    summary = {
        **SUMMARY,
        "parameters": {"sparse": 0, "dense": 1500, "sparse_dense_equivalent": 0, "total": 1500},
        "flops_per_sequence": {"executed": 1e7, "dense_equivalent": 1e7},
    }
    report = build_report(records, summary)
    assert report["pattern"]["density"] is None
    page = render_page(report)
    assert "There is no pattern: this run is dense." in page
    assert "Every product is dense here" in page


def test_units() -> None:
    assert [scaled(v, "B/s") for v in (None, 0.5, 999.6, 1234.0, 3.35e10, 9.999e11, 2e15)] == [
        "not measured",
        "0.5 B/s",
        "1,000 B/s",
        "1.23 kB/s",
        "33.5 GB/s",
        "1,000 GB/s",
        "2 PB/s",
    ]
    assert [memory(v) for v in (None, 812 * 2**20, 2**30)] == ["not measured", "812 MiB", "1.00 GiB"]


# ------------------------------------------------------------------ files


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def record_run(folder: Path, records: list[dict[str, Any]]) -> None:
    with Metrics([JsonlSink(folder / "metrics.jsonl")]) as metrics:
        for record in records:
            metrics.write(record)


def test_write_report_leaves_numbers_page_and_pictures(tmp_path: Path) -> None:
    record_run(tmp_path, RECORDS)
    (tmp_path / "report.md").write_text("an older report")
    pattern = PatternChange("layer.0", (4, 4), 16, [0, 1], [0, 1], [0, 2], [0, 1], end_step=50)
    report = write_report(tmp_path, with_heldout(mlm_accuracy=math.nan), pattern)
    names = {"loss_curves.png", "pattern_updates.png", "pattern_start_end.png"}
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl", "report.json", "report.md", *names}
    saved = strict((tmp_path / "report.json").read_text())
    assert saved == report
    assert saved["heldout"]["mlm_accuracy"] is None
    page = (tmp_path / "report.md").read_text()
    for name in names:
        assert f"]({name})" in page
        assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("records", [[], [train(1, 0.5)], [{**train(1, 0.5), "mlm_loss": None}, train(2, 1.0)]])
def test_very_short_runs_have_a_report(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    record_run(tmp_path, [{"kind": "start", "step": 0}, *records])
    steps = max(1, len(records))
    report = write_report(tmp_path, {**SUMMARY, "steps": steps, "sequences": 8 * steps, "tokens": 1024 * steps})
    assert report["throughput"]["sequences_per_second"] > 0
    strict((tmp_path / "report.json").read_text())
    assert "How fast?" in (tmp_path / "report.md").read_text()
