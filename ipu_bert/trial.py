"""Some real steps of a run, timed: the model, engine and batches that it would have, and nothing written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable

from ipu_bert import assemble
from ipu_bert.bench.models import random_batch
from ipu_bert.config import Config
from ipu_bert.data.batches import Batch
from ipu_bert.engines.base import TransferRecord
from ipu_bert.ranks import Ranks
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.stopwatch import Stopwatch

DEVICE_PHASES = ("forward", "backward", "exchange", "optimizer")


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step, a mean.

    host: of it, while the engine does not compute; data: of that, making the batch; exchange: waiting for other ranks.
    """

    whole: float
    host: float
    data: float
    exchange: float


@dataclass(frozen=True)
class UpdateTimes:
    """A pattern update: how many the run has, and what the first of them cost.

    seconds: of the update, of finding the dense gradient's largest blocks where growth needs them, as a run's record of
    it has them, and of what the step after takes longer, in which PopTorch sends the moments. transfers: None where
    weights are the host's own.
    """

    number: int
    seconds: float
    transfers: TransferRecord | None


class Trial:
    """Steps of the config's run from its start. Raises ValueError or ArithmeticError as the run would.

    Batches are made on the host, one for every step: from the run's text where it is prepared, else from random ids.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        ranks.connect(config.engine.patience)
        assemble.compile_kernels(config, ranks)
        _, files = assemble.find_data(config)
        data, size = config.data, config.train.batch_size
        shape = bert_shape(config.model, assemble.vocabulary_size(config, files))
        self._timer, self._number = Stopwatch(clock=time.perf_counter), 0
        self.batches = "text" if files else "random ids"
        self._heldout = config.eval.batches
        if files:
            self._heldout = len(assemble.make_stream(config, files, "heldout").first_batches(config.eval.batches))
        self._last = config.train.last_step
        self._updater = assemble.make_updater(config)
        self._engine = assemble.make_engine(config, shape.vocab_size, self._timer, ranks)
        part, parts = self._engine.share  # of each batch, where several instances have one each
        self._batch: Callable[[int], Batch]
        if files:
            stream = assemble.make_stream(config, files, "train")
            self._batch = lambda i: stream.share(i, part, parts)
        else:
            self._batch = lambda i: random_batch(
                shape, size // parts, data.sequence_length, data.max_predictions, seed=i * parts + part
            )
        if self._updater is not None:
            with self._engine.host_state() as host:
                self._updater.track(host.layers)

    def compile(self) -> float:
        """Seconds of making what steps need ahead; none where they run as they are written."""
        batch = self._batch(0)
        return timed(lambda: self._engine.compile(batch))

    def step(self) -> float:
        """Seconds of the next step, its batch included."""
        return timed(lambda: self._engine.train_step(self._next_batch()))

    def steps(self, count: int) -> StepTimes:
        """The mean of the next steps."""
        before = self._timer.seconds
        whole = sum(self.step() for _ in range(count))
        spent = {phase: seconds - before[phase] for phase, seconds in self._timer.seconds.items()}
        host = whole - sum(spent[phase] for phase in DEVICE_PHASES)
        return StepTimes(whole / count, host / count, spent["data"] / count, spent["exchange"] / count)

    def _next_batch(self) -> Batch:
        with self._timer("data"):
            batch = self._batch(self._number)
        self._number += 1
        return batch

    def update(self, step_seconds: float, done: int = 0) -> UpdateTimes | None:
        """The first pattern update after `done` steps; None where none comes. step_seconds: of a step without any."""
        updater, engine = self._updater, self._engine
        due = sorted(step for step in updater.ratios if done < step <= self._last) if updater else []
        if updater is None or not due:
            return None
        counts, gradients, search = updater.gradient_counts(due[0]), None, 0.0
        if counts is not None:
            started = time.perf_counter()
            gradients = engine.train_step(self._next_batch(), counts).gradients
            search = max(0.0, time.perf_counter() - started - step_seconds)
        started = time.perf_counter()
        with engine.host_state() as host:
            updater.update(host.layers, host.moments, due[0], gradients)
        seconds, transfers = time.perf_counter() - started, engine.transfers
        return UpdateTimes(len(due), search + seconds + max(0.0, self.step() - step_seconds), transfers)

    def evaluation(self) -> float:
        """Seconds of one evaluation; the first batch, which may compile something, is left out.

        It takes each batch twice: with its own words and with others (judging.py).
        """
        batch = self._batch(0)
        self._engine.eval_step(batch)
        return 2 * self._heldout * timed(lambda: self._engine.eval_step(batch))


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
