"""The files of a report: strict JSON in its order, the page, the pictures; runs of a step or two."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_case import OUTCOME, RECORDS, train, with_heldout

from ipu_bert.record.metrics import JsonlSink, Metrics, dumps
from ipu_bert.record.plots import PatternChange
from ipu_bert.record.report import as_json, write_report
from ipu_bert.record.report_numbers import build_report


def test_report_json_keeps_its_entries_in_their_order() -> None:
    """Other programs read them."""
    report = as_json(build_report(RECORDS, OUTCOME), {})
    assert " ".join(report) == (
        "name config model parameters flops_per_sequence heldout data seconds steps skipped_steps sequences tokens "
        "elapsed_seconds peak_memory_bytes machine throughput time_share exchange pattern figures no_effect"
    )
    assert " ".join(report["model"]) == (
        "layers hidden_size heads intermediate_size vocab_size max_positions type_vocab dropout attention_dropout "
        "layer_norm_eps initializer_range method"
    )
    assert " ".join(report["data"]) == "source vocab_size splits quality stream_sequences_per_second"
    assert " ".join(report["machine"]) == "processor cpus threads torch python"
    rates = "sequences_per_second tokens_per_second executed_flops_per_second dense_equivalent_flops_per_second"
    assert " ".join(report["throughput"]) == f"{rates} step_seconds median whole_run"
    assert " ".join(report["throughput"]["whole_run"]) == rates


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
    pattern = PatternChange("layer.0", (4, 4), 16, [0, 1], [0, 1], [0, 2], [0, 1], (), 50)
    outcome = with_heldout(mlm_accuracy=math.nan)
    write_report(tmp_path, outcome, pattern)
    names = {"loss_curves.png", "pattern_updates.png", "pattern_start_end.png"}
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl", "report.json", "report.md", *names}
    saved = strict((tmp_path / "report.json").read_text())
    figures = {name[:-4]: name for name in names}
    assert saved == json.loads(dumps(as_json(build_report(RECORDS, outcome), figures)))
    assert saved["heldout"]["mlm_accuracy"] is None
    page = (tmp_path / "report.md").read_text()
    for name in names:
        assert f"]({name})" in page
        assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("records", [[], [train(1, 0.5)], [{**train(1, 0.5), "mlm_loss": None}, train(2, 1.0)]])
def test_very_short_runs_have_a_report(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    record_run(tmp_path, [{"kind": "start", "step": 0}, *records])
    write_report(tmp_path, replace(OUTCOME, steps=max(1, len(records))), None)
    assert strict((tmp_path / "report.json").read_text())["throughput"]["sequences_per_second"] > 0
    assert "How fast?" in (tmp_path / "report.md").read_text()
