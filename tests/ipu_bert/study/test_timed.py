"""What is timed of a grid, and which seconds stand beside which runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from ipu_bert.config import identity
from ipu_bert.record.metrics import dumps
from ipu_bert.study import __main__ as command
from ipu_bert.study.definition import read_study
from ipu_bert.study.results import Evaluation, RunResult
from ipu_bert.study.seconds import MachineSeconds, RowSeconds, timed_settings
from sparse_ops.bench.sampling import Summary

STUDY = """
base: quickstart
settings: {train.steps: 50, sparsity.updates: 5}
rows:
  dense: {settings: {sparsity.method: dense}}
  sparse: {settings: {sparsity.block_size: 4}}
grid: {optim.lr: [1.0e-3, 2.0e-3], train.batch_size: [32, 64], run.seed: [0, 1]}
"""


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """All runs of the study, whose losses are by row and size of a batch."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(STUDY)
    study = read_study("mine.yaml")
    runs = [
        RunResult(
            row=cell.row.label, grid=dict(cell.grid), key=cell.key, steps=50, sequences=1600,
            flops=1e9, executed_flops=2e9, seconds=9.0, unigram_entropy=6.5, word_frequencies_loss=6.3,
            evaluations=(Evaluation(50, 2.0, None),), updates=(), settings=identity(cell.config),
            machine={"processor": "x"}, revision="r", finished="now",
        )
        for cell in study.cells
    ]  # fmt: skip
    Path("results/mine").mkdir(parents=True)
    Path("results/mine/results.json").write_text(dumps({"runs": [asdict(run) for run in runs]}))
    return study


def seconds_of(config) -> RowSeconds:
    """A thousandth of a second for each sequence, twice of a dense model."""
    one = 1e-3 * config.train.batch_size * (2 if config.sparsity.method == "dense" else 1)
    return RowSeconds(Summary(one, one, one, one, 5, 0, False, 0.0), 0.0, 0, 50, timed_settings(config))


def test_each_value_of_the_grid_that_takes_time_is_timed(finished, monkeypatch, capsys):
    """The first one alone was, and the others were told that `--time` would measure them again, for ever."""
    built = {}

    def measure(configs, *_):
        built.update(configs)
        return MachineSeconds("cpu", 2, {label: seconds_of(config) for label, config in configs.items()})

    monkeypatch.setattr(command, "measure_seconds", measure)
    assert command.main(["mine.yaml", "--time"]) == 0
    assert "left out" not in capsys.readouterr().err
    assert {label: config.train.batch_size for label, config in built.items()} == {
        "dense, batch_size 32": 32, "dense, batch_size 64": 64, "sparse, batch_size 32": 32, "sparse, batch_size 64": 64
    }  # fmt: skip
    table = Path("results/mine/report.md").read_text().partition("Seconds a step")[2].partition("Against")[0]
    shown = {cells[1]: cells[2] for line in table.splitlines() if len(cells := line.split("| ")) > 4}
    by_hand = {"dense, batch_size 32": 0.064, "dense, batch_size 64": 0.128,
               "sparse, batch_size 32": 0.032, "sparse, batch_size 64": 0.064}  # fmt: skip
    assert {label.strip(): float(median) for label, median in shown.items() if "batch" in label} == by_hand


def test_seconds_of_a_rows_first_cell_alone_are_its_own(finished, capsys):
    """As an older file has them, by the row's label."""
    rows = {cell.row.label: asdict(seconds_of(cell.config)) for cell in reversed(finished.cells)}
    file = Path("results/mine/seconds.json")
    file.write_text(json.dumps({"machines": [{"machine": "cpu", "threads": 2, "rows": rows}]}))
    assert command.main(["mine.yaml", "--report"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(said) == 4  # two rows of two rates
    assert all("batch_size 64: timed with train.batch_size=32, which is 64 now" in line for line in said)
    table = Path("results/mine/report.md").read_text().partition("Seconds a step")[2]
    assert "| sparse, batch_size 32 | 0.032 |" in table
    assert "| sparse, batch_size 64 | 0" not in table.partition("Against")[0]
