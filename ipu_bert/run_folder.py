"""The folder of a run: what it was called with, the files that metrics go to, and a run that goes back."""

from __future__ import annotations

import contextlib
import math
import sys
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Mapping, Sequence

import yaml

from ipu_bert import checkpoint, moving
from ipu_bert.config import Config, as_dict
from ipu_bert.record.console import ConsoleSink
from ipu_bert.record.context import RECORDED
from ipu_bert.record.metrics import (
    MEANS,
    METRICS_FILE,
    JsonlSink,
    Metrics,
    Record,
    Sink,
    TensorBoardSink,
    WandbSink,
    check_packages,
    read_metrics,
    split_at,
    write_metrics,
)
from ipu_bert.record.report import REPORT_FILES
from ipu_bert.run_layout import BEST, BRANCHES, CHECKPOINTS, CONFIG_FILE, runs_of
from ipu_bert.run_place import (
    ASIDE,
    Found,
    Origin,
    check_as_found,
    check_same_run,
    free_name,
    hold,
    is_own,
    look,
    make_room,
    records_before,
)
from sparse_ops import files
from sparse_ops.saying import say

WANDB_PAGE = "wandb_id"  # the id of the page at W&B that the run is shown on


class RunFolder:
    """Opens a run's folder for one process; a context manager that closes the metrics and lets go of the folder.

    A new run moves an earlier one that has the same folder to NAME.1, NAME.2, ..., so nothing is lost; a run that goes
    back to an older checkpoint moves what came after it to branches/ in the folder, and one that judges by other
    batches the best checkpoint. The best one is that of the lowest loss in its records, where that is found. Raises
    ValueError when another process is training there, or was there since it looked as `found`, when the folder holds
    something that is not a run, another run than the one resumed, or, where a new run moves it aside, one below.
    judges: how many held-out batches judge the run, where the text has fewer than eval.batches.
    """

    def __init__(
        self,
        config: Config,
        origin: Origin | None,
        found: Found | None = None,
        judges: int | None = None,
    ) -> None:
        check_packages(config.log.tensorboard, config.log.wandb)  # first: a start that is refused changes no run
        self.path = Path(config.run.dir)
        self.checkpoints, self.best = self.path / CHECKPOINTS, self.path / BEST
        self._batches = config.eval.batches
        self._judged_by = self._batches if judges is None else judges
        found = found or look(self.path)
        for name in (CONFIG_FILE, METRICS_FILE, WANDB_PAGE):
            files.plain(self.path / name)
        if origin is None:
            make_room(self.path, found)
            found = Found(None)  # what was there is elsewhere
        else:
            check_same_run(self.path, origin)
        self.path.mkdir(parents=True, exist_ok=True)
        files.sync(self.path.parent)
        self._lock = hold(self.path)
        check_as_found(self.path, found)
        self._clean()
        self.origin = None  # where the run goes on from, in its own folder: to be found until it has saved anything
        if origin is not None:
            keep_best, is_new = config.checkpoint.keep_best, not checkpoint.complete(self.checkpoints)

            def take_over() -> None:
                self._take_records(origin)
                if keep_best and is_new:
                    self._take_better_best(origin)

            self.origin = checkpoint.adopt(origin.checkpoint, origin.step, self.checkpoints, before=take_over)
            self._go_back(origin.step)
            if keep_best:
                self._put_other_best_aside()
            self._keep_one_best()
            if keep_best and not is_new:
                self._take_better_best(origin)
            keep = kept_after(origin.skipped, config.checkpoint.keep)
            checkpoint.prune(self.checkpoints, origin.step, keep)  # where a kill came between
            if not is_own(self.path, origin.checkpoint):
                say(f"goes on from {origin.checkpoint} in another folder, {self.path}", sys.stdout)
        files.write(self.path / CONFIG_FILE, yaml.safe_dump(as_dict(config), sort_keys=False))
        resume_step = None if origin is None else origin.step
        sinks: list[Sink] = [JsonlSink(self.path / METRICS_FILE, resume_step)]
        if config.log.tensorboard:
            sinks.append(TensorBoardSink(self.path / "tensorboard", resume_step))
        if config.log.wandb:
            page = _page(self.path / WANDB_PAGE)
            sinks.append(WandbSink("ipu-bert-dynsparse", config.run.name, self.path, as_dict(config), page))
        sinks.append(ConsoleSink(config.train.last_step))
        self.metrics = Metrics(sinks)

    def evaluation(self, step: int, batches: int) -> dict[str, float | None]:
        """The evaluation after `step` by so many batches, where the run has recorded it last; else empty.

        Records of older versions do not say by how many.
        """
        found = [record for record in read_metrics(self.path / METRICS_FILE) if record["kind"] == "eval"][-1:]
        for record in found:
            if (record["step"], record.get("batches", batches)) == (step, batches):
                means = {key: math.nan if record[key] is None else record[key] for key in MEANS}
                return {**means, **{key: record[key] for key in RECORDED if key in record}}
        return {}

    def best_loss(self) -> float:
        """Held-out loss of the best checkpoint, judged by as many batches as this run is.

        Infinite where there is none, or one judged by other batches, or, with a warning, a damaged one.
        """
        try:
            return self._loss_of_best()
        except checkpoint.CheckpointError as error:
            say(f"no best checkpoint until the next evaluation: {error}", sys.stderr)
            return math.inf

    def _loss_of_best(self) -> float:
        """As `best_loss`; raises CheckpointError for a damaged one."""
        found = checkpoint.complete(self.best)
        info = checkpoint.read_info(found[-1][1]) if found else {}
        return float(info.get("heldout_loss", math.inf)) if self._is_alike(info) else math.inf

    def _clean(self) -> None:
        """Remove what killed processes left; nobody else is here while the lock is held."""
        for path in self.path.iterdir():
            if ASIDE.fullmatch(path.name) and path.is_file():
                path.unlink()
        branches = (self.path / BRANCHES).glob("*")  # killed while it was copied to another disk
        for run in (self.path, *branches):
            checkpoint.clean(run / CHECKPOINTS)
            checkpoint.clean(run / BEST)

    def _take_records(self, origin: Origin) -> None:
        """What was recorded before this folder's first step: there before its checkpoint, by which `auto` goes on."""
        if not (self.path / METRICS_FILE).exists():
            records = records_before(origin)
            if records:
                write_metrics(self.path / METRICS_FILE, records)

    def _go_back(self, step: int) -> None:
        """Move checkpoints after `step`, with the report and a copy of the records, to a place of their own, if there
        are such.

        The newest checkpoint goes last, and the best one after it: until then a killed process has left the run that it
        was. A best one that stays, after a kill just then or of steps that a killed process took, is of steps that the
        run is about to take again. Where something cannot be copied to the disk of the branch, nothing has changed.
        """
        later = [path for number, path in checkpoint.complete(self.checkpoints) if number > step]
        if not later:
            return
        best = [path for number, path in checkpoint.complete(self.best) if number > step]
        report = [self.path / name for name in (WANDB_PAGE, *REPORT_FILES)]  # what comes now gets its own
        metrics = self.path / METRICS_FILE
        records = split_at(read_metrics(metrics), step)[1] if metrics.exists() else None
        branch = self._to_branch(f"after_step_{step:08d}", [*report, *later, *best], records)
        say(f"went back to step {step}; what came after it is in {branch} now", sys.stdout)

    def _is_alike(self, info: Mapping[str, Any]) -> bool:
        """Whether as many batches as judge this run judged a best one; older versions kept how many were asked for."""
        judged = info.get("heldout_batches")
        return evaluated_by(info) == self._batches if judged is None else bool(judged == self._judged_by)

    def _put_other_best_aside(self) -> None:
        """Move best checkpoints that other batches judged to a place of their own: none of this run's takes theirs."""

        def is_other(path: Path) -> bool:
            try:
                return not self._is_alike(checkpoint.read_info(path))
            except checkpoint.CheckpointError:  # told where the best one's loss is asked for
                return False

        other = [path for _, path in checkpoint.complete(self.best) if is_other(path)]
        if other:
            branch = self._to_branch("best_by_other_batches", other, None)
            say(
                f"the best checkpoint was not judged by {self._judged_by} batches, as this run is: it is "
                f"in {branch} now",
                sys.stdout,
            )

    def _to_branch(self, name: str, paths: Sequence[Path], records: Sequence[Record] | None) -> Path:
        """Move, in this order, those of a run's files and folders that are there to a new place in branches/, and write
        records there; returns it. Where something cannot be copied to the disk of the branch, nothing has changed.
        """
        branch = free_name(self.path / BRANCHES / name)
        moves = {path: branch / path.relative_to(self.path) for path in paths if path.exists()}
        targets, sources = ({path.parent for path in one} for one in (moves.values(), moves))
        try:
            for folder in targets:
                folder.mkdir(parents=True, exist_ok=True)
            if records is not None:
                write_metrics(branch / METRICS_FILE, records)
            moving.copy_afar(moves)
        except BaseException:
            moving.remove(branch)
            raise
        for folder in (*targets, branch, branch.parent, self.path):
            files.sync(folder)  # before what was copied is removed where it was
        moving.move(moves)
        for folder in (*targets, branch, self.path, *sources):
            files.sync(folder)
        return branch

    def _keep_one_best(self) -> None:
        """Remove all but the best of several, as a kill or an older version left them; of equal ones the newest stays.

        Those that were judged by as many batches as this run is come first.
        """

        def rank(path: Path) -> tuple[bool, float]:
            try:
                info = checkpoint.read_info(path)
            except checkpoint.CheckpointError:
                return True, math.inf
            return not self._is_alike(info), float(info.get("heldout_loss", math.inf))

        found = [path for _, path in reversed(checkpoint.complete(self.best))]
        if len(found) > 1:
            checkpoint.keep_only(min(found, key=rank))

    def _take_better_best(self, origin: Origin) -> None:
        """Where the run was better before than its best checkpoint is, keep that step's as the best, if it is found.

        As after it had kept no best one, in another folder, or later than where it went back to: else said in a line.
        """
        held = math.inf
        with contextlib.suppress(checkpoint.CheckpointError):
            held = self._loss_of_best()
        better = [(loss, step) for loss, step in self._judged(origin.step) if loss < held]
        if not better:
            return
        loss, step = min(better)
        kept = self._kept_of(step, loss, origin)
        if kept is None:
            where = f"step {step}, of which no checkpoint is kept: {self.best} is not of it"
        else:
            judged = {"heldout_loss": loss, "heldout_batches": self._judged_by}
            try:
                where = f"{kept}: it is copied to {checkpoint.copy_alone(kept, self.best, judged)}"
            except OSError as error:  # as on a full disk, on which there may be room again after pruning
                where = f"{kept}, of which no copy could be made: {error}"
        say(f"the lowest held-out loss so far, {loss:.4f}, is that of {where}", sys.stdout)

    def _judged(self, last: int) -> list[tuple[float, int]]:
        """(loss, step) of trained steps up to `last` that as many batches have judged as judge this run.

        Records of older versions do not say by how many.
        """
        metrics = self.path / METRICS_FILE
        return [
            (float(record["mlm_loss"]), int(record["step"]))
            for record in (read_metrics(metrics) if metrics.exists() else ())
            if record["kind"] == "eval"
            and 0 < record["step"] <= last
            and record["mlm_loss"] is not None
            and record.get("batches", self._judged_by) == self._judged_by
        ]

    def _kept_of(self, step: int, loss: float, origin: Origin) -> Path | None:
        """The whole checkpoint of a step, in this run's folder or in that of the run which it goes on from.

        A best one, or one put aside, may be of another way to that step: then its loss is another one.
        """
        runs = list(dict.fromkeys((self.path, *runs_of(origin.checkpoint))))
        best = [*(run / BEST for run in runs), *(self.path / BRANCHES).glob(f"*/{BEST}")]
        for folder in (*(run / CHECKPOINTS for run in runs), *best):
            with contextlib.suppress(checkpoint.CheckpointError, OSError):  # as a link of another run to nothing
                found = dict(checkpoint.complete(folder)).get(step)
                if found and (checkpoint.verify(found).get("heldout_loss") == loss or folder not in best):
                    return found
        return None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.metrics.close()
        self._lock.close()


class NoFolder:
    """What takes the place of a RunFolder on every rank but the first, which writes for all: it keeps nothing."""

    def __init__(self, config: Config, *_: object) -> None:
        self.path = Path(config.run.dir)
        self.checkpoints, self.best = self.path / CHECKPOINTS, self.path / BEST
        self.origin = None
        self.metrics = Metrics([])

    def evaluation(self, step: int, batches: int) -> dict[str, float | None]:
        """None has been recorded here."""
        return {}

    def best_loss(self) -> float:
        """None has been saved here."""
        return math.inf

    def __enter__(self) -> NoFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _page(path: Path) -> str:
    """The id of this run's page at W&B: the one kept at `path`, or a new one, which is kept there."""
    if not path.exists():
        files.write(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def evaluated_by(info: Mapping[str, Any]) -> int | None:
    """How many batches the run of a checkpoint's info was evaluated by, where it says so."""
    section = info.get("config", {}).get("eval", {})
    return section.get("batches") if isinstance(section, dict) else None


def kept_after(skipped: int, keep: int) -> int:
    """How many checkpoints stay after so many skipped steps in a row, 0: all, as older ones may be what can go on."""
    return 0 if skipped else keep
