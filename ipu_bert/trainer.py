"""The loop: step, update patterns, evaluate, log, save. Steps count from 1 and are saved after they are done."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping

from torch import Tensor

from ipu_bert import assemble, checkpoint
from ipu_bert.checkpoint_info import TEXTS_BEFORE
from ipu_bert.config import Config, as_dict, config_hash, identity
from ipu_bert.data.filling import filling, told_never_asked
from ipu_bert.data.kept_text import KeptText
from ipu_bert.data.quality import text_quality
from ipu_bert.data.token_files import TOKENIZER
from ipu_bert.engines.base import NonFiniteError, StepResult
from ipu_bert.heldout_before import told
from ipu_bert.judging import Judge, frequencies_in_training
from ipu_bert.machine import changed, common, conditions
from ipu_bert.ranks import ALONE, Ranks
from ipu_bert.record.context import Context
from ipu_bert.record.metrics import Metrics
from ipu_bert.run_folder import NoFolder, RunFolder, evaluated_by, kept_after
from ipu_bert.run_place import Found, Origin, look
from ipu_bert.same_run import check_goes_on
from ipu_bert.signals import InterruptedRunError, StopRequest, noted
from ipu_bert.sizes.fits import check_memory
from ipu_bert.sizes.reach import text_reached
from ipu_bert.starting import check_place, start
from ipu_bert.stopwatch import OUTSIDE_TRAINING, Stopwatch
from ipu_bert.summary import RunTotals, write_outcome
from sparse_ops import files
from sparse_ops.host_memory import total_memory_bytes
from sparse_ops.norms import GradientBlocks
from sparse_ops.saying import say


class Trainer:
    """One run of a config, from its start or from a checkpoint folder, with all of its ranks.

    Every rank does the same, in step with the others; the first one alone reads and writes checkpoints, records and
    the report, and decides about patterns. Raises ValueError or OSError with one line that names the thing, for text
    and files that cannot be used. found: what was in the run's folder when `resume` was chosen, if not just now.
    """

    def __init__(
        self, config: Config, resume: Path | None = None, ranks: Ranks = ALONE, found: Found | None = None
    ) -> None:
        self.config, self._ranks = config, ranks
        self._found = found or look(Path(config.run.dir))
        if resume is None:
            check_place(config)
        ranks.connect(config.engine.patience)
        ranks.check_same(common(config), "start")
        groups, info = checkpoint.load(resume) if resume is not None and ranks.first else ({}, {})
        groups, info = ranks.tensors_from_first(groups), ranks.plain_from_first(info)
        self.timer = Stopwatch(info.get("seconds"))
        if not config.data.tokenizer:  # else the vocabulary's size is known when the text is there
            check_memory(config, config.data.vocab_size, total_memory_bytes() // ranks.local_count)
        assemble.compile_kernels(config, ranks)  # before the text: what is wrong with them is told within seconds
        self.data = assemble.open_data(config, progress=True, ranks=ranks)
        self.train_stream = assemble.make_stream(config, self.data, "train")
        self.heldout_stream = assemble.make_stream(config, self.data, "heldout")
        self._kept = KeptText.of(self.data, self.train_stream.pairs)
        self._judge = Judge(self.data, self.heldout_stream, self._kept.seen, config.eval.batches)
        self._judged_by = len(self._judge.numbers)  # a small text has fewer of them
        self._texts_before = assemble.texts_before(config, self.data, info)
        quality = text_quality(self.data, config.data.sequence_length)
        judged = told(self._texts_before, self.data.held_out, config.model.init)
        judged += told_never_asked(filling(self.heldout_stream), "the held-out text's")
        self.quality = replace(quality, notes=(*quality.notes, *judged))
        self._filling = filling(self.train_stream)
        self.engine = assemble.make_engine(config, self.data.vocab_size, self.timer, ranks)
        assemble.choose_variants(config, ranks)
        self._train_batches = assemble.train_batches(config, self.train_stream, self.engine)
        if resume is None and config.model.init:
            self._start()
        self.updater = assemble.make_updater(config)
        text = text_reached(config, self.data.manifest["splits"], self._judged_by, self._filling)
        for line in assemble.tell_not_reached(config, text, self.updater) if ranks.first else ():
            say(f"no effect: {line}", sys.stderr)
        if self.updater is not None:
            with self.engine.host_state() as host:
                self.updater.track(host.layers)
        self.step: int = info.get("step", 0)
        self._skipped: int = info.get("skipped_in_a_row", 0)
        self._evaluates_as_before = evaluated_by(info) == config.eval.batches
        self._elapsed_before, self._started = info.get("elapsed_seconds", 0.0), time.monotonic()
        self._conditions = {**conditions(config), "ranks": ranks.count}
        # Older versions said the precision among the settings alone.
        self._changed = changed({**info.get("identity", {}), **info.get("conditions", {})}, self._conditions)
        self._stop = StopRequest()
        self._origin = None if resume is None else Origin(resume, self.step, self._skipped)
        if resume is not None:
            self._load(resume, groups, info)
        self._check_same("start")

    def _start(self) -> None:
        """Take the weights and patterns of `model.init`; moments stay zero."""
        found = start(self.config, self.data) if self._ranks.first else None
        state = self._ranks.tensors_from_first({"model": found.state} if found else {})
        self.engine.load_state({**self.engine.state(), **state}, 0)
        for line in found.said if found else ():
            say(line, sys.stderr)

    def _check_same(self, when: str) -> None:
        """Raises ValueError, on all ranks, where one holds another parameter, position or moment than the first."""
        if self._ranks.count > 1:
            with self.timer("exchange"):
                self._ranks.check_same(self.engine.digests(), when)

    def run(self) -> Path:
        """Train to the last step or `train.stop_at`, then evaluate, save and report; returns the run's folder.

        Raises InterruptedRunError after a signal that asks to stop, NonFiniteError when a loss becomes NaN, and
        ValueError or OSError before the first step when the state cannot be saved.
        """
        config, first = self.config, self._ranks.first
        place = RunFolder if first else NoFolder
        with place(config, self._origin, self._found, self._judged_by) as folder:
            self._started, before = time.monotonic(), self.timer.seconds
            self._try_out(folder)
            if first:
                files.write(folder.path / TOKENIZER, self._kept.tokenizer_json)
            self._ranks.meet()
            self._open(folder)
            with noted() as self._stop:
                heldout = self._loop(folder)
            self._write(folder.metrics, "end", elapsed=self._elapsed())
        waited = [float(share) for share in self._ranks.gather(repr(self._waited_share(before)))]
        judged = self._judged_by * config.train.batch_size
        frequencies = frequencies_in_training(self.data, self.train_stream, self._kept.seen) if first else math.nan
        totals = RunTotals(self.step, self._elapsed(), self.timer.seconds, heldout, judged, frequencies, waited)
        with self.engine.host_state() as host:
            if first:
                write_outcome(folder.path, config, self.data, self.quality, self._filling, totals, host.layers)
        self._ranks.meet()
        return folder.path

    def _try_out(self, folder: RunFolder | NoFolder) -> None:
        groups, info = self._state()
        if not self._ranks.first:
            return
        with self.timer("checkpoint"):
            checkpoint.try_out(folder.checkpoints, self.step, groups, info)
            if self.config.checkpoint.keep_best:  # on the same disk it needs no second trial of the room that is there
                near = checkpoint.same_disk(folder.checkpoints, folder.best)
                checkpoint.try_out(folder.best, self.step, {} if near else groups, info)

    def _open(self, folder: RunFolder | NoFolder) -> None:
        """Where checkpoints go, and what is there: the newest one, and the best one's held-out loss."""
        self._checkpoints, self._best = folder.checkpoints, folder.best
        best = folder.best_loss() if self.config.checkpoint.keep_best else math.inf
        origin = str(folder.origin) if folder.origin else None
        origin, self._best_loss = self._ranks.plain_from_first([origin, best])
        self._saved = Path(origin) if origin else None  # the checkpoint of this very step

    def _loop(self, folder: RunFolder | NoFolder) -> dict[str, float | None]:
        """Every step, and the last evaluation and checkpoint; returns what that recorded."""
        config, metrics, last = self.config, folder.metrics, self.config.train.last_step
        self._begin(metrics)
        made = folder.evaluation(self.step, self._judged_by) if self._evaluates_as_before else {}
        heldout = self._evaluate_if_due(metrics, self._ranks.plain_from_first(made))
        self._stop_if_asked(metrics)
        mark = (self.step, self._training_clock())
        while self.step < last:
            result = self._train_step(metrics)
            self._saved = None
            if self.step % config.log.every == 0 or self.step == last:
                mark = self._write_train(metrics, result, mark)
            heldout = self._evaluate_if_due(metrics, {})
            if self.step == last or _every(config.checkpoint.every, self.step):
                self._save(metrics)
            self._stop_if_asked(metrics)
        if Context.of_record(heldout) is None:  # an older version judged this step, by less than a report wants
            heldout = {**self._evaluate(Metrics([])), **heldout}
        return heldout

    def _begin(self, metrics: Metrics) -> None:
        """The first record of this process; says once what is not as it was when the checkpoint was written."""
        warnings = [*self.quality.warnings(), *self._filling.warnings()]
        text = {"told": self.quality.told(), "warnings": warnings}
        if self._origin is None:
            self._write(metrics, "start", text=text)
            return
        self._write(metrics, "resume", changed=self._changed, text=text)
        if self._changed and self._ranks.first:
            differing = "; ".join(self._changed)
            say(f"resumed, but not bit for bit the run it would have been: {differing}", sys.stderr)

    def _stop_if_asked(self, metrics: Metrics) -> None:
        number = self._asked_to_stop()
        if number:
            raise InterruptedRunError(number, self._saved or self._save(metrics))

    def _asked_to_stop(self) -> int:
        """The signal that has asked any rank to stop, the same number on all of them; 0: none has come."""
        return int(self._ranks.largest(self._stop.number))

    def _train_step(self, metrics: Metrics) -> StepResult:
        step = self.step + 1
        with self.timer("data"):
            batch = self._train_batches(step - 1)
        due = self.updater is not None and self.updater.is_due(step)
        gradient_counts = self.updater.gradient_counts(step) if self.updater is not None else None
        before = self.timer.seconds["update"]
        try:
            result = self.engine.train_step(batch, gradient_counts)
        except NonFiniteError as error:
            return self._skip(metrics, error, due)
        self.step, self._skipped = step, 0
        if due:
            self._update_patterns(metrics, result.gradients, self.timer.seconds["update"] - before)
        return result

    def _skip(self, metrics: Metrics, error: NonFiniteError, due: bool) -> StepResult:
        """Pass over the step after this one, a pattern update that was due with it; its losses and norm are NaN.

        Raises NonFiniteError where weights were lost or `train.skip_non_finite` steps in a row have been skipped.
        """
        step, limit = self.step + 1, self.config.train.skip_non_finite
        if not error.weights_kept or self._skipped >= limit:
            kept = self._ranks.text_from_first(self._newest())
            before = f" after {self._skipped} skipped in a row" if self._skipped else ""
            message = f"step {step}: {error}, expected a finite number{before}; {kept}"
            raise NonFiniteError(message, error.weights_kept) from None
        self.step, self._skipped = step, self._skipped + 1
        self._write(metrics, "skip", reason=str(error), in_a_row=self._skipped, limit=limit, update_left_out=due)
        return StepResult(math.nan, math.nan, math.nan, math.nan)

    def _newest(self) -> str:
        """Which checkpoint a run that cannot go on leaves behind, in words."""
        try:
            saved = checkpoint.complete(self._checkpoints)
        except OSError as error:  # of less weight than what ends the run
            return f"which checkpoint is the newest cannot be told: {error}"
        return f"the newest checkpoint is {saved[-1][1]}" if saved else "no checkpoint had been saved"

    def _update_patterns(
        self, metrics: Metrics, gradients: Mapping[str, GradientBlocks] | None, searched: float
    ) -> None:
        """searched: seconds that the step before took longer to find `gradients`; the record's have them, too."""
        assert self.updater is not None
        before = time.monotonic()
        with self.timer("update"), self.engine.host_state() as host:
            try:
                decided = self.updater.decide(host.layers, self.step, gradients) if self._ranks.first else {}
            except ValueError as error:  # what it goes by is not finite
                raise ValueError(f"{error}; {self._newest()}") from None
            moves = self._ranks.tensors_from_first(decided)
            report = self.updater.apply(host.layers, host.moments, self.step, moves)
        self._check_same(f"pattern update after step {self.step}")
        seconds = searched + time.monotonic() - before
        moved = {"transfers": vars(self.engine.transfers)} if self.engine.transfers is not None else {}
        found = {} if gradients is None else {"searched": searched}
        self._write(metrics, "update", **report.as_record(), seconds=seconds, **found, **moved)

    def _evaluate_if_due(self, metrics: Metrics, made: dict[str, float | None]) -> dict[str, float | None]:
        """What a held-out evaluation records, where one is due after this step; `made`: what an earlier process did.

        Empty where they are not due, and once the run is asked to stop: whoever goes on makes up for it.
        """
        if self.step not in (0, self.config.train.last_step) and not _every(self.config.eval.every, self.step):
            return {}
        means = made or self._evaluate(metrics)
        loss = means.get("mlm_loss")
        if loss is not None and self.config.checkpoint.keep_best and self.step and loss < self._best_loss:
            self._best_loss = loss
            judged = {"heldout_loss": loss, "heldout_batches": self._judged_by}
            saved = self._write_checkpoint(metrics, self._best, keep=1, **judged)
            if self._ranks.first:  # one of a later step may stand there, since a killed process had taken that
                checkpoint.keep_only(saved)
        return means

    def _evaluate(self, metrics: Metrics) -> dict[str, float | None]:
        with self.timer("evaluation"):
            found = self._judge.judge(self.engine.eval_step, self.engine.share, self._asked_to_stop)
        if found is None:
            return {}
        result, context = found
        means: dict[str, float | None] = {**result.means(), **context.as_record()}
        if not (self.train_stream.pairs and self.heldout_stream.pairs):
            means.update(nsp_loss=None, nsp_accuracy=None)
        self._write(metrics, "eval", batches=self._judged_by, **means)
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

    def _waited_share(self, before: Mapping[str, float]) -> float:
        """Of this process's own time of training, what it waited for other ranks; `before`: phases at its start.

        Seconds of processes before it are those of rank 0, or of other ranks altogether.
        """
        own = {phase: seconds - before[phase] for phase, seconds in self.timer.seconds.items()}
        training = time.monotonic() - self._started - sum(own[phase] for phase in OUTSIDE_TRAINING)
        return own["exchange"] / training if training > 0 else 0.0

    def _state(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """All that going on needs: tensors by group, and the info beside them."""
        groups: dict[str, Mapping[str, Tensor]] = dict(self.engine.state())
        if self.updater is not None:
            groups["pattern_history"] = self.updater.state_dict()
        groups["text"] = self._kept.to_tensors()
        info = {
            "config": as_dict(self.config),
            "config_hash": config_hash(self.config),
            "identity": {**identity(self.config), **self.data.identity},
            "held_out": self.data.held_out,
            TEXTS_BEFORE: self._texts_before,
            "conditions": self._conditions,
            "next_batch": self.step,
            "skipped_in_a_row": self._skipped,
            "seconds": self.timer.seconds,
            "elapsed_seconds": self._elapsed(),
        }
        return groups, info

    def _save(self, metrics: Metrics) -> Path:
        """Save this step, after the records up to it."""
        keep = kept_after(self._skipped, self.config.checkpoint.keep)
        self._saved = self._write_checkpoint(metrics, self._checkpoints, keep)
        return self._saved

    def _write_checkpoint(self, metrics: Metrics, folder: Path, keep: int, **more: float) -> Path:
        self._check_same(f"checkpoint of step {self.step}")
        groups, info = self._state()
        with self.timer("checkpoint"):
            metrics.sync()
            saved = checkpoint.save(folder, self.step, groups, {**info, **more}, keep) if self._ranks.first else folder
            self._ranks.meet()
            return saved

    def _load(self, path: Path, groups: checkpoint.Groups, info: Mapping[str, Any]) -> None:
        mine = {**identity(self.config), **self.data.identity}
        check_goes_on(path, mine, info, self.config.train.last_step)
        try:
            if self.updater is not None:
                self.updater.load_state_dict(groups.get("pattern_history", {}))
            self.engine.load_state(groups, self.step)
        except (KeyError, ValueError) as error:
            raise checkpoint.CheckpointError(f"checkpoint {path}: {error}") from None


def _every(period: int, step: int) -> bool:
    return period > 0 and step % period == 0
