"""`--dry-run --measure`: hours from a few steps of the real model."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

import run_pretraining
from ipu_bert import assemble, measure, trial
from ipu_bert.engines.torch_engine import TorchEngine


def test_what_is_timed_and_how_it_adds_up(tiny, monkeypatch):
    """A step takes 2 s by the clock, 9 s where it finds the dense gradient's blocks, and the first one 100 s more."""
    clock, steps = [0.0], []
    train_step, eval_step = TorchEngine.train_step, TorchEngine.eval_step

    def slow_step(self, batch, counts=None):
        steps.append(batch.input_ids.shape)
        clock[0] += (2.0 if counts is None else 9.0) + (100.0 if len(steps) == 1 else 0.0)
        return train_step(self, batch, counts)

    def slow_evaluation(self, batch):
        clock[0] += 0.5
        return eval_step(self, batch)

    monkeypatch.setattr(TorchEngine, "train_step", slow_step)
    monkeypatch.setattr(TorchEngine, "eval_step", slow_evaluation)
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    config = tiny("sparsity.growth=gradient", "train.micro_batch_size=2", "eval.every=5", "train.stop_at=11")
    times = measure.measure(config)
    assert set(steps) == {(4, 32)}
    assert (times.steps, times.step_seconds) == (11, 2.0)
    assert (times.updates, times.update_seconds) == (3, 7.0)  # after 3, 6 and 9
    assert (times.evaluations, times.evaluation_seconds) == (
        4,
        2 * 2 * 0.5,
    )  # before 1, after 5, 10 and 11; two batches, twice
    assert times.total_seconds == 11 * 2 + 3 * 7 + 4 * 2
    assert "2 s a step: 22 s for 11 steps" in times.render()
    assert measure.measure(tiny("sparsity.method=static", "eval.every=0")).total_seconds == 12 * 2 + 2 * 2 * 2 * 0.5
    left = measure.measure(config, done=6)
    assert (left.steps, left.updates, left.evaluations) == (5, 1, 2)  # an update after 9, evaluations after 10 and 11


@pytest.mark.parametrize(
    ("every", "last", "done", "evaluations"),
    [(5, 11, 0, 4), (5, 11, 6, 2), (5, 10, 0, 3), (5, 10, 5, 1), (0, 10, 0, 2), (0, 10, 3, 1), (5, 10, 10, 0)],
)
def test_evaluations_are_counted(every, last, done, evaluations):
    """Before the first step, after each so many and after the last; of those, what is left."""
    assert measure._evaluations(every, last, done) == evaluations


def test_evaluations_of_the_longest_run_are_counted_at_once():
    assert measure._evaluations(1, 10**9, 0) == 10**9 + 1


def test_a_run_that_goes_on_is_measured_from_there(tiny, tmp_path, capsys, blank_pictures):
    """Nine of twelve steps are made: three are left; of pattern updates after 3, 6 and 9 none."""
    tiny()
    command = ["--config", str(tmp_path / "tiny.yaml"), "train.stop_at=9"]
    assert run_pretraining.main(command) == 0
    capsys.readouterr()
    assert run_pretraining.main([*command[:2], "--resume", "auto", "--measure", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert (measured["steps"], measured["updates"]) == (3, 0)


@pytest.mark.parametrize("engine", [[], ["engine.name=ipu", "train.micro_batch_size=1"]], ids=["torch", "ipu"])
def test_the_command_measures_and_writes_nothing(tiny, tmp_path, engine, capsys):
    tiny()
    where = f"data.dir={tmp_path / 'data'}"
    assert run_pretraining.main(["--config", str(tmp_path / "tiny.yaml"), where, *engine, "--measure", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["batches"] == "random ids"
    assert measured["step_seconds"] > 0
    assert measured["evaluation_seconds"] > 0
    assert measured["update_seconds"] > 0
    assert measured["total_hours"] == pytest.approx(measured["total_seconds"] / 3600)
    assert os.listdir(tmp_path) == ["tiny.yaml"]


def test_what_the_batches_of_the_steps_are_made_from_is_said(tiny):
    """0.0429 s a step was told of random ids, with a label at every place; the run took 17.5 ms."""
    said = "the text is not prepared yet: random ids have as many words as were asked for, and a label at every"
    of_ids = measure.measure(tiny("data.dir=nowhere", "train.stop_at=1")).render()
    assert "mean of 2 steps on random ids after a first one" in of_ids
    assert said in of_ids
    assemble.open_data(tiny(), progress=False)
    of_text = measure.measure(tiny("train.stop_at=1")).render()
    assert "mean of 2 steps on text after a first one" in of_text
    assert said not in of_text


def test_what_cannot_be_measured_ends_in_one_line(tiny, tmp_path, capsys):
    tiny()
    settings = ["engine.name=ipu", "engine.device=offline", "train.micro_batch_size=1"]
    assert run_pretraining.main(["--config", str(tmp_path / "tiny.yaml"), *settings, "--measure"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
