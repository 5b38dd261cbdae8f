"""Runs that are stopped, killed, taken back or moved: no step and no record is lost, and none comes twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from run_history import SHORT, Killed, assert_same_state, history, newest, steps, train

import run_pretraining
from ipu_bert import assemble, checkpoint
from ipu_bert.record.metrics import METRICS_FILE, Metrics, read_metrics
from ipu_bert.run_folder import RunFolder
from ipu_bert.sealed_json import sealed
from ipu_bert.signals import InterruptedRunError
from ipu_bert.summary import RunTotals
from ipu_bert.trainer import Trainer
from sparse_ops import dense, native


@pytest.fixture(autouse=True)
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[RunTotals]:
    """What reports would be written of; they take longer than all else that these runs do."""
    totals: list[RunTotals] = []
    monkeypatch.setattr("ipu_bert.trainer.write_outcome", lambda *given: totals.append(given[-2]))
    return totals


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
    with pytest.raises(InterruptedRunError, match=r"stopped by SIGUSR1; saved is .*step_00000002, go on with --resume"):
        trainer.run()
    assert asked == [0, 0, 0, 0, 2]  # two batches, with their own words and with others


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


def test_a_process_that_is_killed_while_it_goes_back_has_changed_nothing_yet(tiny, monkeypatch):
    """The checkpoint that counts goes last; whoever goes back again then finds all that there was."""
    folder = train(tiny(*SHORT))
    before, replace, last = history(folder), os.replace, folder / "checkpoints" / "step_00000006"

    def killed(source: Path, target: Path) -> None:
        if source == last:
            raise Killed
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            train(tiny(*SHORT), folder / "checkpoints" / "step_00000002")
    assert checkpoint.find(folder) == last
    assert history(folder) == before
    train(tiny(*SHORT, "train.stop_at=2"), folder / "checkpoints" / "step_00000002")
    branches = sorted((folder / "branches").iterdir())
    assert [steps(branch / "checkpoints") for branch in branches] == [[4], [6]]
    assert [history(branch) for branch in branches] == [[r for r in before if r["step"] > 2]] * 2


# --- the command line


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


@pytest.mark.parametrize("name", ["checkpoints", "best", ""])
@pytest.mark.parametrize("resume", [("--resume", "auto"), ("--resume",), ()])
def test_what_is_on_a_disk_that_is_not_mounted_is_not_begun_anew(name, resume, program, tmp_path, capsys, monkeypatch):
    """A run whose checkpoints were links to nothing was moved aside, and began anew."""
    assert program("train.stop_at=2", "checkpoint.keep_best=true") == 0
    path, away = tmp_path / "run" / name, tmp_path / "disk"
    path.rename(away)
    path.symlink_to(away)
    assert program("train.stop_at=2", "--resume", "auto") == 0
    away.rename(tmp_path / "unmounted")
    capsys.readouterr()
    monkeypatch.setattr(assemble, "open_data", None)  # it is told before the text is prepared
    assert program("train.stop_at=4", *resume) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {path}: expected a folder, found a link to {away}, where nothing is: is its disk mounted?"
    assert not (tmp_path / "run.1").exists()


def test_what_is_newest_is_not_decided_while_somebody_trains(program, tiny, tmp_path, capsys):
    """What that process saves before it ends would else be taken for a future to go back from."""
    with RunFolder(tiny(), None):
        assert program("--resume", "auto") == program("--resume") == 2  # the second one would find none
    expected = f"error: run.dir {tmp_path / 'run'}: another process is training there; choose another run.dir"
    assert capsys.readouterr().err.splitlines() == [expected] * 2


@pytest.mark.parametrize("stopped_at", [0, 2])
@pytest.mark.parametrize("arguments", [("--resume", "auto"), ()])
def test_what_another_process_saves_between_looking_and_beginning_is_not_gone_back_from(
    program, tmp_path, monkeypatch, capsys, stopped_at, arguments
):
    """Two that start at the same moment; the second is slow to read its text, and the first has ended by then."""
    run, made = tmp_path / "run", assemble.make_engine
    if stopped_at:
        assert program(f"train.stop_at={stopped_at}") == 0

    def slow(*given: object) -> object:
        monkeypatch.setattr(assemble, "make_engine", made)
        assert program("train.stop_at=4", "--resume", "auto") == 0
        return made(*given)

    monkeypatch.setattr(assemble, "make_engine", slow)
    capsys.readouterr()
    assert program("train.stop_at=4", *arguments) == 2
    before = run / "checkpoints" / f"step_0000000{stopped_at}" if stopped_at else "no checkpoint"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: run.dir {run}: expected {before} to be its newest checkpoint, as it was when this process began, "
        f"found {run / 'checkpoints' / 'step_00000004'}: another process was there meanwhile; start again"
    )
    assert steps(run / "checkpoints")[-1] == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == ["run"]
    assert not (run / "branches").exists()
    assert program("train.stop_at=5", "--resume", "auto") == 0


# --- the report


def test_what_ranks_waited_is_a_share_of_their_own_time(tiny, outcomes):
    """Seconds before a resume are another process's, and were rank 0's: every rank's waits began with them."""
    config = tiny(*SHORT)
    train(tiny(*SHORT, "train.stop_at=2"))
    path = newest(config)
    assert path is not None
    state = json.loads((path / "state.json").read_text())
    state["seconds"]["exchange"], state["elapsed_seconds"] = 1e6, 2e6
    (path / "state.json").write_text(sealed(state))
    train(config, path)
    assert outcomes[-1].elapsed_seconds > 2e6
    (share,) = outcomes[-1].waited_share
    assert share < 0.1  # alone it waits for nobody


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
    changed.append(f"library: none, before {native.fingerprint()}")
    changed += [f"dense products: torch's, before {dense.library()}"] if dense.library() != dense.TORCH else []
    assert line == f"resumed, but not bit for bit the run it would have been: {'; '.join(changed)}"
    resumes = [r for r in read_metrics(folder / METRICS_FILE) if r["kind"] == "resume"]
    assert [r["changed"] for r in resumes] == [[], changed]
