"""Run the cells of a study, each in a process and a folder of its own, as many at once as the machine has room for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

from ipu_bert import assemble
from ipu_bert.config import load_config
from ipu_bert.data.token_files import TOKENIZER
from ipu_bert.record.console import format_duration
from ipu_bert.record.metrics import METRICS_FILE, read_metrics
from ipu_bert.run_layout import CONFIG_FILE
from ipu_bert.signals import delayed, stop
from ipu_bert.sizes.flops import sequence_flops
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.study.definition import Cell
from ipu_bert.study.results import ANEW, Results, collect, deciding, other_settings
from sparse_ops import files

_POLL, _TELL = 1.0, 300.0  # seconds between looks at the runs, and between lines about them
PROGRAM = ("-m", "ipu_bert")  # what is run; another one with the same command line, of an example, can take its place


@dataclass
class _Running:
    cell: Cell
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        return _log(self.folder)


def cell_flops(cell: Cell) -> float:
    """FLOPs of a whole run, those of its heads included: what its time goes by."""
    config = cell.config
    shape, weights, data = bert_shape(config.model, config.data.vocab_size), assemble.weights(config), config.data
    flops = sequence_flops(shape, weights, data.sequence_length, data.max_predictions).executed
    return flops * config.train.last_step * config.train.batch_size


def run_cells(
    cells: Sequence[Cell], results: Results, runs: Path, jobs: int, say: Callable[[str], None]
) -> dict[str, str]:
    """Run what is neither in `results` yet nor in those of a study beside it; returns what went wrong, a line for the
    title of each failed cell.

    A run that was interrupted goes on from its newest checkpoint. However this function is left, no run stays behind:
    each is asked to stop, saves, and goes on when the study is started again.
    """
    for taken in results.of_other_studies(cells).values():
        results.add(taken)
    finished = results.finished(cells)
    waiting = [cell for cell in cells if cell.key not in finished]
    say(f"{len(cells) - len(waiting)} of {len(cells)} runs are finished; {jobs} at a time")
    progress = _Progress({cell.key: cell_flops(cell) for cell in waiting})
    failed: dict[str, str] = {}
    running: list[_Running] = []
    with ExitStack() as stack:
        stack.callback(lambda: stop([run.process for run in running]))
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                problem = _other_run(cell, runs / cell.folder) or _other_text(cell, results, cells)
                problem = problem or _start(cell, runs, running)
                if problem:
                    progress.leaves_out(cell)
                    failed[cell.title] = problem
                    say(f"FAILED: {cell.title}: {problem}")
                    continue
                progress.begins(cell, running[-1].folder)
                say(f"starts: {cell.title}")
            for run in [run for run in running if run.process.poll() is not None]:
                running.remove(run)
                problem = _finish(run, results, cells)
                progress.ends(run.cell)
                if problem:
                    failed[run.cell.title] = problem
                    say(f"FAILED: {run.cell.title}: {problem}")
                else:
                    loss = results.by_key[run.cell.key].mlm_loss
                    say(f"done: {run.cell.title}: held-out masked-LM loss {loss:.4f}; {progress.left()}")
            if progress.is_due():
                say(f"{len(running)} running, {len(waiting)} waiting; {progress.left()}")
            time.sleep(_POLL)
    return failed


def _other_run(cell: Cell, folder: Path) -> str:
    """What is wrong with going on in a folder: its run was begun with settings that decide another result."""
    if not (folder / CONFIG_FILE).exists():
        return ""
    try:
        found = deciding(load_config(str(folder / CONFIG_FILE), []))
        if found["data.tokenizer"] == str(folder / TOKENIZER):
            del found["data.tokenizer"]  # its own, of the same words, taken while the given one was gone
        problem = other_settings(cell, found)
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).splitlines())
    return f"{folder / CONFIG_FILE}: {problem}; {ANEW}" if problem else ""


def _other_text(cell: Cell, results: Results, cells: Sequence[Cell]) -> str:
    """What is wrong with a run whose result could not stand beside those that are there, as its text is another one.

    Nothing before the text is prepared: then the first run is told at its end.
    """
    try:
        prepared = assemble.find_data(cell.config)[1]
    except (OSError, ValueError):  # the run itself says why
        return ""
    if prepared is None:
        return ""
    for other in cells:
        text = results.by_key[other.key].settings.get("text") if other.key in results.by_key else None
        if text and other.config.data == cell.config.data and text != prepared.identity["text"]:
            return f"expected the text of {other.title}, found another one in {prepared.directory}; {ANEW}"
    return ""


def _start(cell: Cell, runs: Path, running: list[_Running]) -> str:
    """Begin a run, one more of `running`; what went wrong in one line, or nothing."""
    folder = runs / cell.folder
    command = [sys.executable, *PROGRAM, "--config", cell.base, "--resume", "auto"]
    arguments = [*command, *cell.overrides, f"run.dir={folder}"]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(files.plain(_log(folder)), "ab") as log, delayed():
            process = subprocess.Popen(
                arguments,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=_environment(),
                close_fds=False,  # the lock of the results, until the run has ended, too
            )
            running.append(_Running(cell, folder, process))
    except OSError as error:  # of this run alone: the others go on
        return files.in_words(error)
    return ""


def _environment() -> dict[str, str]:
    """Ours, in which `-m ipu_bert` is found from any folder, as it is here where the package is not installed."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _log(folder: Path) -> Path:
    return folder.with_name(folder.name + ".log")


def _finish(run: _Running, results: Results, cells: Sequence[Cell]) -> str:
    """Keep what came out; what went wrong in one line, or nothing."""
    status = run.process.returncode
    try:
        # What an earlier process left in the folder of one that failed is not what the study asked for.
        result = None if status else collect(run.cell, run.folder)
        if result is None:
            lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines()
            said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
            return f"exit status {status}: {said.strip()[:300]} (all it said: {run.log})"
        results.check(result, cells)
        results.add(result)
    except OSError as error:  # of this run alone: the others go on, and who starts the study again has its result
        return files.in_words(error)
    except ValueError as error:
        return str(error)
    return ""


class _Progress:
    """How long the rest will take, from the FLOPs that have been done since the study was started."""

    def __init__(self, flops: dict[str, float]) -> None:
        self._flops, self._started = flops, time.monotonic()
        self._begun: dict[str, float] = {}
        self._folders: dict[str, tuple[Cell, Path]] = {}
        self._done, self._told = 0.0, time.monotonic()

    def begins(self, cell: Cell, folder: Path) -> None:
        """Count from where the run stands."""
        self._folders[cell.key] = (cell, folder)
        self._begun[cell.key] = self._share(cell, folder)

    def ends(self, cell: Cell) -> None:
        """Count all of it."""
        del self._folders[cell.key]
        self._done += self._flops.pop(cell.key) * (1.0 - self._begun.pop(cell.key))

    def leaves_out(self, cell: Cell) -> None:
        """Do not wait for it."""
        del self._flops[cell.key]

    def is_due(self) -> bool:
        """Whether it is time to say something."""
        due = time.monotonic() - self._told > _TELL
        if due:
            self._told = time.monotonic()
        return due

    def left(self) -> str:
        """In words."""
        shares = {key: self._share(*found) for key, found in self._folders.items()}
        begun = {key: min(self._begun[key], share) for key, share in shares.items()}  # it may have begun further back
        self._begun.update(begun)
        done = self._done + sum(self._flops[key] * (share - begun[key]) for key, share in shares.items())
        rest = sum(flops * (1.0 - shares.get(key, 0.0)) for key, flops in self._flops.items())
        if not rest:
            return "nothing is left"
        seconds = time.monotonic() - self._started
        return f"about {format_duration(rest * seconds / done)} left" if done else "time left not known yet"

    def _share(self, cell: Cell, folder: Path) -> float:
        """Of its steps that a run has done, by its newest record."""
        try:
            records = read_metrics(folder / METRICS_FILE)
        except (OSError, ValueError):
            return 0.0
        return min(1.0, records[-1]["step"] / cell.config.train.last_step) if records else 0.0
