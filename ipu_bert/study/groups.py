"""What a table and a figure have a line for: the finished runs of a row that differ in nothing but the seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from ipu_bert.config import Config
from ipu_bert.study.definition import SEED, Cell, Row, Study
from ipu_bert.study.results import RunResult
from ipu_bert.study.seconds import MachineSeconds, RowSeconds, timed_settings
from ipu_bert.study.statistics import Mean, mean


@dataclass(frozen=True)
class Group:
    """config: of its first cell. grid: without the seed. runs: by seed, at least one; cells: how many the study has."""

    row: Row
    config: Config
    grid: Mapping[str, str]
    runs: Mapping[str, RunResult]
    cells: int

    @property
    def label(self) -> str:
        """The row's, and the values of the grid that it stands for."""
        return _label(self.row, self.grid)

    @property
    def first(self) -> RunResult:
        """One of them, for what all have in common."""
        return next(iter(self.runs.values()))

    @property
    def unigram_entropy(self) -> float:
        """Loss of a guess by word frequency on the whole held-out text [nats]."""
        return self.first.unigram_entropy

    @property
    def word_frequencies_loss(self) -> float | None:
        """Of such a guess on the words that the last evaluation asked for [nats]; None where no run has kept it."""
        return next((loss for run in self.runs.values() if (loss := run.word_frequencies_loss) is not None), None)

    @property
    def heldout_batches(self) -> int | None:
        """How many its runs were judged by at the end; None where none has kept it."""
        return next((n for run in self.runs.values() if (n := run.heldout_batches) is not None), None)

    @property
    def is_dense(self) -> bool:
        """Whether its encoder is."""
        return bool(self.first.settings["sparsity.method"] == "dense")

    @property
    def losses(self) -> dict[str, float]:
        """Held-out masked-LM loss at the end [nats], by seed."""
        return {seed: run.mlm_loss for seed, run in self.runs.items()}

    @property
    def loss(self) -> Mean:
        """Over seeds."""
        return mean(list(self.losses.values()))

    @property
    def flops(self) -> float:
        """Of the whole run, as the paper counts."""
        return self.first.flops * self.first.sequences

    @property
    def explored_dof(self) -> float | None:
        """After the last update, mean over seeds; None where there are none."""
        found = [run.updates[-1].explored_dof for run in self.runs.values() if run.updates]
        return mean(found).value if found else None

    @property
    def removed_new(self) -> float | None:
        """By the last update, mean over the seeds in which blocks were new before it; None where there are none."""
        found = [run.updates[-1].removed_new for run in self.runs.values() if run.updates]
        known = [share for share in found if share is not None]
        return mean(known).value if known else None

    def curve(self) -> list[tuple[int, Mean]]:
        """(step, loss over seeds) of the evaluations that all of its runs have."""
        by_step = [{e.step: e.mlm_loss for e in run.evaluations} for run in self.runs.values()]
        steps = sorted(set.intersection(*(set(found) for found in by_step)))
        return [(step, mean([found[step] for found in by_step])) for step in steps]


def group(study: Study, results: Mapping[str, RunResult]) -> list[Group]:
    """The study's groups in the order of its rows, those that have a finished run."""
    cells: dict[tuple[str, tuple[tuple[str, str], ...]], list[Cell]] = {}
    for row in study.rows:
        for cell in study.cells:
            if cell.row == row:
                cells.setdefault((row.label, tuple(_without_seed(cell.grid).items())), []).append(cell)
    found = [_group(some, results) for some in cells.values()]
    return [one for one in found if one.runs]


def timed_configs(study: Study) -> dict[str, Config]:
    """What there is to time, by `timed_label`: the first cell of each, of those whose steps take the same time."""
    return {timed_label(cell): cell.config for cell in reversed(study.cells)}


def timed_label(one: Cell | Group) -> str:
    """The row's, and the values of the grid that a step's time depends on."""
    takes_time = timed_settings(one.config)
    return _label(one.row, {key: value for key, value in one.grid.items() if key in takes_time})


def timed(groups: Sequence[Group], machine: MachineSeconds) -> list[tuple[Group, RowSeconds]]:
    """Those that were timed on a machine, with all settings of the group that a step's time depends on."""
    return [(one, row) for one, row in _measured(groups, machine) if not row.other_setting(one.config)]


def outdated(groups: Sequence[Group], machine: MachineSeconds) -> dict[str, str]:
    """The others that were timed, by label: what has changed since."""
    problems = {one.label: row.other_setting(one.config) for one, row in _measured(groups, machine)}
    return {label: problem for label, problem in problems.items() if problem}


def _measured(groups: Sequence[Group], machine: MachineSeconds) -> list[tuple[Group, RowSeconds]]:
    """By their label, or by the row's: that of its first cell, which older files have alone."""
    found = [(one, machine.rows.get(timed_label(one)) or machine.rows.get(one.row.label)) for one in groups]
    return [(one, row) for one, row in found if row]


def _label(row: Row, grid: Mapping[str, str]) -> str:
    return ", ".join([row.label, *(f"{key.rpartition('.')[2]} {value}" for key, value in grid.items())])


def _group(cells: Sequence[Cell], results: Mapping[str, RunResult]) -> Group:
    runs = {cell.grid.get(SEED, "0"): results[cell.key] for cell in cells if cell.key in results}
    return Group(cells[0].row, cells[0].config, _without_seed(cells[0].grid), runs, len(cells))


def _without_seed(grid: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in grid.items() if key != SEED}
