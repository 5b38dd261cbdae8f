"""How long a run will take, from a few real steps: what `--dry-run --measure` prints."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Callable

from ipu_bert import assemble
from ipu_bert.bench.models import random_batch
from ipu_bert.config import Config
from ipu_bert.data.batches import Batch
from ipu_bert.engines.base import Engine
from ipu_bert.record.console import format_duration
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.stopwatch import Stopwatch

MEASURED_STEPS = 2  # after one to warm up


@dataclass(frozen=True)
class RunTimes:
    """Seconds of one step, one pattern update and one evaluation, and how many of each the run has.

    An update counts with what a step that finds the dense gradient's largest blocks takes longer.
    """

    steps: int
    step_seconds: float
    updates: int
    update_seconds: float
    evaluations: int
    evaluation_seconds: float

    @property
    def total_seconds(self) -> float:
        """Of the whole run; making batches, saving and preparing text are left out."""
        return (
            self.steps * self.step_seconds
            + self.updates * self.update_seconds
            + self.evaluations * self.evaluation_seconds
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "total_seconds": self.total_seconds, "total_hours": self.total_seconds / 3600}

    def render(self) -> str:
        """For a reader."""
        steps = f"{self.step_seconds:.3g} s a step: "
        updates = f"{self.updates:,} pattern updates of {self.update_seconds:.3g} s add "
        evaluations = f"{self.evaluations:,} evaluations of {self.evaluation_seconds:.3g} s add "
        lines = [
            steps + f"{format_duration(self.steps * self.step_seconds)} for {self.steps:,} steps",
            updates + format_duration(self.updates * self.update_seconds) if self.updates else "no pattern updates",
            evaluations + format_duration(self.evaluations * self.evaluation_seconds),
            f"{self.total_seconds / 3600:.2f} h in all; mean of {MEASURED_STEPS} steps after a first one, random text; "
            "making batches, saving, preparing text left out",
        ]
        return "time        " + "\n            ".join(lines)


def measure(config: Config) -> RunTimes:
    """Build the run's model and time its steps, an update and an evaluation; nothing is written.

    Raises ValueError or ArithmeticError as the run would.
    """
    _, files = assemble.find_data(config)
    data, train, last = config.data, config.train, config.train.last_step
    shape = bert_shape(config.model, files.vocab_size if files else data.vocab_size)
    batch = random_batch(shape, train.batch_size, data.sequence_length, data.max_predictions, seed=0)
    engine = assemble.make_engine(config, shape.vocab_size, Stopwatch())
    engine.train_step(batch)
    step_seconds = sum(_timed(lambda: engine.train_step(batch)) for _ in range(MEASURED_STEPS)) / MEASURED_STEPS
    updates, update_seconds = _updates(config, engine, batch, step_seconds, last)
    batches = config.eval.batches
    if files:
        batches = len(assemble.make_stream(config, files, "heldout").first_batches(batches))
    engine.eval_step(batch)
    return RunTimes(
        steps=last,
        step_seconds=step_seconds,
        updates=updates,
        update_seconds=update_seconds,
        evaluations=_evaluations(config.eval.every, last),
        evaluation_seconds=batches * _timed(lambda: engine.eval_step(batch)),
    )


def _updates(config: Config, engine: Engine, batch: Batch, step_seconds: float, last: int) -> tuple[int, float]:
    """How many pattern updates there are, and the seconds of the first."""
    updater = assemble.make_updater(config)
    due = sorted(step for step in updater.ratios if step <= last) if updater else []
    if updater is None or not due:
        return 0, 0.0
    with engine.host_state() as host:
        updater.track(host.layers)
    counts, gradients, search_seconds = updater.gradient_counts(due[0]), None, 0.0
    if counts is not None:
        started = time.perf_counter()
        gradients = engine.train_step(batch, counts).gradients
        search_seconds = max(0.0, time.perf_counter() - started - step_seconds)
    started = time.perf_counter()
    with engine.host_state() as host:
        updater.update(host.layers, host.moments, due[0], gradients)
    return len(due), search_seconds + time.perf_counter() - started


def _evaluations(every: int, last: int) -> int:
    """Before the first step, at each multiple of `every`, and after the last step."""
    return 1 + (-(-last // every) if every else 1)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
