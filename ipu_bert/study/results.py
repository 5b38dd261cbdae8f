"""What a study keeps of its finished runs: one JSON file, from which all tables and figures are made."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Mapping, Sequence

from ipu_bert import assemble, checkpoint
from ipu_bert.config import Config, as_dict, identity
from ipu_bert.json_file import as_list, as_record, is_count, is_line, read_object
from ipu_bert.record.metrics import METRICS_FILE, dumps, read_metrics
from ipu_bert.record.report_numbers import alike
from ipu_bert.same_run import free_settings
from ipu_bert.sizes.flops import paper_flops, sequence_flops
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.study.comparable import same_entropy
from ipu_bert.study.definition import Cell
from ipu_bert.study.source import Sources, source_of_run
from sparse_ops import files

RESULTS_FILE = "results.json"
# What decides a result and is none of the run's identity: a run may go on with another value of these.
_BESIDES = (("model", "init"), ("sparsity", "init_pattern"), ("eval", "batches"), ("engine", "name"))
# What a page has of settings and machine.
_READ = (
    ("settings", "sparsity.method", is_line),
    ("settings", "data.source", is_line),
    ("settings", "data.sequence_length", is_count),
    ("machine", "processor", is_line),
)
# What logarithms are taken of, and sums of squares made of, by which MOST is bounded.
_POSITIVE = ("flops", "executed_flops", "seconds", "unigram_entropy")
_JUDGED_BY = "heldout_batches"  # beside the settings, as the text's checksum
MOST = 1e30  # of any amount here


@dataclass(frozen=True)
class Evaluation:
    """Held-out losses [nats] after a step; nsp_loss is None without sentence pairs."""

    step: int
    mlm_loss: float
    nsp_loss: float | None


@dataclass(frozen=True)
class Update:
    """A pattern update, means over the encoder's weights: pruning ratio, explored DOF and removed-new ratio."""

    step: int
    ratio: float
    explored_dof: float
    removed_new: float | None


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    key: of its cell. flops: of one sequence, forward and backward, as the paper counts (Appendix A.2); executed_flops:
    with heads and the blocks that exist. seconds: that its processes took, on whatever else the machine did.
    unigram_entropy, word_frequencies_loss [nats]: of a guess by word frequency on the whole held-out text, by which
    that is known, and on the words that the last evaluation asked for; None in older results.
    settings: all that decides its numbers. machine, revision, finished: where, of which source and when (UTC).
    """

    row: str
    grid: Mapping[str, str]
    key: str
    steps: int
    sequences: int
    flops: float
    executed_flops: float
    seconds: float
    unigram_entropy: float
    word_frequencies_loss: float | None
    evaluations: tuple[Evaluation, ...]
    updates: tuple[Update, ...]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    revision: str
    finished: str

    @property
    def mlm_loss(self) -> float:
        """Held-out, after the last step."""
        return self.evaluations[-1].mlm_loss

    @property
    def heldout_batches(self) -> int | None:
        """How many it was judged by then, fewer than were asked for of a short text; None in older results."""
        found: int | None = self.settings.get(_JUDGED_BY)
        return found


ANEW = "bring back what has changed, or begin anew with --results and --runs in new folders"


def deciding(config: Config) -> dict[str, Any]:
    """All settings that decide a result, by section.key."""
    plain = as_dict(config)
    return {**identity(config), **{f"{section}.{key}": plain[section][key] for section, key in _BESIDES}}


def first_other(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first setting that has another value; those that are not found, as in an older release's, are left out."""
    return next((key for key, value in wanted.items() if key in found and found[key] != value), None)


def other_settings(cell: Cell, found: Mapping[str, Any]) -> str:
    """The first setting in which those of a run differ from a cell's, in words."""
    wanted = deciding(cell.config)
    free = free_settings(wanted, found)
    key = first_other({key: value for key, value in wanted.items() if key not in free}, found)
    return f"expected {key}={wanted[key]}, found a run with {key}={found[key]}" if key else ""


def _same_text(one: RunResult, other: RunResult) -> bool:
    """By its checksum, which older results lack: by its entropy then."""
    texts = [run.settings.get("text") for run in (one, other)]
    if None not in texts:
        return texts[0] == texts[1]
    return same_entropy(one.unigram_entropy, other.unigram_entropy)


class Results:
    """The results of a folder, by key; what is added is on disk when `add` returns.

    Raises ValueError that names the file for one that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RESULTS_FILE
        self.by_key = self._read()

    def _read(self) -> dict[str, RunResult]:
        if not os.path.lexists(self.path):  # a link to what is gone, as on a drive that is not there, is not nothing
            return {}
        try:
            found = [_from_dict(run) for run in as_list(read_object(self.path)["runs"])]
            by_key = {run.key: run for run in found}
            if len(by_key) < len(found):
                raise ValueError("a run twice")
            return by_key
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: expected the results of a study, found {error!r}") from None

    def finished(self, cells: Sequence[Cell]) -> dict[str, RunResult]:
        """Those of these cells that came to the cell's last step, by key.

        Raises ValueError for one that was made with other settings, or on another text than one of the same data
        settings: a table of both would compare what cannot be compared. And for one whose files are here and have
        changed since: what is run next would read another text.
        """
        found = self.kept(cells)
        if problem := self.changed(cells):
            raise ValueError(f"{problem}; {ANEW}")
        return found

    def kept(self, cells: Sequence[Cell]) -> dict[str, RunResult]:
        """`finished`, whatever their files are now: for a page of what there is."""
        return self._checked(cells, self.by_key)

    def changed(self, cells: Sequence[Cell]) -> str:
        """The first of these that has finished and whose files have changed since, in words; empty where none has."""
        sources = Sources()
        for cell in cells:
            kept = self.by_key[cell.key].settings.get("source") if cell.key in self.by_key else None
            if problem := sources.changed(cell.config, kept):
                return f"{self.path}: {cell.title}: {problem}"
        return ""

    def of_other_studies(self, cells: Sequence[Cell]) -> dict[str, RunResult]:
        """Those of these cells that are not here and that a study in a folder beside this one has finished, by key.

        What is damaged there, or would not go together with what is here, is left there.
        """
        found: dict[str, RunResult] = {}
        sources = Sources()
        for path in sorted(self.path.parent.parent.glob(f"*/{RESULTS_FILE}")):
            if path.parent.name == self.path.parent.name:
                continue
            try:
                theirs = Results(path.parent).by_key
            except (OSError, ValueError):
                continue
            for cell in cells:
                if cell.key in theirs and cell.key not in self.by_key and cell.key not in found:
                    run = replace(theirs[cell.key], row=cell.row.label, grid=dict(cell.grid))
                    if sources.changed(cell.config, run.settings.get("source")):
                        continue
                    with suppress(ValueError):
                        if cell.key in self._checked(cells, {**self.by_key, **found, cell.key: run}):
                            found[cell.key] = run
        return found

    def check(self, result: RunResult, cells: Sequence[Cell]) -> None:
        """Raises ValueError where this one could not be read again, and, as `finished`, where the results with it would
        not go together.
        """
        self._checked(cells, {**self.by_key, result.key: _as_read(result)})

    def _checked(self, cells: Sequence[Cell], by_key: Mapping[str, RunResult]) -> dict[str, RunResult]:
        found = [(cell, by_key[cell.key]) for cell in cells if cell.key in by_key]
        found = [(cell, run) for cell, run in found if run.steps == cell.config.train.last_step]
        first: dict[str, tuple[Cell, RunResult]] = {}
        for cell, run in found:
            problem = other_settings(cell, run.settings)
            other, its = first.setdefault(repr(cell.config.data), (cell, run))
            if not problem and not _same_text(run, its):
                problem = f"expected the text of {other.title}, found another one"
            if problem:
                raise ValueError(f"{self.path}: {cell.title}: {problem}; {ANEW}")
        return {cell.key: run for cell, run in found}

    def add(self, result: RunResult) -> None:
        """Keep one more, in the place of an older one of its key, beside what others have put there since it was read.

        Raises ValueError, and writes nothing, where the file was damaged since or this one could not be read again.
        """
        self.by_key = {**self.by_key, **self._read(), result.key: _as_read(result)}
        text = dumps({"runs": [asdict(run) for run in self.by_key.values()]}, indent=1)
        files.write(self.path, text + "\n")


def _as_read(result: RunResult) -> RunResult:
    """As the next one who reads the file has it. Raises ValueError where it would be refused, with all others there."""
    return _from_dict(json.loads(dumps(asdict(result))))


def _from_dict(run: Mapping[str, Any]) -> RunResult:
    evaluations = tuple(as_record(Evaluation, one) for one in as_list(run["evaluations"]))
    updates = tuple(as_record(Update, one) for one in as_list(run["updates"]))
    found = as_record(RunResult, {"word_frequencies_loss": None, **run}, evaluations=evaluations, updates=updates)
    if not evaluations or evaluations[-1].step != found.steps:
        raise ValueError(f"expected an evaluation after step {found.steps}, the last, found none")
    amounts = {name: getattr(found, name) for name in _POSITIVE}
    if found.word_frequencies_loss is not None:
        amounts["word_frequencies_loss"] = found.word_frequencies_loss
    for name, value in [*amounts.items(), *(("mlm_loss", one.mlm_loss) for one in evaluations)]:
        if not 0 < value < MOST:
            raise ValueError(f"{name}: expected a number above 0 and below {MOST:g}, found {value}")
    for name, key, is_right in _READ:
        value = getattr(found, name).get(key)
        if not is_right(value):
            raise ValueError(f"{name}: expected {key}, found {value!r:.60}")
    judged_by = found.settings.get(_JUDGED_BY)
    if judged_by is not None and not (is_count(judged_by) and judged_by):
        raise ValueError(f"settings: expected {_JUDGED_BY} above 0, found {judged_by!r:.60}")
    return found


def collect(cell: Cell, folder: Path) -> RunResult | None:
    """The result of a cell's run in its folder; None where it has not come to its end.

    Raises ValueError for metrics or a report that cannot be read or are no run's.
    """
    try:
        return _collected(cell, folder)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: expected the metrics and report of a run, found {error!r}") from None


def _collected(cell: Cell, folder: Path) -> RunResult | None:
    config, last = cell.config, cell.config.train.last_step
    if not (folder / METRICS_FILE).exists():
        return None
    records = read_metrics(folder / METRICS_FILE)
    ends = [record for record in records if record["kind"] == "end" and record["step"] == last]
    if not ends or not (folder / "report.json").exists():
        return None
    report = read_object(folder / "report.json")
    shape = bert_shape(config.model, report["model"]["vocab_size"])
    weights, data = assemble.weights(config), config.data
    text, judged = _text_of(folder), alike(records)
    besides = {
        "text": text,
        "source": source_of_run(config, text),
        _JUDGED_BY: judged[-1].get("batches") if judged else None,
    }
    return RunResult(
        row=cell.row.label,
        grid=dict(cell.grid),
        key=cell.key,
        steps=last,
        sequences=last * config.train.batch_size,
        flops=paper_flops(shape, weights, data.sequence_length),
        executed_flops=sequence_flops(shape, weights, data.sequence_length, data.max_predictions).executed,
        seconds=ends[-1]["elapsed"],
        unigram_entropy=report["heldout"]["unigram_entropy"],
        word_frequencies_loss=report["heldout"]["word_frequencies_loss"],
        evaluations=tuple(Evaluation(r["step"], r["mlm_loss"], r["nsp_loss"]) for r in judged),
        updates=tuple(
            Update(r["step"], r["ratio"], r["explored_dof"], r["removed_new"]) for r in records if r["kind"] == "update"
        ),
        settings={**deciding(config), **besides},
        machine=report["machine"],
        revision=_revision(),
        finished=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    )


def _text_of(folder: Path) -> str | None:
    """The checksum of what a run has read, by its newest checkpoint; None where an older version wrote that."""
    found: str | None = checkpoint.read_info(checkpoint.find(folder)).get("identity", {}).get("text")
    return found


def _revision() -> str:
    """The commit of the source, where it is a checkout."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
