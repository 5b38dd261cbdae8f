"""The loop: step, update patterns, evaluate, log, save. Steps count from 1 and are saved after they are done."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Iterator, Mapping

from ipu_bert import assemble, checkpoint
from ipu_bert.config import Config, as_dict, config_hash, identity
from ipu_bert.data.quality import text_quality
from ipu_bert.engines.base import NonFiniteError, StepResult
from ipu_bert.record.metrics import Metrics
from ipu_bert.run_folder import RunFolder
from ipu_bert.stopwatch import OUTSIDE_TRAINING, Stopwatch
from ipu_bert.summary import RunTotals, write_outcome
from sparse_ops.norms import GradientBlocks


class InterruptedRunError(Exception):
    """The run was asked to stop by a signal and has saved the step it was at."""

    def __init__(self, number: int, saved: Path) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {saved}, go on with --resume")


class Trainer:
    """One run of a config, from its start or from a checkpoint folder.

    Raises ValueError or OSError with one line that names the thing, for text and files that cannot be used.
    """

    def __init__(self, config: Config, resume: Path | None = None) -> None:
        self.config = config
        groups, info = checkpoint.load(resume) if resume is not None else ({}, {})
        self.timer = Stopwatch(info.get("seconds"))
        self.data = assemble.open_data(config, progress=True)
        self.train_stream = assemble.make_stream(config, self.data, "train")
        self.heldout_stream = assemble.make_stream(config, self.data, "heldout")
        self.quality = text_quality(self.data, config.data.sequence_length)
        self.engine = assemble.make_engine(config, self.data.vocab_size, self.timer)
        self.updater = assemble.make_updater(config)
        if self.updater is not None:
            with self.engine.host_state() as host:
                self.updater.track(host.layers)
        self.step: int = info.get("step", 0)
        self._elapsed_before, self._started = info.get("elapsed_seconds", 0.0), time.monotonic()
        self._signal = 0
        self._resumed = resume is not None
        if resume is not None:
            self._load(resume, groups, info)

    def run(self) -> Path:
        """Train to the last step or `train.stop_at`, then evaluate, save and report; returns the run's folder.

        Raises InterruptedRunError after SIGINT or SIGTERM, and NonFiniteError when a loss becomes NaN.
        """
        config = self.config
        with RunFolder(config, self.step if self._resumed else None, self.data.unigram_entropy) as folder:
            self._checkpoints = folder.path / "checkpoints"
            self._started = time.monotonic()
            with self._catch_signals():
                heldout = self._loop(folder.metrics)
            self._write(folder.metrics, "end", elapsed=self._elapsed())
        totals = RunTotals(self.step, self._elapsed(), self.timer.seconds, heldout)
        with self.engine.host_state() as host:
            write_outcome(folder.path, config, self.data, self.quality, totals, host.layers)
        return folder.path

    def _loop(self, metrics: Metrics) -> dict[str, float | None]:
        """Every step, and the last evaluation and checkpoint; returns the held-out means."""
        config, last = self.config, self.config.train.stop_at or self.config.train.steps
        text = {"summary": self.quality.summary(), "warnings": self.quality.warnings()}
        self._write(metrics, "resume" if self._resumed else "start", text=text)
        heldout = self._evaluate(metrics) if self.step in (0, last) else {}
        mark = (self.step, self._training_clock())
        while self.step < last:
            result = self._train_step(metrics)
            if self.step % config.log.every == 0 or self.step == last:
                mark = self._write_train(metrics, result, mark)
            if self._signal:
                raise InterruptedRunError(self._signal, self._save())
            if self.step == last or _every(config.eval.every, self.step):
                heldout = self._evaluate(metrics)
            if self.step == last or _every(config.checkpoint.every, self.step):
                self._save()
        return heldout

    def _train_step(self, metrics: Metrics) -> StepResult:
        step = self.step + 1
        with self.timer("data"):
            batch = self.train_stream.batch(step - 1)
        due = self.updater is not None and self.updater.is_due(step)
        gradient_counts = self.updater.gradient_counts(step) if self.updater is not None else None
        try:
            result = self.engine.train_step(batch, gradient_counts)
        except NonFiniteError as error:
            saved = checkpoint.complete(self._checkpoints)
            kept = f"the newest checkpoint is {saved[-1][1]}" if saved else "no checkpoint had been saved"
            message = f"step {step}: {error}, expected a finite number; {kept}"
            raise NonFiniteError(message, error.weights_kept) from None
        self.step = step
        if due:
            self._update_patterns(metrics, result.gradients)
        return result

    def _update_patterns(self, metrics: Metrics, gradients: Mapping[str, GradientBlocks] | None) -> None:
        assert self.updater is not None
        before = time.monotonic()
        with self.timer("update"), self.engine.host_state() as host:
            report = self.updater.update(host.layers, host.moments, self.step, gradients)
        moved = {"transfers": vars(self.engine.transfers)} if self.engine.transfers is not None else {}
        self._write(metrics, "update", **report.as_record(), seconds=time.monotonic() - before, **moved)

    def _evaluate(self, metrics: Metrics) -> dict[str, float | None]:
        stream = self.heldout_stream
        in_one_pass = -(-stream.sequences_per_epoch // self.config.train.batch_size)
        batches = range(min(self.config.eval.batches, in_one_pass))
        with self.timer("evaluation"):
            sums = reduce(add, (self.engine.eval_step(stream.batch(index)) for index in batches))
        means: dict[str, float | None] = dict(sums.means())
        if not (self.train_stream.pairs and stream.pairs):
            means.update(nsp_loss=None, nsp_accuracy=None)
        self._write(metrics, "eval", **means)
        return means

    def _write_train(self, metrics: Metrics, result: StepResult, mark: tuple[int, float]) -> tuple[int, float]:
        now, data = self._training_clock(), self.config.data
        sequences_per_second = (self.step - mark[0]) * self.config.train.batch_size / (now - mark[1])
        self._write(
            metrics,
            "train",
            mlm_loss=result.mlm_loss,
            nsp_loss=result.nsp_loss if self.train_stream.pairs else None,
            lr=result.lr,
            grad_norm=result.grad_norm,
            sequences_per_second=sequences_per_second,
            tokens_per_second=sequences_per_second * data.sequence_length,
            seconds=self.timer.seconds,
            elapsed=self._elapsed(),
        )
        return self.step, now

    def _write(self, metrics: Metrics, kind: str, **values: Any) -> None:
        metrics.write({"kind": kind, "step": self.step, **values})

    def _training_clock(self) -> float:
        """A clock in seconds that stands still while the run evaluates or saves."""
        return time.monotonic() - sum(self.timer.seconds[phase] for phase in OUTSIDE_TRAINING)

    def _elapsed(self) -> float:
        """Seconds of training over all processes of the run."""
        return self._elapsed_before + time.monotonic() - self._started

    def _save(self) -> Path:
        groups = dict(self.engine.state())
        if self.updater is not None:
            groups["pattern_history"] = self.updater.state_dict()
        info = {
            "config": as_dict(self.config),
            "config_hash": config_hash(self.config),
            "identity": {**identity(self.config), "tokenizer": self.data.manifest["tokenizer_sha256"]},
            "next_batch": self.step,
            "seconds": self.timer.seconds,
            "elapsed_seconds": self._elapsed(),
        }
        with self.timer("checkpoint"):
            return checkpoint.save(self._checkpoints, self.step, groups, info, self.config.checkpoint.keep)

    def _load(self, path: Path, groups: checkpoint.Groups, info: Mapping[str, Any]) -> None:
        mine = {**identity(self.config), "tokenizer": self.data.manifest["tokenizer_sha256"]}
        checkpoint.check_same_run(path, mine, info["identity"])
        last = self.config.train.stop_at or self.config.train.steps
        if self.step > last:
            raise checkpoint.CheckpointError(f"checkpoint {path}: expected a step of at most {last}, found {self.step}")
        try:
            self.engine.load_state(groups, self.step)
            if self.updater is not None:
                self.updater.load_state_dict(groups["pattern_history"])
        except (KeyError, ValueError) as error:
            raise checkpoint.CheckpointError(f"checkpoint {path}: {error}") from None

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM, so that the step under way is finished and saved; a second one ends at once."""

        def note(number: int, frame: Any) -> None:
            self._signal = number
            signal.signal(number, signal.SIG_DFL)

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _every(period: int, step: int) -> bool:
    return period > 0 and step % period == 0
