"""`train.skip_non_finite`: what a run does about a loss or a gradient that is not finite."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any, Callable

import pytest
import torch

from ipu_bert import checkpoint
from ipu_bert.config import Config, ConfigError
from ipu_bert.engines.base import NonFiniteError
from ipu_bert.export_run import export
from ipu_bert.record.console import ConsoleSink
from ipu_bert.record.metrics import read_metrics
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")

Tiny = Callable[..., Config]


def trainer_with(config: Config, bad: set[int], resume: Path | None = None, in_loss: bool = True) -> Trainer:
    """A trainer whose loss, or else its gradient, is NaN at some steps, and the batch numbers asked for in `asked`."""
    trainer = Trainer(config, resume)
    engine, batch = trainer.engine, trainer._train_batches

    def hook(module: Any, inputs: Any, found: Any) -> Any:
        wanted = module.training and trainer.step + 1 in bad
        return found._replace(mlm_sum=found.mlm_sum * math.nan) if wanted else None

    def gradient_hook(gradient: torch.Tensor) -> torch.Tensor | None:
        return gradient * math.nan if trainer.step + 1 in bad else None

    if in_loss:
        engine.model.register_forward_hook(hook)  # type: ignore[attr-defined]
    else:
        next(engine.model.parameters()).register_hook(gradient_hook)  # type: ignore[attr-defined]
    trainer.asked = []  # type: ignore[attr-defined]
    trainer._train_batches = lambda i: (trainer.asked.append(i), batch(i))[1]  # type: ignore
    return trainer


def skips(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "skip"]


@pytest.mark.parametrize(("in_loss", "reason"), [(True, "loss became nan"), (False, "gradient norm became nan")])
def test_skipped_steps_are_counted_shown_and_the_same_after_a_resume(
    tiny: Tiny, tmp_path: Path, in_loss: bool, reason: str
) -> None:
    """Of 8 steps, 3 and 4 are bad, and 6 with its pattern update; stopped between two bad steps and after them."""
    settings = ("train.steps=8", "train.skip_non_finite=2", "sparsity.updates=4")  # updates after 2, 4 and 6
    bad = {3, 4, 6}
    whole = trainer_with(tiny(*settings, f"run.dir={tmp_path / 'whole'}"), bad, None, in_loss)
    folder = whole.run()
    assert whole.asked == list(range(8))  # type: ignore[attr-defined]
    expected, _ = checkpoint.load(checkpoint.find(folder))
    found = [(r["step"], r["in_a_row"], r["limit"], r["update_left_out"]) for r in skips(folder)]
    assert found == [(3, 1, 2, False), (4, 2, 2, True), (6, 1, 2, True)]
    assert all(record["reason"].startswith(reason) for record in skips(folder))
    updates = [r["step"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "update"]
    assert updates == [2]
    trained = {r["step"]: r["mlm_loss"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "train"}
    assert [step for step, loss in trained.items() if loss is None] == [3, 4, 6]
    assert json.loads((folder / "report.json").read_text())["skipped_steps"] == [3, 4, 6]
    assert "Skipped: 3 of 8 steps" in (folder / "report.md").read_text()
    export(load_model(folder), tmp_path / "exported", sparse=False)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "3 of the steps had no finite loss or gradient and changed nothing." in card

    for stop in (3, 5):
        parts = [tiny(*settings, f"run.dir={tmp_path / str(stop)}", *more) for more in ([f"train.stop_at={stop}"], [])]
        trainer_with(parts[0], bad, None, in_loss).run()
        rest = trainer_with(parts[1], bad, checkpoint.find(Path(parts[1].run.dir)), in_loss).run()
        groups, _ = checkpoint.load(checkpoint.find(rest))
        for group, tensors in expected.items():
            assert groups[group].keys() == tensors.keys()
            assert all(torch.equal(groups[group][name], tensor) for name, tensor in tensors.items())
        assert skips(rest) == skips(folder)
    older = load_model(tmp_path / "3/checkpoints/step_00000003")
    export(older, tmp_path / "older", sparse=False)
    assert "1 of the steps had no finite" in (tmp_path / "older" / "README.md").read_text()


def test_one_more_in_a_row_ends_the_run_before_and_after_a_resume(tiny: Tiny, tmp_path: Path) -> None:
    """The limit can be changed for a resume; what was skipped before it counts."""
    settings = ("train.steps=8", "sparsity.updates=1", "checkpoint.every=1")
    config = tiny(*settings, "train.skip_non_finite=1")
    with pytest.raises(NonFiniteError, match=r"step 4: loss became nan.*after 1 skipped in a row; .*step_00000003"):
        trainer_with(config, {1, 3, 4}).run()
    newest = checkpoint.find(Path(config.run.dir))
    with pytest.raises(NonFiniteError, match=r"step 4: .*after 1 skipped in a row"):
        trainer_with(config, {4}, newest).run()
    assert trainer_with(tiny(*settings, "train.skip_non_finite=2"), {4}, newest).run()


def test_where_weights_are_lost_nothing_is_skipped(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny("train.skip_non_finite=9"))

    def lost(*_: Any) -> None:
        raise NonFiniteError("loss became nan", weights_kept=False)

    monkeypatch.setattr(trainer.engine, "train_step", lost)
    with pytest.raises(NonFiniteError, match="step 1: loss became nan, expected a finite number; no checkpoint"):
        trainer.run()


def test_the_ipu_engine_refuses_it_at_once(tiny: Tiny) -> None:
    expected = r"train\.skip_non_finite: expected 0 on the ipu engine, found 2: .* after the weights have changed"
    with pytest.raises(ConfigError, match=expected):
        tiny("train.skip_non_finite=2", "engine.name=ipu", "train.micro_batch_size=1")


def test_the_console_says_it() -> None:
    stream = io.StringIO()
    record = {"kind": "skip", "step": 7, "reason": "loss became nan", "in_a_row": 2, "limit": 3}
    ConsoleSink(10, stream).write({**record, "update_left_out": True})
    assert stream.getvalue() == (
        "step 7  skipped, and with it a pattern update: loss became nan; 2 in a row, at most 3\n"
    )


def test_no_checkpoint_is_removed_at_a_resume_while_steps_are_skipped(tiny: Tiny) -> None:
    """What was saved before the first of them may be all that a run can go on from."""
    settings = ("train.steps=8", "train.skip_non_finite=9", "checkpoint.every=1", "checkpoint.keep=1")
    for stop in (3, 4, 5, 8):
        config = tiny(*settings, f"train.stop_at={stop}")
        start = None if stop == 3 else checkpoint.find(Path(config.run.dir))
        saved = trainer_with(config, {3, 4, 5}, start).run() / "checkpoints"
        steps = [step for step, _ in checkpoint.complete(saved)]
        assert steps == ([8] if stop == 8 else list(range(2, stop + 1)))
