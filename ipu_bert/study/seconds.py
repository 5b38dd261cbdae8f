"""Seconds a step of several runs, in turn in one process: what loss over steps becomes loss over seconds by.

Runs of a study stand on different days, processors and neighbours; their own seconds cannot be compared.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Mapping

import torch

from ipu_bert.config import Config, as_dict, identity
from ipu_bert.json_file import as_list, as_record, read_object
from ipu_bert.machine import processor
from ipu_bert.ranks import ALONE
from ipu_bert.record.metrics import dumps
from ipu_bert.study.results import MOST, first_other
from ipu_bert.trial import Trial
from sparse_ops import files
from sparse_ops.bench.sampling import Summary, alternate, summarize

SECONDS_FILE = "seconds.json"
REPEATS = 7  # rounds, where nothing else is said
_TAKE_NO_TIME = ("run.seed", "optim.lr", "optim.dense_lr", "optim.warmup_steps", "optim.schedule")  # of what decides
_BESIDES = (("engine", "name"), ("engine", "kernel"), ("train", "stop_at"))  # of what does not decide a run's numbers


@dataclass(frozen=True)
class RowSeconds:
    """step: seconds of one. update: of a pattern update; updates: how many a run of so many steps has.

    settings: that these depend on, of the config that was timed, by section.key.
    """

    step: Summary
    update: float
    updates: int
    steps: int
    settings: Mapping[str, Any]

    @property
    def per_step(self) -> float:
        """Seconds of a step and its share of the updates."""
        return self.step.seconds + self.update * self.updates / self.steps

    def other_setting(self, config: Config) -> str:
        """A setting that has changed since, in words; empty where none has that these depend on."""
        wanted = timed_settings(config)
        key = first_other(wanted, self.settings)
        return f"timed with {key}={self.settings[key]!r:.60}, which is {wanted[key]!r:.60} now" if key else ""


@dataclass(frozen=True)
class MachineSeconds:
    """All that was timed on one machine. rows: by label, of older files by that of the row."""

    machine: str
    threads: int
    rows: Mapping[str, RowSeconds]


def timed_settings(config: Config) -> dict[str, Any]:
    """All that the time of a run's steps and updates depends on, but the machine and its threads."""
    plain = as_dict(config)
    found = {**identity(config), **{f"{section}.{key}": plain[section][key] for section, key in _BESIDES}}
    if config.engine.name == "ipu":
        found.update({f"ipu.{key}": value for key, value in plain["ipu"].items()})
    return {key: value for key, value in found.items() if key not in _TAKE_NO_TIME}


def measure_seconds(configs: Mapping[str, Config], repeats: int, say: Callable[[str], None]) -> MachineSeconds:
    """Time steps of these configs, by label, with all threads of the machine whatever the runs have.

    Raises ValueError as a run would.
    """
    trials = {}
    for label, config in configs.items():
        say(f"building {label}")
        trials[label] = Trial(replace(config, engine=replace(config.engine, threads=0)), ALONE)
    say(f"{repeats} rounds of {len(trials)} steps, after one to warm up")
    samples = alternate({label: trial.step for label, trial in trials.items()}, repeats)
    rows = {}
    for label, trial in trials.items():
        summary = summarize(samples[label])
        update = trial.update(summary.seconds)
        seconds, number = (update.seconds, update.number) if update else (0.0, 0)
        config = configs[label]
        rows[label] = RowSeconds(summary, seconds, number, config.train.last_step, timed_settings(config))
    return MachineSeconds(processor(), torch.get_num_threads(), rows)


def read_seconds(folder: Path) -> list[MachineSeconds]:
    """What has been measured, by machine.

    Raises ValueError that names the file for one that is damaged, or of a release that did not say what was timed.
    """
    path = folder / SECONDS_FILE
    if not os.path.lexists(path):  # a link to what is gone is not nothing
        return []
    try:
        found = [_from_dict(one) for one in as_list(read_object(path)["machines"])]
        if len({(one.machine, one.threads) for one in found}) < len(found):
            raise ValueError("a machine twice")
        return found
    except (KeyError, TypeError, ValueError) as error:
        problem = f"expected seconds by machine, found {error!r}"
        raise ValueError(f"{path}: {problem}; once the file is gone, --time measures anew") from None


def write_seconds(folder: Path, found: MachineSeconds) -> None:
    """Keep them, in the place of older ones of the same processor and number of threads."""
    same = (found.machine, found.threads)
    others = [one for one in read_seconds(folder) if (one.machine, one.threads) != same]
    files.write(folder / SECONDS_FILE, dumps({"machines": [asdict(one) for one in [*others, found]]}, indent=1) + "\n")


def _from_dict(found: Mapping[str, Any]) -> MachineSeconds:
    if not isinstance(found["rows"], dict):
        raise ValueError(f"rows: expected an object, found {found['rows']!r:.60}")
    rows = {
        label: as_record(RowSeconds, row, step=as_record(Summary, row["step"])) for label, row in found["rows"].items()
    }
    for label, row in rows.items():
        if not row.steps:
            raise ValueError(f"{label}: steps: expected at least 1, found 0")
        if not 0 < row.per_step < MOST:
            raise ValueError(f"{label}: expected seconds above 0 and below {MOST:g}, found {row.per_step}")
        if not isinstance(row.settings.get("sparsity.method"), str):
            raise ValueError(f"{label}: settings: expected sparsity.method, found none")
    return as_record(MachineSeconds, found, rows=rows)
