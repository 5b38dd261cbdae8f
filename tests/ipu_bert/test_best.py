"""best/ is the checkpoint of the lowest held-out loss that the run has recorded, whatever it goes on from and where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Callable, Mapping

import pytest
from run_history import SHORT, assert_same_state, steps

from ipu_bert import checkpoint, export_run
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")
TOLD = "the lowest held-out loss so far, "
Judged = Callable[..., Path]


@pytest.fixture
def judged(tiny) -> Judged:
    """A run whose held-out losses are these, by step; call it with overrides and where it goes on from."""

    def run(losses: Mapping[int, float], *overrides: str, resume: Path | None = None) -> Path:
        trainer = Trainer(tiny(*SHORT, "checkpoint.keep_best=true", *overrides), resume)
        evaluate, write = trainer._evaluate, trainer._write

        def written(metrics: Any, kind: str, **values: Any) -> None:
            write(metrics, kind, **{**values, **({"mlm_loss": losses[trainer.step]} if kind == "eval" else {})})

        trainer._write = written
        trainer._evaluate = lambda metrics: {**evaluate(metrics), "mlm_loss": losses[trainer.step]}
        return trainer.run()

    return run


def at(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


LOSSES = {0: 9.0, 2: 3.0, 4: 5.0, 5: 4.5, 6: 4.0}


@pytest.mark.parametrize("keep", [0, 1])
def test_a_run_that_keeps_its_best_from_now_on_has_the_best_of_before(keep, judged, tmp_path, capsys):
    """It began with the best of what came: step 6, while its report said step 2."""
    folder = judged(LOSSES, "train.stop_at=4", "checkpoint.keep_best=false")
    whole = shutil.copytree(folder / "checkpoints", tmp_path / "whole")
    judged(LOSSES, f"checkpoint.keep={keep}", resume=at(folder / "checkpoints", 4))
    assert steps(folder / "best") == [2]
    assert_same_state(at(folder / "best", 2), at(whole, 2))
    info = checkpoint.read_info(at(folder / "best", 2))
    assert (info["heldout_loss"], info["heldout_batches"]) == (3.0, 2)
    assert info == {**checkpoint.read_info(at(whole, 2)), **{x: info[x] for x in info if x[:4] in ("held", "sha2")}}
    told = f"{TOLD}3.0000, is that of {at(folder / 'checkpoints', 2)}: it is copied to {at(folder / 'best', 2)}"
    assert told in capsys.readouterr().out.splitlines()
    judged(LOSSES, resume=at(folder / "checkpoints", 6))
    assert TOLD not in capsys.readouterr().out
    found = json.loads((folder / "report.json").read_text())["heldout"]
    assert (found["best_step"], found["best_checkpoint"]) == (2, 2)


def test_records_of_older_versions_count_as_by_as_many_batches(judged):
    """They do not say by how many, and are compared in the report, too."""
    folder = judged(LOSSES, "train.stop_at=4", "checkpoint.keep_best=false")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    older = [{key: value for key, value in record.items() if key != "batches"} for record in records]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in older))
    judged(LOSSES, resume=at(folder / "checkpoints", 4))
    assert steps(folder / "best") == [2]


@pytest.mark.parametrize("damaged", [False, True])
def test_that_the_best_is_not_kept_any_more_is_said_at_the_start_and_in_the_report(damaged, judged, capsys):
    folder = judged(LOSSES, "train.stop_at=4", "checkpoint.keep_best=false")
    if damaged:
        (at(folder / "checkpoints", 2) / "model.safetensors").write_bytes(b"cut")
    else:
        shutil.rmtree(at(folder / "checkpoints", 2))
    judged(LOSSES, resume=at(folder / "checkpoints", 4))
    told = f"{TOLD}3.0000, is that of step 2, of which no checkpoint is kept: {folder / 'best'} is not of it"
    assert told in capsys.readouterr().out.splitlines()
    assert steps(folder / "best") == [6]
    found = json.loads((folder / "report.json").read_text())["heldout"]
    assert (found["best_step"], found["best_checkpoint"]) == (2, 6)
    assert (
        "`best/` is the checkpoint of step 6, not of the lowest loss, 3.000 at step 2"
        in (folder / "report.md").read_text()
    )


@pytest.mark.parametrize("keep", [0, 1])
def test_a_run_that_goes_on_in_another_folder_takes_its_best_along(keep, judged, tmp_path):
    """It had the records alone, and the best of what came."""
    first = judged(LOSSES, "train.stop_at=4", f"checkpoint.keep={keep}")
    assert steps(first / "best") == [2]
    new = f"run.dir={tmp_path / 'new'}"
    folder = judged(LOSSES, new, f"checkpoint.keep={keep}", resume=at(first / "checkpoints", 4))
    assert steps(folder / "best") == [2]
    assert_same_state(at(folder / "best", 2), at(first / "best", 2))
    assert steps(first / "best") == [2]


def test_a_run_that_goes_back_to_before_its_best_has_the_best_up_to_there(judged):
    """Saving the best had removed the one before it, which is the best again."""
    folder = judged({**LOSSES, 6: 2.0})
    assert steps(folder / "best") == [6]
    judged(LOSSES, "train.stop_at=5", resume=at(folder / "checkpoints", 4))
    assert steps(folder / "best") == [2]
    assert steps(folder / "branches" / "after_step_00000004" / "best") == [6]


def test_a_best_one_of_another_way_to_the_step_is_not_taken(judged, capsys):
    """Put aside when the run went back; the same step was taken again, with another loss."""
    folder = judged({**LOSSES, 2: 5.0, 4: 3.0}, "train.stop_at=4")
    judged({**LOSSES, 2: 5.0, 4: 3.5}, "checkpoint.keep_best=false", resume=at(folder / "checkpoints", 2))
    shutil.rmtree(at(folder / "checkpoints", 4))
    assert steps(folder / "branches" / "after_step_00000002" / "best") == [4]
    judged(LOSSES, resume=at(folder / "checkpoints", 6))
    assert steps(folder / "best") == [6]
    assert f"{TOLD}3.5000, is that of step 4, of which no checkpoint is kept" in capsys.readouterr().out


def test_the_card_of_a_best_one_put_aside_has_its_own_loss_or_none(judged, tmp_path):
    """Once the run has gone back, its records of that step are of another way to it."""

    def card(path: Path) -> str:
        assert export_run.main([str(path), str(tmp_path / "exported")]) == 0
        return (tmp_path / "exported" / "README.md").read_text()

    folder = judged({**LOSSES, 2: 5.0, 4: 3.0}, "train.stop_at=4")
    judged({**LOSSES, 5: 4.5}, "train.stop_at=5", "eval.batches=1", resume=at(folder / "checkpoints", 4))
    aside = at(folder / "branches" / "best_by_other_batches" / "best", 4)
    assert "| masked LM | 3.0000 |" in card(aside)
    judged({**LOSSES, 2: 5.0, 4: 3.5}, resume=at(folder / "checkpoints", 2))
    assert "| masked LM | 3.5000 |" in card(at(folder / "checkpoints", 4))
    assert "No evaluation of this step was recorded." in card(aside)


def test_back_at_the_batches_that_judged_an_earlier_best_it_is_the_best_again(judged, capsys):
    folder = judged(LOSSES, "train.stop_at=2")
    judged(LOSSES, "train.stop_at=4", "eval.batches=1", resume=at(folder / "checkpoints", 2))
    assert TOLD not in capsys.readouterr().out
    shutil.rmtree(at(folder / "checkpoints", 2))
    judged(LOSSES, resume=at(folder / "checkpoints", 4))
    assert checkpoint.read_info(at(folder / "best", 2))["heldout_batches"] == 2
    assert steps(folder / "best") == [2]


def test_a_damaged_best_one_is_replaced_where_its_step_is_kept(judged):
    folder = judged(LOSSES, "train.stop_at=4")
    (at(folder / "best", 2) / "state.json").write_text("{")
    judged(LOSSES, resume=at(folder / "checkpoints", 4))
    assert steps(folder / "best") == [2]
    assert_same_state(at(folder / "best", 2), at(folder / "checkpoints", 2))


@pytest.mark.parametrize("copied", [False, True])
def test_a_run_that_is_killed_while_it_takes_its_best_along_takes_it_the_next_time(
    copied, judged, tmp_path, monkeypatch
):
    """Its own checkpoint was there first, and from then on the other run's folder was not looked into."""
    first = judged(LOSSES, "train.stop_at=4")
    new, copy = f"run.dir={tmp_path / 'new'}", checkpoint.copy_alone

    def killed(*arguments: Any) -> Path:
        if copied:
            copy(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "copy_alone", killed)
    with pytest.raises(KeyboardInterrupt):
        judged(LOSSES, new, resume=at(first / "checkpoints", 4))
    monkeypatch.undo()
    folder = judged(LOSSES, new, resume=at(first / "checkpoints", 4))
    assert steps(folder / "best") == [2]
    assert_same_state(at(folder / "best", 2), at(first / "best", 2))


def test_a_run_whose_disk_has_no_room_for_its_best_goes_on_and_says_so(judged, monkeypatch, capsys):
    """It was refused before pruning made room, each time."""
    folder = judged(LOSSES, "train.stop_at=4", "checkpoint.keep_best=false")

    def full(origin: Path, final: Path, before: Callable[[], object]) -> None:
        raise OSError(28, "No space left on device", str(final))

    monkeypatch.setattr("ipu_bert.moving.copy", full)
    judged(LOSSES, resume=at(folder / "checkpoints", 4))
    why = f"of which no copy could be made: [Errno 28] No space left on device: '{at(folder / 'best', 2)}'"
    assert f"{TOLD}3.0000, is that of {at(folder / 'checkpoints', 2)}, {why}" in capsys.readouterr().out.splitlines()
    assert steps(folder / "best") == [6]


def test_the_best_one_that_is_there_stays_until_there_is_another(judged, tmp_path, monkeypatch):
    whole = judged(LOSSES, "train.stop_at=4") / "checkpoints"
    first = checkpoint.copy_alone(at(whole, 2), tmp_path / "best", {"heldout_loss": 3.0})

    def full(origin: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr("ipu_bert.moving._copy", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.copy_alone(at(whole, 2), tmp_path / "best", {"heldout_loss": 2.0})
    assert checkpoint.read_info(first)["heldout_loss"] == 3.0
    assert checkpoint.copy_alone(at(whole, 2), tmp_path / "best", {"heldout_loss": 2.0}) == first
    assert checkpoint.read_info(first)["heldout_loss"] == 2.0
    assert_same_state(first, at(whole, 2))
