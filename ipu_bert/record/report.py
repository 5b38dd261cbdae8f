"""The report of a finished run: numbers (report.json), a page to read (report.md) and pictures.

What the numbers are is in report_numbers.py, the words of the page in report_page.py.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, Mapping, Sequence

from ipu_bert.config import as_dict
from ipu_bert.record.curves import LossCurve, PatternChange, UpdateCurves
from ipu_bert.record.metrics import METRICS_FILE, PathLike, dumps, read_metrics
from ipu_bert.record.outcome import RunOutcome
from ipu_bert.record.report_numbers import Records, Report, alike, build_report, finite, of_kind
from ipu_bert.record.report_page import render_page
from sparse_ops import files
from sparse_ops.pictures import Make, write_each
from sparse_ops.saying import say

PICTURES = LOSSES, UPDATES, PATTERN = ("loss_curves.png", "pattern_updates.png", "pattern_start_end.png")
HELDOUT_CURVES = ("mlm_loss", "nsp_loss", "other_words_loss")
REPORT_FILES = ("report.json", "report.md", *PICTURES)


def write_report(run_dir: PathLike, outcome: RunOutcome, pattern: PatternChange | None) -> None:
    """Write report.json, report.md and the figures into `run_dir`, from its metrics.jsonl and `outcome`.

    `pattern` is one layer's blocks at the start and at the end; None for a dense run. Every file is written aside and
    renamed; numbers and text are there before anything is drawn, and what cannot be drawn is a line of the page and on
    standard error: no picture of an earlier report is left in its place. Raises ValueError that names the line for a
    metrics.jsonl that cannot be read.
    """
    run_dir = Path(run_dir)
    records = read_metrics(run_dir / METRICS_FILE)
    report = build_report(records, outcome)
    _write(run_dir, report, [], [])
    for name in PICTURES:
        Path(files.plain(run_dir / name)).unlink(missing_ok=True)
    drawn, told = write_each(run_dir, _figures(records, report, pattern))
    for line in told:
        say(line, sys.stderr)
    _write(run_dir, report, drawn, told)


def _write(run_dir: Path, report: Report, drawn: Sequence[str], told: Sequence[str]) -> None:
    figures = {Path(name).stem: name for name in drawn}
    files.write(run_dir / "report.json", dumps(as_json(report, figures), indent=2) + "\n")
    files.write(run_dir / "report.md", render_page(report, figures, told))


def as_json(report: Report, figures: Mapping[str, str]) -> dict[str, Any]:
    """report.json: every number of the report by name; `figures` are file names beside it."""
    outcome = report.outcome
    config, counts = outcome.config, outcome.parameters
    return {
        "name": config.run.name,
        "config": as_dict(config),
        "model": {**vars(outcome.shape), "method": config.sparsity.method},
        "parameters": {
            "sparse": counts.sparse,
            "dense": counts.dense,
            "sparse_dense_equivalent": counts.sparse_as_dense,
            "total": counts.total,
        },
        "flops_per_sequence": {
            "executed": outcome.flops.executed,
            "dense_equivalent": outcome.flops.dense_equivalent,
        },
        "heldout": asdict(report.heldout),
        "data": {
            "source": config.data.source,
            "vocab_size": outcome.shape.vocab_size,
            "splits": outcome.splits,
            "quality": asdict(outcome.quality),
            "filling": asdict(outcome.filling),
            "stream_sequences_per_second": outcome.stream_sequences_per_second,
        },
        "seconds": outcome.seconds,
        "steps": outcome.steps,
        "skipped_steps": report.skipped_steps,
        "training_mlm_loss": report.training_mlm_loss,
        "training_frequencies_loss": finite(outcome.training_frequencies_loss),
        "sequences": outcome.sequences,
        "tokens": outcome.tokens,
        "elapsed_seconds": outcome.elapsed_seconds,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "machine": asdict(outcome.machine),
        "throughput": asdict(report.throughput),
        "time_share": report.time_share,
        "exchange": asdict(report.exchange) if report.exchange else None,
        "pattern": asdict(report.pattern),
        "figures": figures,
        "no_effect": config.no_effect,
    }


def _figures(records: Records, report: Report, pattern: PatternChange | None) -> dict[str, Make]:
    """What there is to draw, by file name."""
    figures: dict[str, Make] = {}
    train, heldout = _train_curve(of_kind(records, "train")), _heldout_curve(records, report)
    if train.steps or heldout.steps:
        frequencies = report.heldout.word_frequencies_loss
        figures[LOSSES] = lambda: _plots().loss_figure(train, heldout, frequencies)
    updates = of_kind(records, "update")
    if updates:
        curves = _update_curves(updates)
        figures[UPDATES] = lambda: _plots().pattern_updates_figure(curves, report.pattern.density)
    if pattern is not None:
        figures[PATTERN] = lambda: _plots().pattern_start_end_figure(pattern)
    return figures


def _plots() -> ModuleType:
    from ipu_bert.record import plots  # matplotlib, without which a run trains and reports all the same

    return plots


def _train_curve(records: Records) -> LossCurve:
    return LossCurve(
        steps=[int(record["step"]) for record in records],
        mlm=[record.get("mlm_loss") for record in records],
        nsp=[record.get("nsp_loss") for record in records],
    )


def _heldout_curve(records: Records, report: Report) -> LossCurve:
    """Evaluations by equal batches in order of steps, the last one at the end even where no record has it."""
    losses = {int(record["step"]): tuple(map(record.get, HELDOUT_CURVES)) for record in alike(records)}
    if report.heldout.mlm_loss is not None:
        losses.setdefault(report.outcome.steps, tuple(getattr(report.heldout, name) for name in HELDOUT_CURVES))
    steps = sorted(losses)
    return LossCurve(steps, *([losses[step][k] for step in steps] for k in range(len(HELDOUT_CURVES))))


def _update_curves(updates: Records) -> UpdateCurves:
    layers = [[layer.get("explored_dof") for layer in (r.get("layers") or {}).values()] for r in updates]
    banded = all(values and all(finite(value) is not None for value in values) for values in layers)
    return UpdateCurves(
        updates=[int(r.get("update") or k) for k, r in enumerate(updates, start=1)],
        moved=[r.get("churn") for r in updates],
        explored_dof=[r.get("explored_dof") for r in updates],
        removed_new=[r.get("removed_new") for r in updates],
        layer_low=[min(values) for values in layers] if banded else (),
        layer_high=[max(values) for values in layers] if banded else (),
    )
