"""What a run is found to go on from, whenever it was killed; and that nothing is saved that no run can go on from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_history import SHORT, Killed, assert_same_state, newest, steps, train
from safetensors.torch import load_file, save_file

from ipu_bert import checkpoint, cli
from ipu_bert.config import as_dict
from ipu_bert.ranks import ALONE
from ipu_bert.record.context import RECORDED
from ipu_bert.record.metrics import MEANS, read_metrics
from ipu_bert.run_folder import RunFolder
from ipu_bert.sealed_json import sealed
from ipu_bert.signals import InterruptedRunError
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")
BEST = (*SHORT, "checkpoint.keep_best=true")


def kill_in_first_step(config, resume: Path | None) -> None:
    trainer = Trainer(config, resume)

    def killed(*_: Any) -> None:
        raise Killed

    trainer.engine.train_step = killed
    with pytest.raises(Killed):
        trainer.run()


# --- where a killed run goes on


def test_going_back_to_the_best_can_be_killed_before_anything_is_saved(tiny, tmp_path):
    """Later checkpoints move to a branch at once; `auto` then finds the one that the run goes on from."""
    config = tiny(*BEST)
    folder = train(config)
    whole = {step: path for step, path in checkpoint.complete(shutil.copytree(folder, tmp_path / "c") / "checkpoints")}
    shutil.rmtree(folder / "checkpoints" / "step_00000002")  # as checkpoint.keep does
    os.rename(folder / "best" / f"step_{steps(folder / 'best')[0]:08d}", tmp_path / "best")
    shutil.copytree(whole[2], folder / "best" / "step_00000002")
    kill_in_first_step(config, folder / "best" / "step_00000002")
    found = cli._start(config, "auto", ALONE)[0]
    assert found == folder / "checkpoints" / "step_00000002"
    assert steps(train(config, found) / "checkpoints") == [2, 4, 6]
    assert_same_state(newest(config), whole[6])


def test_a_run_that_begins_from_another_ones_checkpoint_can_be_killed(tiny, tmp_path):
    """By the same command, which names the other run, or by `auto`, until it has saved something of its own."""
    other = train(tiny(*SHORT, "train.stop_at=4", f"run.dir={tmp_path / 'other'}"))
    origin, config = other / "checkpoints" / "step_00000004", tiny(*SHORT)
    kill_in_first_step(config, origin)
    assert cli._start(config, "auto", ALONE)[0] == Path(config.run.dir) / "checkpoints" / "step_00000004"
    kill_in_first_step(config, origin)
    folder = train(config, cli._start(config, "auto", ALONE)[0])
    assert steps(folder / "checkpoints") == [4, 6]
    with pytest.raises(ValueError, match=r"expected the run that .* is of, or a new folder"):
        train(config, origin)
    with pytest.raises(ValueError, match=r"expected the run that .* is of, or a new folder"):
        train(config, other / "checkpoints" / "step_00000002")


@pytest.mark.parametrize("appeared", [False, True])
def test_a_run_that_begins_from_another_one_has_its_records_whenever_it_is_killed(
    appeared, tiny, tmp_path, monkeypatch
):
    """Killed once the checkpoint was there it went on by `auto` without them; before that the same command goes on."""
    other = train(tiny(*SHORT, "train.stop_at=4", f"run.dir={tmp_path / 'other'}"))
    origin, config = other / "checkpoints" / "step_00000004", tiny(*SHORT)
    own, replace = Path(config.run.dir) / "checkpoints" / "step_00000004", os.replace

    def killed(source: Path, target: Path) -> None:
        if target == own and not appeared:
            raise Killed
        replace(source, target)
        if target == own:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            train(config, origin)
    assert own.exists() == appeared
    found = cli._start(config, "auto", ALONE)[0]
    assert found == (own if appeared else None)
    folder = train(config, found or origin)
    assert [r["step"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert steps(folder / "checkpoints") == [4, 6]


def test_a_copy_of_a_checkpoint_in_the_runs_folder_does_not_keep_it_from_going_on(tiny):
    """Refused for ever, as the copy was taken for what the run goes on from, which is in no folder of its own."""
    config = tiny(*SHORT)
    folder = train(tiny(*SHORT, "train.stop_at=4"))
    copy = shutil.copytree(folder / "checkpoints" / "step_00000002", folder / "step_00000002")
    for resume in ("auto", "latest"):
        assert cli._start(config, resume, ALONE)[0] == folder / "checkpoints" / "step_00000004"
    assert load_model(folder).step == 4
    assert load_model(copy).step == 2
    assert steps(train(config, newest(config)) / "checkpoints") == [2, 4, 6]
    assert copy.is_dir()


def test_records_of_somebody_else_are_no_new_folder(tiny, tmp_path):
    other = train(tiny(*SHORT, "train.stop_at=4", f"run.dir={tmp_path / 'other'}"))
    config = tiny(*SHORT)
    mine = Path(config.run.dir) / "metrics.jsonl"
    mine.parent.mkdir()
    for text in ((other / "metrics.jsonl").read_text() + "\n", "", "mine"):
        mine.write_text(text)
        with pytest.raises(ValueError, match="found another run or other files"):
            train(config, other / "checkpoints" / "step_00000004")
        assert os.listdir(mine.parent) == ["metrics.jsonl"]
        assert mine.read_text() == text


def test_a_kill_between_two_renames_is_undone_before_the_newest_is_looked_for(tiny):
    config = tiny(*SHORT)
    checkpoints = train(config) / "checkpoints"
    os.rename(checkpoints / "step_00000006", checkpoints / ".step_00000006.1.old")
    assert cli._start(config, "auto", ALONE)[0] == checkpoints / "step_00000006"


def test_a_kill_while_going_back_keeps_the_best(tiny, monkeypatch):
    config = tiny(*BEST)
    folder = train(config)
    (best,) = steps(folder / "best")
    last, replace = folder / "checkpoints" / "step_00000006", os.replace

    def killed(source: Path, target: Path) -> None:
        if source == last:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            train(config, folder / "checkpoints" / "step_00000002")
    assert cli._start(config, "auto", ALONE)[0] == last
    assert steps(folder / "best") == [best]


def test_a_run_whose_only_checkpoint_is_its_best_is_told_how_it_goes_on(tiny, tmp_path, capsys):
    """`auto` began anew and moved it aside without a word of `best`."""
    config = tiny(*SHORT, "checkpoint.keep_best=true", "checkpoint.every=0", "train.stop_at=3")
    trainer = Trainer(config)
    save = trainer._save

    def killed(_: Any) -> None:
        raise Killed

    trainer._save = killed
    with pytest.raises(Killed):
        trainer.run()
    trainer._save = save
    (best,) = steps(tmp_path / "run" / "best")
    kill_in_first_step(config, cli._start(config, "auto", ALONE)[0])
    aside = tmp_path / "run.1"
    start = aside / "best" / f"step_{best:08d}"
    said = f"an earlier run was in {config.run.dir}; it is in {aside} now, and goes on from its best checkpoint with "
    assert f"{said}run.dir={aside} --resume {start}" in capsys.readouterr().out.splitlines()
    assert steps(train(tiny(*SHORT, f"run.dir={aside}"), start) / "checkpoints")[-1] == 6
    kill_in_first_step(config, None)
    assert "best checkpoint" not in capsys.readouterr().out


def test_a_damaged_best_checkpoint_is_no_reason_not_to_go_on(tiny, capsys):
    folder = train(tiny(*BEST, "train.stop_at=4"))
    (path,) = (folder / "best").glob("*/state.json")
    path.write_text("{")
    (folder / "metrics.jsonl").unlink()  # by which it would be found among the others
    train(tiny(*BEST), newest(tiny(*BEST)))
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("no best checkpoint until")]
    assert str(path) in line
    checkpoint.load(checkpoint.find(folder / "best"))


# --- what is never saved


def poison(trainer: Trainer, step: int, value: float) -> None:
    """One weight is not finite after a step, as after an update that overflows; the step's own loss is finite."""
    train_step = trainer.engine.train_step

    def poisoned(*arguments: Any) -> Any:
        result = train_step(*arguments)
        if trainer.step + 1 == step:
            next(trainer.engine.model.parameters()).data.view(-1)[3] = value
        return result

    trainer.engine.train_step = poisoned


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("last", [4, 6])
def test_weights_that_are_not_finite_are_not_saved_and_cost_no_older_checkpoint(tiny, value, last):
    settings = (*SHORT, f"train.stop_at={last}", "sparsity.updates=1", "checkpoint.keep=1")
    config = tiny(*settings)
    trainer = Trainer(config)
    poison(trainer, 4, value)
    expected = (
        "step 4: expected finite numbers to save, found NaN or inf in model .*newest checkpoint is .*step_00000002"
    )
    with pytest.raises(checkpoint.CheckpointError, match=expected):
        trainer.run()
    folder = Path(config.run.dir)
    assert steps(folder / "checkpoints") == [2]
    assert not (folder / "report.md").exists()
    train(config, cli._start(config, "auto", ALONE)[0])


def test_older_checkpoints_stay_while_steps_are_skipped(tiny):
    """Weights may be finite and no step possible from them."""
    config = tiny(*SHORT, "train.skip_non_finite=3", "checkpoint.every=1", "checkpoint.keep=1", "train.stop_at=4")
    trainer = Trainer(config)

    def hook(module, inputs, found):
        return found._replace(mlm_sum=found.mlm_sum * float("nan")) if module.training and trainer.step > 1 else None

    trainer.engine.model.register_forward_hook(hook)
    trainer.run()
    assert steps(Path(config.run.dir) / "checkpoints") == [2, 3, 4]
    train(tiny(*SHORT, "train.skip_non_finite=3", "checkpoint.every=1", "checkpoint.keep=1"), newest(config))
    assert steps(Path(config.run.dir) / "checkpoints") == [6]


# --- what is no damage


@pytest.mark.parametrize(
    "error",
    [
        InterruptedRunError(signal.SIGTERM, None),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_signal_or_too_little_memory_is_not_called_damage(tiny, monkeypatch, error):
    path = checkpoint.find(train(tiny("train.stop_at=1")))

    def failing(_: str) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "load_file", failing)
    with pytest.raises(type(error)) as caught:
        checkpoint.load(path)
    assert caught.value is error


def test_a_signal_after_the_last_step_names_what_was_saved(tiny, tmp_path, monkeypatch, capsys):
    """While the report is drawn: nothing is to be trained again."""

    def stopped(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    config = tiny("train.stop_at=2")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(as_dict(config)))
    monkeypatch.setattr("ipu_bert.trainer.write_outcome", stopped)
    assert cli.main(["--config", str(tmp_path / "config.yaml")]) == 75
    saved = Path(config.run.dir) / "checkpoints" / "step_00000002"
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped by SIGTERM; saved is {saved}, go on with --resume"


# --- evaluations that count


def test_an_evaluation_by_other_batches_is_made_anew(tiny):
    """What was recorded, and what was best, by one batch says nothing about two."""
    folder = train(tiny(*BEST, "train.stop_at=2", "eval.batches=1"))
    config = tiny(*BEST, "train.stop_at=4", "eval.batches=2")
    train(config, newest(config))
    assert steps(folder / "branches" / "best_by_other_batches" / "best") == [2]
    judged = [(r["step"], r["batches"]) for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "eval"]
    assert judged == [(0, 1), (2, 1), (2, 2), (4, 2)]
    train(config, newest(config))
    losses = [r["mlm_loss"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "eval" and r["step"] == 2]
    assert len(losses) == 2
    assert losses[0] != losses[1]
    (best,) = (folder / "best").iterdir()
    evaluated = {r["step"]: r["mlm_loss"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "eval"}
    assert checkpoint.read_info(best)["heldout_loss"] == min(evaluated[2], evaluated[4])
    assert checkpoint.read_info(best)["config"]["eval"]["batches"] == 2


def test_other_settings_that_are_the_same_batches_leave_the_best_where_it_is(tiny, capsys):
    """A held-out text of few batches: more of them are asked for and not found."""
    first = tiny(*BEST, "train.stop_at=4", "eval.batches=98")
    folder = train(first)
    (before,) = (folder / "best").iterdir()
    capsys.readouterr()
    train(tiny(*BEST, "train.stop_at=4", "eval.batches=99"), newest(first))
    assert list((folder / "best").iterdir()) == [before]
    assert not (folder / "branches").exists()
    info = checkpoint.read_info(before)
    assert 2 < info["heldout_batches"] < 98
    assert "the best checkpoint" not in capsys.readouterr().out


def test_what_was_recorded_last_by_as_many_batches_is_an_evaluation_of_the_step(tiny):
    config = tiny(*BEST, "train.stop_at=2", "eval.batches=99")  # more than the text has: as many as there are
    folder = train(config)
    made = [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "eval"][-1]
    trainer = Trainer(config, newest(config))
    assert 2 < made["batches"] == trainer._judged_by < 99
    with RunFolder(config, trainer._origin) as opened:
        means = {key: value for key, value in made.items() if key in MEANS}
        assert opened.evaluation(2, made["batches"]) == {**means, **{key: made[key] for key in RECORDED}}
        assert opened.evaluation(2, 1) == opened.evaluation(0, made["batches"]) == {}
        opened.metrics.write({"kind": "eval", "step": 2, **means, "mlm_loss": 1.0})  # as older versions
        assert opened.evaluation(2, 1) == {**means, "mlm_loss": 1.0}
        opened.metrics.write({**made, "batches": 1})
        assert opened.evaluation(2, made["batches"]) == {}


def test_a_finished_run_of_an_older_version_keeps_its_verdict(tiny):
    """Its evaluation was by own words alone; the report lost what it had said, and is of no more records now."""
    config = tiny("train.stop_at=2")
    folder = train(config)
    metrics, report = folder / "metrics.jsonl", json.loads((folder / "report.json").read_text())["heldout"]
    older = [{k: v for k, v in r.items() if k not in RECORDED} for r in read_metrics(metrics)]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in older))
    train(config, newest(config))
    assert [r for r in read_metrics(metrics) if r["kind"] == "eval"] == [r for r in older if r["kind"] == "eval"]
    again = json.loads((folder / "report.json").read_text())["heldout"]
    assert again == report
    assert again["other_words_loss"] is not None


def test_a_finished_run_of_a_version_that_did_not_count_what_was_replaced_is_not_judged_again(tiny):
    """Its report goes on to say what its records and its card say."""
    config = tiny("train.stop_at=2")
    folder = train(config)
    metrics, report = folder / "metrics.jsonl", json.loads((folder / "report.json").read_text())["heldout"]
    older = [{k: v for k, v in r.items() if k != "other_words_share"} for r in read_metrics(metrics)]
    for record in older:
        record.update({"other_words_error": 0.25} if record["kind"] == "eval" else {})  # not what would come out now
    metrics.write_text("".join(json.dumps(record) + "\n" for record in older))
    train(config, newest(config))
    again = json.loads((folder / "report.json").read_text())["heldout"]
    assert report["other_words_error"] != 0.25 != report["other_words_share"] > 0.0
    assert again == {**report, "other_words_error": 0.25, "other_words_share": None}
    assert "became others" not in (folder / "report.md").read_text()


def test_another_checkpoint_of_the_same_step_is_not_taken_for_the_one_named(tiny, tmp_path):
    """Best and newest of one step may be of two futures, where a run went back under other conditions."""
    config = tiny(*BEST, "train.stop_at=2")
    folder = train(config)
    (path,) = checkpoint.complete(folder / "best")
    model = path[1] / "model.safetensors"
    tensors = {name: t + 1 if name.endswith("LayerNorm.bias") else t for name, t in load_file(model).items()}
    save_file(tensors, model)
    state = json.loads((path[1] / "state.json").read_text())
    state["files"]["model.safetensors"]["sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    (path[1] / "state.json").write_text(sealed(state))
    with pytest.raises(checkpoint.CheckpointError, match=r"best.step_00000002: expected .* to be the same one"):
        train(tiny(*BEST), path[1])
    assert steps(train(tiny(*BEST, f"run.dir={tmp_path / 'new'}"), path[1]) / "checkpoints") == [2, 4, 6]
