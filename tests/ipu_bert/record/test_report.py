"""The files of a report: strict JSON in its order, the page, the pictures; runs of a step or two."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure
from report_case import OUTCOME, RECORDS, train, with_heldout

from ipu_bert.record.curves import PatternChange
from ipu_bert.record.metrics import JsonlSink, Metrics, dumps
from ipu_bert.record.report import _figures, _heldout_curve, as_json, write_report
from ipu_bert.record.report_numbers import build_report


def test_report_json_keeps_its_entries_in_their_order() -> None:
    """Other programs read them."""
    report = as_json(build_report(RECORDS, OUTCOME), {})
    assert " ".join(report) == (
        "name config model parameters flops_per_sequence heldout data seconds steps skipped_steps training_mlm_loss "
        "training_frequencies_loss "
        "sequences tokens elapsed_seconds peak_memory_bytes machine throughput time_share exchange pattern figures "
        "no_effect"
    )
    assert " ".join(report["model"]) == (
        "layers hidden_size heads intermediate_size vocab_size max_positions type_vocab dropout attention_dropout "
        "layer_norm_eps initializer_range method"
    )
    assert " ".join(report["data"]) == "source vocab_size splits quality filling stream_sequences_per_second"
    assert " ".join(report["machine"]) == "processor cpus threads torch python"
    rates = "sequences_per_second tokens_per_second executed_flops_per_second dense_equivalent_flops_per_second"
    assert " ".join(report["throughput"]) == f"{rates} step_seconds median whole_run"
    assert " ".join(report["throughput"]["whole_run"]) == rates


def test_the_dashed_line_is_what_the_verdict_is_by() -> None:
    """Not the whole held-out text's 6.75."""
    figure = _figures(RECORDS, build_report(RECORDS, OUTCOME), None)["loss_curves.png"]()
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "_word_frequencies"]
    assert set(line.get_ydata()) == {6.5}


def test_other_words_are_drawn_where_records_have_them() -> None:
    """And at the end, where none may be there."""
    records = [{**record, "other_words_loss": 8.75} if record.get("mlm_loss") == 9.0 else record for record in RECORDS]
    for found, first in ((records, 8.75), (RECORDS, None)):
        curve = _heldout_curve(found, build_report(found, OUTCOME))
        assert curve.steps == [0, 30, 50]
        assert curve.mlm == [9.0, 6.25, 6.0]
        assert curve.other_words == [first, None, 6.25]


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


PATTERN = PatternChange("layer.0", (4, 4), 16, [0, 1], [0, 1], [0, 2], [0, 1], (), 50)
PICTURES = ["loss_curves.png", "pattern_start_end.png", "pattern_updates.png"]


def test_a_matplotlibrc_changes_no_picture(tmp_path: Path) -> None:
    """With LaTeX in it, as writers of papers have, and none here a run had no report and ended in a traceback."""
    theirs = {"text.usetex": True, "font.family": ["none-such"], "savefig.dpi": 30, "savefig.bbox": "tight"}
    for folder, settings in ((tmp_path / "plain", {}), (tmp_path / "theirs", theirs)):
        record_run(folder, RECORDS)
        with matplotlib.rc_context(settings):
            write_report(folder, OUTCOME, PATTERN)
            assert {key: matplotlib.rcParams[key] for key in settings} == settings
    for name in PICTURES:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


@pytest.mark.parametrize("broken", ["drawing", "memory", "package", "matplotlibrc"])
def test_what_cannot_be_drawn_is_a_line(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record_run(tmp_path, RECORDS)
    for name in [*PICTURES, "mine.png"]:
        (tmp_path / name).write_text("of an earlier report, of fewer steps")

    def failing(*_: Any, **__: Any) -> None:
        raise MemoryError if broken == "memory" else RuntimeError("no latex\nhere")

    if broken in ("drawing", "memory"):
        monkeypatch.setattr(Figure, "savefig", failing)
    else:
        monkeypatch.delitem(sys.modules, "sparse_ops.agg", raising=False)
        monkeypatch.delitem(sys.modules, "matplotlib")
        if broken == "package":
            monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]
        else:
            (tmp_path / "rc").write_bytes(b"\xff\xfe")
            monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "rc"))
    write_report(tmp_path, OUTCOME, PATTERN)
    assert strict((tmp_path / "report.json").read_text())["figures"] == {}
    line = capsys.readouterr().err.splitlines()[-1]
    found = {"drawing": "RuntimeError: no latex here", "memory": "MemoryError:"}
    found |= {"package": "ModuleNotFoundError: ", "matplotlibrc": "UnicodeDecodeError: 'utf-8' codec can't decode"}
    names = "loss_curves.png, pattern_updates.png, pattern_start_end.png"
    assert line.startswith(f"{names}: expected matplotlib to draw it, found {found[broken]}")
    page = (tmp_path / "report.md").read_text()
    assert f"\n\n**Not drawn:** {line}\n\n" in page
    assert ".png)" not in page
    assert [path.name for path in tmp_path.glob("*.png")] == ["mine.png"]


def test_a_picture_that_a_report_does_not_have_is_not_an_earlier_ones(tmp_path: Path) -> None:
    """As of a pattern's start that is not known, since records begin later."""
    record_run(tmp_path, RECORDS)
    (tmp_path / "pattern_start_end.png").symlink_to("mine.png")
    (tmp_path / "mine.png").write_text("mine")
    write_report(tmp_path, OUTCOME, None)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted([*PICTURES[:1], *PICTURES[2:], "mine.png"])


def test_the_picture_of_updates_has_what_was_moved_and_not_what_was_planned(tmp_path: Path, monkeypatch: Any) -> None:
    """A sparsity of 0.2 leaves few free places: a line "blocks moved / all blocks" at 84 % where 76 of 308 moved."""
    updates = [record for record in RECORDS if record["kind"] == "update"]
    moved = [(76, 0.84), (0, 0.45)]
    changed = [
        {**record, "moved": blocks, "blocks": 308, "churn": blocks / 308, "ratio": ratio}
        for record, (blocks, ratio) in zip(updates, moved, strict=True)
    ]
    record_run(tmp_path, [*(record for record in RECORDS if record["kind"] != "update"), *changed])
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    write_report(tmp_path, OUTCOME, PATTERN)
    lines = {line.get_label(): line.get_ydata() for figure in drawn for axes in figure.axes for line in axes.lines}
    assert list(lines["blocks moved / all blocks"]) == pytest.approx([0.24675, 0.0], abs=1e-5)


def test_numbers_and_page_are_there_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    record_run(tmp_path, RECORDS)
    monkeypatch.setattr(Figure, "savefig", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, OUTCOME, PATTERN)
    assert strict((tmp_path / "report.json").read_text())["figures"] == {}
    assert ".png)" not in (tmp_path / "report.md").read_text()


def test_a_picture_for_which_the_disk_has_no_room_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_run(tmp_path, RECORDS)
    (tmp_path / "pattern_updates.png").mkdir()
    with pytest.raises(OSError, match=r"expected a file.*pattern_updates\.png"):
        write_report(tmp_path, OUTCOME, PATTERN)


@pytest.mark.parametrize("records", [[], [train(1, 0.5)], [{**train(1, 0.5), "mlm_loss": None}, train(2, 1.0)]])
def test_very_short_runs_have_a_report(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    record_run(tmp_path, [{"kind": "start", "step": 0}, *records])
    write_report(tmp_path, replace(OUTCOME, steps=max(1, len(records))), None)
    assert strict((tmp_path / "report.json").read_text())["throughput"]["sequences_per_second"] > 0
    assert "How fast?" in (tmp_path / "report.md").read_text()
