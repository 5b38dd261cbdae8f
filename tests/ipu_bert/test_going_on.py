"""Runs that are stopped, killed, taken back or moved: no step and no record is lost, and none comes twice."""

from __future__ import annotations

import itertools
import math
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch

import run_pretraining
from ipu_bert import checkpoint
from ipu_bert.config import Config
from ipu_bert.record.metrics import METRICS_FILE, Metrics, read_metrics
from ipu_bert.run_folder import RunFolder
from ipu_bert.signals import InterruptedRunError
from ipu_bert.summary import RunTotals
from ipu_bert.trainer import Trainer
from sparse_ops import native

SHORT = ("train.steps=6", "eval.every=2", "eval.batches=2", "checkpoint.every=2", "checkpoint.keep=0")
TIMES = {"elapsed", "seconds", "sequences_per_second", "tokens_per_second"}


@pytest.fixture(autouse=True)
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[RunTotals]:
    """What reports would be written of; they take longer than all else that these runs do."""
    totals: list[RunTotals] = []
    monkeypatch.setattr(
        "ipu_bert.trainer.write_outcome", lambda path, config, data, found, layers: totals.append(found)
    )
    return totals


class Killed(BaseException):
    """What SIGKILL does, seen from outside: nothing after this happens."""


def train(config: Config, resume: Path | None = None) -> Path:
    return Trainer(config, resume).run()


def newest(config: Config) -> Path | None:
    found = checkpoint.complete(Path(config.run.dir) / "checkpoints")
    return found[-1][1] if found else None


def steps(folder: Path) -> list[int]:
    return [step for step, _ in checkpoint.complete(folder)]


def history(folder: Path) -> list[dict[str, Any]]:
    """All records but resumes, without times."""
    records = [r for r in read_metrics(folder / METRICS_FILE) if r["kind"] != "resume"]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def assert_same_state(first: Path, second: Path) -> None:
    (one, _), (other, _) = checkpoint.load(first), checkpoint.load(second)
    assert {g: t.keys() for g, t in one.items()} == {g: t.keys() for g, t in other.items()}
    for group, name in ((g, n) for g, tensors in one.items() for n in tensors):
        assert torch.equal(one[group][name], other[group][name]), f"{group} {name}"


# --- killed and resumed: the records of the unbroken run

Stop = Callable[[Trainer, pytest.MonkeyPatch], None]


def signal_in_step(step: int) -> Stop:
    def arrange(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
        run = trainer.engine.train_step

        def interrupted(*arguments: Any) -> Any:
            if trainer.step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return run(*arguments)

        patch.setattr(trainer.engine, "train_step", interrupted)

    return arrange


def signal_in_evaluation(step: int) -> Stop:
    def arrange(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
        run = trainer.engine.eval_step

        def interrupted(*arguments: Any) -> Any:
            if trainer.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return run(*arguments)

        patch.setattr(trainer.engine, "eval_step", interrupted)

    return arrange


def kill_at_record(kind: str, step: int, written: bool) -> Stop:
    def arrange(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
        write = Metrics.write

        def killed(metrics: Metrics, record: Any) -> None:
            due = (record["kind"], record["step"]) == (kind, step)
            if written or not due:
                write(metrics, record)
            if due:
                raise Killed

        patch.setattr(Metrics, "write", killed)

    return arrange


def kill_after_save(step: int) -> Stop:
    def arrange(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
        save = checkpoint.save

        def killed(folder: Path, number: int, *rest: Any) -> Path:
            saved = save(folder, number, *rest)
            if number == step:
                raise Killed
            return saved

        patch.setattr(checkpoint, "save", killed)

    return arrange


CHAINS = {
    "signals at evaluations": [signal_in_evaluation(0), signal_in_step(2), signal_in_evaluation(4), signal_in_step(6)],
    "signal between": [signal_in_step(1), signal_in_step(3)],
    "after checkpoints": [kill_after_save(2), kill_after_save(4), kill_after_save(6)],
    "around records": [
        kill_at_record("eval", 2, written=True),
        kill_at_record("update", 3, written=True),
        signal_in_step(4),
        kill_at_record("eval", 4, written=True),
        kill_at_record("end", 6, written=False),
    ],
    "at the end": [kill_at_record("eval", 6, written=True), kill_at_record("end", 6, written=True)],
}


@pytest.fixture(scope="module")
def unbroken() -> dict[str, list[dict[str, Any]]]:
    return {}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_records_of_a_broken_run_are_the_unbroken_ones(chain, tiny, tmp_path, outcomes, unbroken):
    if not unbroken:
        unbroken["records"] = history(train(tiny(*SHORT, f"run.dir={tmp_path / 'unbroken'}")))
        assert [r["step"] for r in unbroken["records"] if r["kind"] == "eval"] == [0, 2, 4, 6]
    config = tiny(*SHORT)
    for stop in CHAINS[chain]:
        trainer = Trainer(config, newest(config))
        with pytest.MonkeyPatch.context() as patch:
            stop(trainer, patch)
            with pytest.raises((Killed, InterruptedRunError)):
                trainer.run()
    for _ in range(2):  # the second time the run is at its end already
        folder = train(config, newest(config))
        assert history(folder) == unbroken["records"]
    assert [totals.heldout["mlm_loss"] for totals in outcomes[-2:]] == [unbroken["records"][-2]["mlm_loss"]] * 2


def test_an_evaluation_under_way_is_given_up_and_the_step_saved_at_once(tiny):
    """Evaluations are long, and what a scheduler grants is short."""
    trainer, asked = Trainer(tiny(*SHORT)), []

    def asked_to_stop(batch: Any) -> Any:
        asked.append(trainer.step)
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return evaluate(batch)

    evaluate, trainer.engine.eval_step = trainer.engine.eval_step, asked_to_stop
    with pytest.raises(InterruptedRunError, match=r"stopped by SIGUSR1; saved .*step_00000002, go on with --resume"):
        trainer.run()
    assert asked == [0, 0, 2]


def test_records_are_on_disk_before_the_checkpoint_that_follows_them(tiny, monkeypatch):
    """A power cut keeps what was fsynced: the sizes of metrics.jsonl then."""
    config = tiny("train.stop_at=2", "checkpoint.every=1")
    metrics = Path(config.run.dir) / METRICS_FILE
    synced: list[int] = []
    sync, save = os.fsync, checkpoint.save

    def noting(descriptor: int) -> None:
        sync(descriptor)
        if metrics.exists() and os.path.samestat(os.fstat(descriptor), metrics.stat()):
            synced.append(metrics.stat().st_size)

    def checked(*arguments: Any) -> Path:
        assert synced[-1:] == [metrics.stat().st_size]
        return save(*arguments)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(checkpoint, "save", checked)
    train(config)


# --- going back


def test_going_back_is_a_branch_and_loses_nothing(tiny, tmp_path, capsys):
    settings = (*SHORT, "checkpoint.keep=2", "checkpoint.keep_best=true")
    config = tiny(*settings)
    folder = train(tiny(*settings, "checkpoint.keep=0"))
    before, best = history(folder), steps(folder / "best")
    expected = tmp_path / "expected"
    shutil.copytree(folder, expected)

    train(tiny(*settings, "train.stop_at=3"), folder / "checkpoints" / "step_00000002")
    branch = folder / "branches" / "after_step_00000002"
    assert f"went back to step 2; what came after it is in {branch} now" in capsys.readouterr().out
    assert steps(folder / "checkpoints") == [2, 3]  # keep = 2: what was just saved, and its own past
    assert steps(branch / "checkpoints") == [4, 6]
    assert history(branch) == [r for r in before if r["step"] > 2]
    assert steps(branch / "best") == [step for step in best if step > 2]
    for step in (4, 6):
        name = f"step_{step:08d}"
        assert_same_state(branch / "checkpoints" / name, expected / "checkpoints" / name)

    train(config, checkpoint.find(folder))  # as `--resume` does: the new branch
    assert [r["step"] for r in history(folder) if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert steps(folder / "checkpoints") == [4, 6]
    assert_same_state(folder / "checkpoints" / "step_00000006", expected / "checkpoints" / "step_00000006")
    train(tiny(*settings, "train.stop_at=5"), folder / "checkpoints" / "step_00000004")
    assert steps(folder / "branches" / "after_step_00000004" / "checkpoints") == [6]


def test_going_back_twice_to_one_step_makes_two_places(tiny):
    folder = train(tiny(*SHORT))
    for _ in range(2):
        train(tiny(*SHORT), folder / "checkpoints" / "step_00000004")
    names = sorted(path.name for path in (folder / "branches").iterdir())
    assert names == ["after_step_00000004", "after_step_00000004.1"]


def test_a_run_that_was_only_killed_does_not_branch(tiny):
    config = tiny(*SHORT)
    trainer = Trainer(config)
    with pytest.MonkeyPatch.context() as patch:
        kill_at_record("train", 5, written=True)(trainer, patch)
        with pytest.raises(Killed):
            trainer.run()
    assert not (train(config, newest(config)) / "branches").exists()


# --- two runs


def test_a_run_does_not_go_on_in_the_folder_of_another(tiny, tmp_path):
    other = train(tiny(*SHORT, "train.stop_at=2", f"run.dir={tmp_path / 'other'}"))
    folder = train(tiny(*SHORT, "train.stop_at=4", "run.name=existing"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    origin = other / "checkpoints" / "step_00000002"
    with pytest.raises(
        ValueError, match=f"run.dir {folder}: expected the run that {origin} is of, or a new folder, found"
    ):
        train(tiny(*SHORT), origin)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    elsewhere = train(tiny(*SHORT, f"run.dir={tmp_path / 'new'}"), origin)
    assert steps(elsewhere / "checkpoints") == [4, 6]
    assert steps(other / "checkpoints") == [2]


def test_a_folder_of_something_else_is_no_place_to_go_on_either(tiny, tmp_path):
    origin = checkpoint.find(train(tiny("train.stop_at=1", f"run.dir={tmp_path / 'other'}")))
    config = tiny()
    Path(config.run.dir).mkdir()
    (Path(config.run.dir) / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="found another run or other files"):
        train(config, origin)
    assert os.listdir(config.run.dir) == ["thesis.tex"]


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
    assert read_metrics(folder / METRICS_FILE) == before[:-1]  # but for "end"


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
    (folder / "checkpoints" / "notes.txt").write_text("mine")
    (folder / ".metrics.jsonl.77.tmp").write_text("{")
    train(tiny("train.stop_at=2"), newest(config))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == sorted(
        [*(p.name for _, p in kept), "notes.txt"]
    )
    assert [p.name for p in (folder / "best").iterdir()] == [p.name for _, p in best]
    assert not list(folder.glob(".*.tmp"))


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


def test_what_a_kill_left_of_old_checkpoints_goes_when_the_run_goes_on(tiny):
    """Killed between saving the last step and removing the oldest: nothing is saved after that."""
    train(tiny("train.stop_at=3", "checkpoint.every=1", "checkpoint.keep=0"))
    config = tiny("train.stop_at=3", "checkpoint.every=1", "checkpoint.keep=2")
    folder = train(config, newest(config))
    assert steps(folder / "checkpoints") == [2, 3]


# --- the command line


@pytest.fixture
def program(tiny: Callable[..., Config], tmp_path: Path) -> Callable[..., int]:
    return lambda *arguments: run_pretraining.main(["--config", str(tmp_path / "tiny.yaml"), *SHORT, *arguments])


def test_a_damaged_checkpoint_is_answered_with_the_command_for_the_one_before_it(program, tmp_path, capsys):
    assert program("train.stop_at=4", "--resume", "auto") == 0
    assert program("train.stop_at=6", "--resume", "auto") == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (4, 6):
        os.truncate(checkpoints / f"step_0000000{step}" / "optimizer.safetensors", 99)
    capsys.readouterr()
    assert program("--resume") == program("--resume", "auto") == program("--resume", str(tmp_path / "run")) == 2
    (line, *others) = capsys.readouterr().err.splitlines()
    assert [other.split(" --resume")[0] for other in others] == [line.split(" --resume")[0]] * 2
    damaged, intact = checkpoints / "step_00000006", checkpoints / "step_00000002"
    assert line.startswith(f"error: checkpoint {damaged / 'optimizer.safetensors'}: expected ")
    assert f"; {intact} before it is intact: go on with python run_pretraining.py --config " in line
    command = line.split("go on with python run_pretraining.py ")[1].split()
    assert run_pretraining.main(command) == 0
    assert steps(checkpoints) == [2, 4, 6]
    assert steps(tmp_path / "run" / "branches" / "after_step_00000002" / "checkpoints") == [4, 6]


def test_resume_auto_starts_or_goes_on(program, tmp_path):
    for _ in range(3):  # begins; goes on; has nothing left to do
        with pytest.MonkeyPatch.context() as patch:
            if not (tmp_path / "run").exists():
                patch.setattr(Trainer, "_write_train", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
                assert program("--resume", "auto") == 75
                continue
        assert program("--resume", "auto") == 0
    assert [r["step"] for r in read_metrics(tmp_path / "run" / METRICS_FILE) if r["kind"] == "resume"] == [1, 6]
    assert not (tmp_path / "run.1").exists()


def test_what_is_newest_is_not_decided_while_somebody_trains(program, tiny, tmp_path, monkeypatch, capsys):
    """What that process saves before it ends would else be taken for a future to go back from."""
    monkeypatch.setattr(checkpoint, "find", lambda path: pytest.fail("looked for the newest checkpoint"))
    with RunFolder(tiny(), None, unigram_entropy=6.5):
        assert program("--resume", "auto") == program("--resume") == 2
    expected = f"error: run.dir {tmp_path / 'run'}: another process is training there; choose another run.dir"
    assert capsys.readouterr().err.splitlines() == [expected] * 2


# --- other conditions


def test_other_conditions_are_said_once_and_recorded(tiny, capsys):
    config = tiny("train.stop_at=2")
    folder = train(config)
    train(tiny("train.stop_at=3"), newest(config))
    assert "not bit for bit" not in capsys.readouterr().err
    threads, level = torch.get_num_threads(), native.level()
    try:
        train(tiny("train.stop_at=4", "engine.threads=3", "engine.kernel=torch"), newest(config))
    finally:
        torch.set_num_threads(threads)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "bit for bit" in x]
    changed = [f"threads: 3, before {threads}", f"kernel: torch, before native {level}"]
    assert line == f"resumed, but not bit for bit the run it would have been: {'; '.join(changed)}"
    resumes = [r for r in read_metrics(folder / METRICS_FILE) if r["kind"] == "resume"]
    assert [r["changed"] for r in resumes] == [[], changed]


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
    settings = (*SHORT, "checkpoint.keep_best=true")
    config = tiny(*settings, "train.stop_at=2")
    folder = train(config)
    trainer = Trainer(tiny(*settings), newest(config))
    evaluate = trainer._evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_evaluate", lambda metrics: {**evaluate(metrics), "mlm_loss": 99.0})
        trainer.run()
    assert steps(folder / "best") == [2]


def test_a_run_without_it_keeps_no_best(tiny):
    assert not (train(tiny(*SHORT, "train.stop_at=2")) / "best").exists()
