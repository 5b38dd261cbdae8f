"""The report of a finished run: numbers (report.json), a page to read (report.md) and pictures.

`build_report` turns records and a summary into numbers and touches no file; `write_report` does the files.
The words of the page are in report_page.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any, Dict, Mapping, Sequence

from ipu_bert.record.metrics import PathLike, dumps, read_metrics, to_plain
from ipu_bert.record.plots import (
    PatternChange,
    loss_figure,
    pattern_start_end_figure,
    pattern_updates_figure,
    save_figure,
)
from ipu_bert.record.report_page import render_page
from ipu_bert.stopwatch import OUTSIDE_TRAINING, PHASES
from sparse_ops import files

Report = Dict[str, Any]

REQUIRED = (
    "name",
    "parameters",
    "flops_per_sequence",
    "heldout",
    "steps",
    "sequences",
    "tokens",
    "elapsed_seconds",
)
MAX_WARMUP_STEPS = 10
CLEAR_MARGIN = 0.05  # nats; a held-out sample of a few thousand tokens is about this noisy


def write_report(run_dir: PathLike, summary: Mapping[str, Any], pattern: PatternChange | None = None) -> Report:
    """Write report.json, report.md and the figures into `run_dir` from its metrics.jsonl and `summary`.

    `summary` holds what only the trainer knows: name, config, model, parameters {sparse, dense,
    sparse_dense_equivalent, total}, flops_per_sequence {executed, dense_equivalent}, heldout {mlm_loss,
    nsp_loss, mlm_accuracy, nsp_accuracy, unigram_entropy}, data, seconds per phase,
    steps, sequences, tokens, elapsed_seconds, peak_memory_bytes, machine. Steps, sequences, tokens, seconds
    and elapsed_seconds cover the same span of the run. ValueError names required entries that are missing.
    `pattern` is one layer's blocks at the start and at the end. Every file is written aside and renamed.
    """
    run_dir = Path(run_dir)
    records = read_metrics(run_dir / "metrics.jsonl")
    report = build_report(records, summary)
    report["figures"] = _write_figures(run_dir, records, report, pattern)
    files.write(run_dir / "report.json", dumps(report, indent=2) + "\n")
    files.write(run_dir / "report.md", render_page(report))
    return report


def build_report(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Report:
    """All numbers of report.json, strict-JSON plain values, from metrics records and the trainer's "
    "summary."""
    missing = [key for key in REQUIRED if key not in summary]
    if missing:
        raise ValueError(f"summary of the run: expected {', '.join(REQUIRED)}; missing {', '.join(missing)}")
    plain: Report = to_plain(dict(summary))
    seconds = plain.get("seconds") or _last_seconds(records)
    report: Report = {
        **{key: value for key, value in plain.items() if key != "updates"},
        "seconds": seconds,
        "peak_memory_bytes": plain.get("peak_memory_bytes"),
        "heldout": heldout_numbers(plain["heldout"], records),
        "throughput": throughput(records, plain),
        "time_share": time_share(seconds, plain["elapsed_seconds"]),
        "pattern": pattern_numbers(records, plain["parameters"]),
    }
    return to_plain(report)


# ---------------------------------------------------------------- what was learned


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def heldout_numbers(heldout: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Report:
    """The trainer's held-out results and what they say.

    initial_mlm_loss is the untrained model's, from the evaluation at step 0 if the trainer does not give it;
    below_unigram [nats] is unigram_entropy - mlm_loss, beats_unigram whether that is clearly above zero;
    nsp_learned whether NSP is clearly under ln 2; best_mlm_loss and best_step come from the evaluations of
    the whole run.
    """
    loss, entropy, nsp = heldout.get("mlm_loss"), heldout.get("unigram_entropy"), heldout.get("nsp_loss")
    gap = None if loss is None or entropy is None else float(entropy) - float(loss)
    evaluations = [r for r in records if r["kind"] == "eval" and _finite(r.get("mlm_loss"))]
    initial = next((r["mlm_loss"] for r in evaluations if r["step"] == 0), None)
    best: Mapping[str, Any] = min(evaluations, key=lambda r: float(r["mlm_loss"]), default={})
    return {
        "mlm_loss": None,
        "nsp_loss": None,
        "unigram_entropy": None,
        "initial_mlm_loss": initial,
        **heldout,
        "below_unigram": gap,
        "beats_unigram": None if gap is None else gap > CLEAR_MARGIN,
        "nsp_learned": None if nsp is None else float(nsp) < math.log(2.0) - 0.02,
        "best_mlm_loss": best.get("mlm_loss"),
        "best_step": best.get("step"),
    }


# ---------------------------------------------------------------- how fast


def step_times(records: Sequence[Mapping[str, Any]], warmup_steps: int) -> list[tuple[int, float]]:
    """(steps, seconds per step) between neighbouring train records, without evaluation and checkpoints.

    Intervals that begin before `warmup_steps`, or in which the run was stopped and resumed, are left out.
    """
    times: list[tuple[int, float]] = []
    last: Mapping[str, Any] | None = None
    for record in records:
        if record["kind"] == "resume":
            last = None
        if record["kind"] != "train" or not _finite(record.get("elapsed")):
            continue
        if last is not None and last["step"] >= warmup_steps:
            steps = int(record["step"] - last["step"])
            spent = float(record["elapsed"] - last["elapsed"])
            for phase in OUTSIDE_TRAINING:
                spent -= float(_phase(record, phase) - _phase(last, phase))
            if steps > 0 and spent > 0:
                times.append((steps, spent / steps))
        last = record
    return times


def _phase(record: Mapping[str, Any], phase: str) -> float:
    value: Any = (record.get("seconds") or {}).get(phase)
    return float(value) if _finite(value) else 0.0


def throughput(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Report:
    """Speed of training once warm.

    The headline is the mean over all steps after the first ones (data, forward, backward, optimizer and
    pattern updates; no evaluation, no checkpoints); `median` is the typical step beside it; `whole_run`
    divides by all time that passed. Executed FLOP/s are the products that were done, dense-equivalent ones
    those that a dense model of the same shape would have needed.
    """
    steps, sequences = int(summary["steps"]), float(summary["sequences"])
    warmup = min(MAX_WARMUP_STEPS, steps // 5)
    times = step_times(records, warmup) or step_times(records, 0)
    per_step = sequences / steps if steps else 0.0
    whole = _per_second(_ratio(sequences, summary["elapsed_seconds"]), summary)
    if not times:  # too short to leave anything out
        return {**whole, "step_seconds": None, "median": dict(whole), "whole_run": dict(whole)}
    measured = sum(count for count, _ in times)
    mean_seconds = sum(count * seconds for count, seconds in times) / measured
    median_seconds = median(seconds for _, seconds in times)
    return {
        **_per_second(per_step / mean_seconds, summary),
        "step_seconds": {
            "mean": mean_seconds,
            "median": median_seconds,
            "measured_steps": measured,
            "warmup_steps_left_out": warmup,
        },
        "median": _per_second(per_step / median_seconds, summary),
        "whole_run": whole,
    }


def _ratio(above: Any, below: Any) -> float | None:
    return float(above) / float(below) if _finite(above) and _finite(below) and below else None


def _per_second(sequences: float | None, summary: Mapping[str, Any]) -> Report:
    flops = summary["flops_per_sequence"]
    tokens = _ratio(summary["tokens"], summary["sequences"])

    def times(amount: Any) -> float | None:
        return sequences * float(amount) if sequences is not None and _finite(amount) else None

    return {
        "sequences_per_second": sequences,
        "tokens_per_second": times(tokens),
        "executed_flops_per_second": times(flops.get("executed")),
        "dense_equivalent_flops_per_second": times(flops.get("dense_equivalent")),
    }


def _last_seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = [record["seconds"] for record in records if record["kind"] == "train" and record.get("seconds")]
    return dict(found[-1]) if found else {}


def time_share(seconds: Mapping[str, Any], elapsed: Any) -> Report:
    """Share of the elapsed time in each phase and in `other`; the shares sum to 1."""
    spent = {phase: float(seconds.get(phase) or 0.0) for phase in PHASES}
    total = max(float(elapsed) if _finite(elapsed) else 0.0, sum(spent.values()))
    if total <= 0:
        return {**spent, "other": 1.0}
    return {
        **{phase: value / total for phase, value in spent.items()},
        "other": 1 - sum(spent.values()) / total,
    }


# ---------------------------------------------------------------- how the pattern changed


def pattern_numbers(records: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> Report:
    """What the updates did: their number, blocks moved, DOF explored, removed-new ratio (mean over "
    "updates)."""
    updates = _updates(records)
    density = _ratio(parameters.get("sparse"), parameters.get("sparse_dense_equivalent"))
    last: Mapping[str, Any] = updates[-1] if updates else {}
    return {
        "updates": len(updates),
        "density": density,
        "sparsity": None if density is None else 1 - density,
        "blocks": last.get("blocks"),
        "moved_total": sum(int(r.get("moved") or 0) for r in updates),
        "explored_dof": last.get("explored_dof", density if not updates else None),
        "removed_new": _mean(r.get("removed_new") for r in updates),
        "removed_new_last": last.get("removed_new"),
        "churn": _mean(r.get("churn") for r in updates),
        "mean_age": last.get("mean_age"),
        "seconds_per_update": _mean(r.get("seconds") for r in updates),
        "transfers": last.get("transfers"),
        "layers": {name: dict(layer) for name, layer in (last.get("layers") or {}).items()},
    }


def _updates(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in records if record["kind"] == "update"]


def _mean(values: Any) -> float | None:
    finite = [float(value) for value in values if _finite(value)]
    return sum(finite) / len(finite) if finite else None


# ---------------------------------------------------------------- pictures


def _write_figures(
    run_dir: Path, records: Sequence[Mapping[str, Any]], report: Report, pattern: PatternChange | None
) -> dict[str, str]:
    """Draw what there is to draw; {figure: file name beside report.md}."""
    figures: dict[str, str] = {}
    train = [record for record in records if record["kind"] == "train"]
    held = _heldout_curve(records, report)
    if train or held:
        figure = loss_figure(
            [r["step"] for r in train],
            [r.get("mlm_loss") for r in train],
            [r.get("nsp_loss") for r in train],
            [r["step"] for r in held],
            [r.get("mlm_loss") for r in held],
            [r.get("nsp_loss") for r in held],
            report["heldout"]["unigram_entropy"],
        )
        save_figure(figure, run_dir / "loss_curves.png")
        figures["loss_curves"] = "loss_curves.png"
    updates = _updates(records)
    if updates:
        layers = [[layer.get("explored_dof") for layer in (r.get("layers") or {}).values()] for r in updates]
        banded = all(values and all(_finite(value) for value in values) for values in layers)
        figure = pattern_updates_figure(
            [int(r.get("update") or k) for k, r in enumerate(updates, start=1)],
            [r.get("ratio") for r in updates],
            [r.get("explored_dof") for r in updates],
            [r.get("removed_new") for r in updates],
            report["pattern"]["density"],
            [min(values) for values in layers] if banded else (),
            [max(values) for values in layers] if banded else (),
        )
        save_figure(figure, run_dir / "pattern_updates.png")
        figures["pattern_updates"] = "pattern_updates.png"
    if pattern is not None:
        save_figure(pattern_start_end_figure(pattern), run_dir / "pattern_start_end.png")
        figures["pattern_start_end"] = "pattern_start_end.png"
    return figures


def _heldout_curve(records: Sequence[Mapping[str, Any]], report: Report) -> list[Mapping[str, Any]]:
    """Evaluations in order of steps, with the untrained model's loss at step 0 and the final one at the "
    "end."""
    heldout = report["heldout"]
    by_step: dict[int, Mapping[str, Any]] = {}
    if _finite(heldout.get("initial_mlm_loss")):
        by_step[0] = {
            "step": 0,
            "mlm_loss": heldout["initial_mlm_loss"],
            "nsp_loss": heldout.get("initial_nsp_loss"),
        }
    for record in records:
        if record["kind"] == "eval":
            by_step[int(record["step"])] = record
    if _finite(heldout["mlm_loss"]):
        last = int(report["steps"])
        by_step.setdefault(last, {"step": last, "mlm_loss": heldout["mlm_loss"], "nsp_loss": heldout["nsp_loss"]})
    return [by_step[step] for step in sorted(by_step)]
