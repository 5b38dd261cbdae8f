"""What is saved and kept: tried out before the first step, the best beside the newest, nothing half."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import resource
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch
from run_history import SHORT, Killed, assert_same_state, history, newest, steps, train

from ipu_bert import checkpoint
from ipu_bert.record.metrics import METRICS_FILE, read_metrics
from ipu_bert.trainer import Trainer


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all else that these runs do."""
    monkeypatch.setattr("ipu_bert.trainer.write_outcome", lambda *_: None)


# --- what cannot be saved is refused before the first step


@pytest.mark.parametrize("section", ["clip_norm", "eps"])
def test_a_setting_that_no_checkpoint_can_hold_is_refused_before_the_first_step(section, tiny):
    config = tiny()
    setattr(config.optim, section, math.inf)
    with pytest.raises(ValueError, match=rf"expected a finite number to write, found config.optim.{section} = inf"):
        train(config)
    assert history(Path(config.run.dir)) == []
    assert os.listdir(Path(config.run.dir) / "checkpoints") == []


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 100 kB; a full disk fails at the same call."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_a_disk_without_room_is_found_before_the_first_step(tiny):
    config = tiny()
    with pytest.raises(OSError, match=r"step_00000000: could not be written: .*File too large"):
        train(config)
    assert history(Path(config.run.dir)) == []


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(tiny, tmp_path):
    """Checkpoints on a disk that is not there any more; permissions would not stop a test that runs as root."""
    folder = train(tiny("train.stop_at=1", "checkpoint.keep_best=true"))
    os.rename(folder / "checkpoints", tmp_path / "elsewhere")
    (folder / "checkpoints").symlink_to(tmp_path / "not mounted")
    before = read_metrics(folder / METRICS_FILE)
    with pytest.raises(OSError, match="checkpoints"):
        train(tiny("train.stop_at=2"), checkpoint.find(folder / "best"))
    assert read_metrics(folder / METRICS_FILE) == before


@pytest.mark.parametrize("found", ["link", "file", "pipe", "read-only"])
def test_a_best_folder_that_cannot_be_written_is_found_before_the_first_step(found, tiny, tmp_path, monkeypatch):
    """The run ended at its first best checkpoint, hours later, and again at each start."""
    folder = train(tiny("train.stop_at=1"))
    before, best = history(folder)[:-1], folder / "best"  # all but its end
    if found == "link":
        best.symlink_to(tmp_path / "not mounted")
    elif found == "pipe":
        os.mkfifo(best)
    elif found == "file":
        best.write_text("mine")
    else:
        best.mkdir()
        mkdir = Path.mkdir

        def refused(path: Path, *arguments: Any, **rest: Any) -> None:  # tests may run as root, whom no mode stops
            if path.parent == best:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            mkdir(path, *arguments, **rest)

        monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(OSError, match="best"):
        train(
            tiny("train.stop_at=2", "eval.every=2", "checkpoint.keep_best=true"), folder / "checkpoints/step_00000001"
        )
    assert [record for record in history(folder) if record["kind"] != "end"] == before
    assert "resume" not in {record["kind"] for record in read_metrics(folder / METRICS_FILE)}
    assert steps(folder / "checkpoints") == [1]


@pytest.mark.parametrize("near", [True, False])
def test_the_best_folder_is_tried_with_the_whole_state_on_another_disk_alone(near, tiny, tmp_path, monkeypatch):
    tried: list[tuple[str, bool]] = []
    assert checkpoint.same_disk(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(checkpoint, "same_disk", lambda *_: near)
    monkeypatch.setattr(
        checkpoint, "try_out", lambda folder, step, groups, info: tried.append((folder.name, "model" in groups))
    )
    train(tiny("train.stop_at=1", "checkpoint.keep_best=true"))
    assert tried == [("checkpoints", True), ("best", not near)]


def test_what_is_not_read_as_it_was_written_is_refused(tmp_path, monkeypatch):
    """A disk or a library that changes one bit in silence."""
    save_file = checkpoint.save_file
    monkeypatch.setattr(
        checkpoint, "save_file", lambda tensors, path: save_file({n: t + 1 for n, t in tensors.items()}, path)
    )
    with pytest.raises(ValueError, match="model w is not read as it was written"):
        checkpoint.try_out(tmp_path, 0, {"model": {"w": torch.zeros(3)}}, {})
    assert os.listdir(tmp_path) == []


# --- what killed processes leave


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".config.yaml.77.tmp"], [".config.yaml.77.tmp"]])
def test_a_folder_whose_run_was_killed_before_its_config_was_written_is_free(left, tiny, capsys):
    config = tiny("train.stop_at=1")
    Path(config.run.dir).mkdir()
    for name in left:
        (Path(config.run.dir) / name).write_text("run: {na")
    train(config)
    assert "an earlier run" not in capsys.readouterr().out
    assert not list(Path(config.run.dir).glob(".*.tmp"))


def test_leftovers_go_at_the_next_start_and_nothing_else(tiny):
    config = tiny("train.stop_at=2", "checkpoint.every=1", "checkpoint.keep=0", "checkpoint.keep_best=true")
    folder = train(config)
    kept, best = checkpoint.complete(folder / "checkpoints"), checkpoint.complete(folder / "best")
    for place in ("checkpoints", "best"):
        for name in (".step_00000001.77.tmp", ".step_00000001.77.old", "step_00000000"):
            (folder / place / name).mkdir()
            (folder / place / name / "model.safetensors").write_text("half")
    for place in ("checkpoints", "best"):  # of a branch on another disk, to which a killed process copied
        (folder / "branches" / "after_step_00000001" / place / ".step_00000002.77.tmp").mkdir(parents=True)
    (folder / "checkpoints" / "notes.txt").write_text("mine")
    (folder / ".metrics.jsonl.77.tmp").write_text("{")
    train(tiny("train.stop_at=2"), newest(config))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == sorted(
        [*(p.name for _, p in kept), "notes.txt"]
    )
    assert [p.name for p in (folder / "best").iterdir()] == [p.name for _, p in best]
    assert not list(folder.rglob(".*.tmp"))


@pytest.mark.parametrize("number", range(1, 5))
def test_a_kill_at_any_rename_of_a_second_save_of_a_step_loses_nothing(number, tmp_path, monkeypatch):
    """Also with no checkpoint to keep but this one; what stands afterwards is the old one or the new one, whole."""
    values = itertools.count()

    def save() -> None:
        checkpoint.save(tmp_path, 3, {"model": {"w": torch.full((4,), float(next(values)))}}, {}, 1)

    save()
    calls, replace, rmtree = itertools.count(1), os.replace, checkpoint.shutil.rmtree

    def until(run: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*arguments: Any, **rest: Any) -> Any:
            if next(calls) >= number:
                raise Killed
            return run(*arguments, **rest)

        return killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", until(replace))
        patch.setattr(checkpoint.shutil, "rmtree", until(rmtree))
        with pytest.raises(Killed):
            save()
    checkpoint.clean(tmp_path)
    assert os.listdir(tmp_path) == ["step_00000003"]
    assert float(checkpoint.load(checkpoint.find(tmp_path))[0]["model"]["w"][0]) in (0.0, 1.0)


def test_a_checkpoint_that_is_being_removed_has_no_checkpoints_name(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"model": {"w": torch.zeros(1)}}, {}, 0)

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            os.unlink(Path(path) / "model.safetensors")
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            checkpoint.save(tmp_path, 3, {"model": {"w": torch.zeros(1)}}, {}, 2)
    assert steps(tmp_path) == [2, 3]
    checkpoint.clean(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["step_00000002", "step_00000003"]


def test_keep_never_removes_what_was_just_saved(tmp_path):
    for step in (10, 20, 12):
        checkpoint.save(tmp_path, step, {}, {}, 1)
    assert steps(tmp_path) == [12, 20]


# --- the best


def test_the_best_checkpoint_is_kept_beside_the_newest(tiny, tmp_path):
    config = tiny(
        *SHORT, "eval.every=1", "checkpoint.every=0", "checkpoint.keep=1", "checkpoint.keep_best=true", "optim.lr=0.02"
    )
    folder = train(config)
    losses = {r["step"]: r["mlm_loss"] for r in history(folder) if r["kind"] == "eval" and r["step"]}
    lowest = min(losses, key=losses.__getitem__)
    assert steps(folder / "best") == [lowest]
    assert steps(folder / "checkpoints") == [6]
    whole = train(tiny(*SHORT, "optim.lr=0.02", "checkpoint.every=1", f"run.dir={tmp_path / 'whole'}"))
    assert_same_state(folder / "best" / f"step_{lowest:08d}", whole / "checkpoints" / f"step_{lowest:08d}")
    assert checkpoint.find(folder / "best").name == f"step_{lowest:08d}"


def test_a_worse_one_after_a_resume_does_not_replace_the_best(tiny):
    """Killed at step 4; step 3, where it goes on, has no evaluation from which the best loss would be known."""
    config = tiny(*SHORT, "checkpoint.keep_best=true", "checkpoint.every=1", "eval.every=2")
    killed = Trainer(config)
    step = killed.engine.train_step

    def until_killed(*arguments: Any) -> Any:
        if killed.step == 3:
            raise Killed
        return step(*arguments)

    killed.engine.train_step = until_killed
    with pytest.raises(Killed):
        killed.run()
    folder = Path(config.run.dir)
    assert steps(folder / "best") == [2]
    trainer = Trainer(config, newest(config))
    assert trainer.step == 3
    evaluate = trainer._evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_evaluate", lambda metrics: {**evaluate(metrics), "mlm_loss": 99.0})
        trainer.run()
    assert steps(folder / "best") == [2]


@pytest.mark.parametrize("taken", [5.0, 4.0])
def test_a_best_one_of_steps_that_a_kill_took_counts_by_its_loss(taken, tiny):
    """Saved as best at step 5, killed, gone on from step 3, which takes step 5 again: it was taken for the best by its
    number, and stood beside a better one."""
    settings = (*SHORT, "checkpoint.every=3", "checkpoint.keep_best=true")

    def judged(losses: dict[int, float], *overrides: str, killed_after: int = 9) -> Path:
        config = tiny(*settings, *overrides)
        trainer = Trainer(config, newest(config))
        evaluate, step = trainer._evaluate, trainer.engine.train_step

        def until_killed(*arguments: Any) -> Any:
            if trainer.step == killed_after:
                raise Killed
            return step(*arguments)

        trainer.engine.train_step = until_killed
        trainer._evaluate = lambda metrics: {**evaluate(metrics), "mlm_loss": losses.get(trainer.step, 9.0)}
        with contextlib.suppress(Killed):
            trainer.run()
        return Path(config.run.dir)

    folder = judged({5: taken}, "eval.every=5", killed_after=5)
    assert (steps(folder / "checkpoints"), steps(folder / "best")) == ([3], [5])
    judged({4: 4.5, 5: taken, 6: 4.7}, "eval.every=1")
    assert steps(folder / "best") == [4 if taken > 4.5 else 5]


def test_of_two_best_ones_the_better_stays(tiny):
    """As earlier versions left them: the stale one has the higher number, and was taken for the best."""
    config = tiny(*SHORT, "checkpoint.keep_best=true")
    folder = train(config)
    _, info = checkpoint.load(checkpoint.find(folder / "best"))
    for step, loss in ((4, 1.5), (5, 2.5)):
        more = {key: info[key] for key in ("config", "identity", "next_batch")}
        checkpoint.save(folder / "best", step, {}, {**more, "heldout_loss": loss}, keep=0)
    train(config, newest(config))
    assert steps(folder / "best") == [4]


def test_a_run_without_it_keeps_no_best(tiny):
    assert not (train(tiny(*SHORT, "train.stop_at=2")) / "best").exists()


def test_what_a_kill_left_of_old_checkpoints_goes_when_the_run_goes_on(tiny):
    """Killed between saving the last step and removing the oldest: nothing is saved after that."""
    train(tiny("train.stop_at=3", "checkpoint.every=1", "checkpoint.keep=0"))
    config = tiny("train.stop_at=3", "checkpoint.every=1", "checkpoint.keep=2")
    folder = train(config, newest(config))
    assert steps(folder / "checkpoints") == [2, 3]
