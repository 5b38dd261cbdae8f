"""Whole runs on a small real corpus: exact resume, algorithms as settings, every bad input, what is left behind."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import run_pretraining
from ipu_bert import assemble, checkpoint
from ipu_bert.engines.base import NonFiniteError
from ipu_bert.engines.torch_engine import TorchEngine, eval_batch
from ipu_bert.judging import Judge
from ipu_bert.precision import Precision
from ipu_bert.record.context import RECORDED
from ipu_bert.record.metrics import read_metrics, to_plain
from ipu_bert.stopwatch import Stopwatch
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer

PROGRAM = Path(run_pretraining.__file__)

pytestmark = pytest.mark.usefixtures("blank_pictures")


def train(config, resume=None) -> dict[str, dict[str, torch.Tensor]]:
    """Run, and return the tensors of the last checkpoint."""
    folder = Trainer(config, resume).run()
    return checkpoint.load(checkpoint.find(folder))[0]


def assert_same(first, second) -> None:
    assert first.keys() == second.keys()
    for group in first:
        assert first[group].keys() == second[group].keys()
        for name, tensor in first[group].items():
            assert torch.equal(tensor, second[group][name]), f"{group} {name}"


def records(config, kind: str) -> list[dict]:
    return [r for r in read_metrics(Path(config.run.dir) / "metrics.jsonl") if r["kind"] == kind]


@pytest.mark.parametrize("stop", [2, 3, 7])
def test_stop_and_resume_is_the_same_run_bit_for_bit(tiny, tmp_path, stop):
    """Updates happen after steps 3, 6 and 9: before, at and after one; dropout, moments, patterns, losses agree."""
    whole = tiny(f"run.dir={tmp_path / 'whole'}")
    first = tiny(f"train.stop_at={stop}")
    rest = tiny()
    expected = train(whole)
    train(first)
    torch.manual_seed(999)  # whatever another program does in between
    found = train(rest, checkpoint.find(Path(rest.run.dir)))
    assert_same(found, expected)
    for kind, key in (("train", "mlm_loss"), ("update", "explored_dof")):
        assert [(r["step"], r[key]) for r in records(rest, kind)] == [(r["step"], r[key]) for r in records(whole, kind)]


def test_the_same_seed_is_the_same_run_and_another_is_not(tiny, tmp_path):
    runs = [
        train(tiny("train.stop_at=4", f"run.dir={tmp_path / str(i)}", f"run.seed={s}")) for i, s in enumerate((1, 1, 2))
    ]
    assert_same(runs[0], runs[1])
    assert not torch.equal(
        runs[0]["model"]["bert.embeddings.word_embeddings.weight"],
        runs[2]["model"]["bert.embeddings.word_embeddings.weight"],
    )


def test_micro_batches_give_the_step_of_the_whole_batch(tiny):
    """Without dropout four micro-batches of one sequence are one batch of four, up to float32 rounding of the sums."""
    results = []
    for size in (4, 1):
        config = tiny(f"train.micro_batch_size={size}", "model.dropout=0", "optim.clip_norm=0")
        data = assemble.open_data(config, progress=False)
        engine = assemble.make_engine(config, data.vocab_size, Stopwatch())
        batch = assemble.make_stream(config, data, "train").batch(0)
        results.append((engine.train_step(batch), engine.state()["optimizer"]))
    (whole, moments), (parts, other) = results
    assert whole.mlm_loss == pytest.approx(parts.mlm_loss, rel=1e-6)
    assert whole.grad_norm == pytest.approx(parts.grad_norm, rel=1e-5)
    for name, moment in moments.items():
        scale = float(moment.abs().max())
        torch.testing.assert_close(other[name], moment, rtol=0, atol=2e-5 * scale)


def test_loss_scale_changes_nothing(tiny, tmp_path):
    """A power of two is exact in float32, and gradients lose it before clipping and Adam."""
    plain = train(tiny("train.stop_at=4", f"run.dir={tmp_path / 'a'}"))
    scaled = train(tiny("train.stop_at=4", f"run.dir={tmp_path / 'b'}", "precision.loss_scale=512"))
    assert_same(plain, scaled)


def test_the_first_step_by_hand(tiny):
    """Adam's first step moves a weight by lr x sign(gradient), after decay by lr x 0.01 of itself."""
    config = tiny("model.dropout=0", "optim.warmup_steps=0", "optim.eps=1e-12")
    data = assemble.open_data(config, progress=False)
    engine = assemble.make_engine(config, data.vocab_size, Stopwatch())
    layer = engine.model.bert.encoder.layer[0].intermediate.dense
    before = layer.values.detach().clone()
    result = engine.train_step(assemble.make_stream(config, data, "train").batch(0))
    assert result.lr == pytest.approx(1e-3)
    moment = engine.state()["optimizer"]["exp_avg.bert.encoder.layer.0.intermediate.dense.values"]
    expected = before * (1 - 1e-3 * 0.01) - 1e-3 * moment.sign()
    torch.testing.assert_close(layer.values.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sparsity.method=static"],
        ["sparsity.method=dense"],
        ["sparsity.growth=gradient"],
        ["sparsity.growth=gradient", "train.micro_batch_size=2", "sparsity.allow_removed=true"],
        ["sparsity.distribution=erdos_renyi_kernel"],
        ["sparsity.layers=['*.intermediate.dense','*.output.dense']", "sparsity.block_size=1"],
        ["optim.group_lasso=0.1", "optim.weight_decay=0", "sparsity.norm=linf", "sparsity.schedule=linear"],
        ["precision.compute=bfloat16", "optim.schedule=constant"],
    ],
    ids=lambda o: o[0],
)
def test_every_method_is_a_setting(tiny, overrides):
    config = tiny(*overrides)
    before = {n: t.clone() for n, t in assemble.make_model(config, 1000).state_dict().items()}
    state = train(config)
    moves = any(name.endswith("rows") and not torch.equal(before[name], t) for name, t in state["model"].items())
    assert moves == (config.sparsity.method == "dynsparse")
    assert len(records(config, "update")) == (3 if config.sparsity.method == "dynsparse" else 0)
    values = {n: t.shape for n, t in before.items() if n.endswith("values")}
    assert all(state["model"][name].shape == shape for name, shape in values.items())
    losses = [r["mlm_loss"] for r in records(config, "train")]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-3:]) < sum(losses[:3])


def test_group_lasso_shrinks_sparse_blocks(tiny, tmp_path):
    """A run's first step with it, less the same step without: Equation 2 in float64, decayed by AdamW.

    Each of the two rounds a weight at most six times, the factor of Equation 2 included: 12 x 2^-24 of its size.
    """
    start, ends = {}, []
    for coefficient in (0.0, 50.0):
        config = tiny(f"optim.group_lasso={coefficient}", "train.stop_at=1", f"run.dir={tmp_path / str(coefficient)}")
        trainer = Trainer(config)
        start = {name: tensor.double() for name, tensor in trainer.engine.model.state_dict().items()}
        trainer.run()
        ends.append({name: tensor.double() for name, tensor in trainer.engine.model.state_dict().items()})
        lr = records(config, "train")[0]["lr"]
    for name, w in start.items():
        found, size = ends[1][name] - ends[0][name], w.abs() + lr
        if name.endswith("values"):
            norm = torch.sqrt((w * w).sum((1, 2), keepdim=True) + 1e-6)
            shrunk = lr * 50.0 * 8**0.5 * 0.02 * w / norm * (1 - lr * config.optim.weight_decay)
            assert bool(((found + shrunk).abs() <= 12 * 2**-24 * size).all()), name
            assert float(shrunk.abs().max()) > 1000 * 12 * 2**-24 * float(size.max())  # else nothing is compared
        else:
            assert bool((found == 0).all()), name


def test_a_run_leaves_everything_behind(tiny):
    config = tiny("eval.every=5", "checkpoint.every=4", "checkpoint.keep=2", "log.tensorboard=true")
    folder = Trainer(config).run()
    assert [step for step, _ in checkpoint.complete(folder / "checkpoints")] == [8, 12]
    report = json.loads((folder / "report.json").read_text())
    evaluations = records(config, "eval")
    assert [r["step"] for r in evaluations] == [0, 5, 10, 12]
    assert report["heldout"]["mlm_loss"] == evaluations[-1]["mlm_loss"]
    assert report["heldout"]["nsp_loss"] == evaluations[-1]["nsp_loss"]
    assert 4 < report["heldout"]["unigram_entropy"] < math.log(1000)
    # Losses beside it are of the same labels (test_judging.py).
    data, model = assemble.open_data(config, progress=False), load_model(folder).model
    judging, precision = assemble.make_stream(config, data, "heldout"), Precision("float32", loss_scale=1.0)
    judge = Judge(
        data, judging, np.bincount(data.split("train").tokens, minlength=data.vocab_size), config.eval.batches
    )
    _, context = judge.judge(lambda batch: eval_batch(model, precision, batch, config.train.micro_batch_size))
    for found in (evaluations[-1], report["heldout"]):
        assert {key: found[key] for key in RECORDED} == to_plain(context.as_record())
    assert evaluations[0]["word_frequencies_loss"] == context.word_frequencies_loss
    assert evaluations[0]["other_words_loss"] != context.other_words_loss
    assert report["throughput"]["sequences_per_second"] > 0
    assert report["throughput"]["executed_flops_per_second"] < report["throughput"]["dense_equivalent_flops_per_second"]
    assert sum(report["time_share"].values()) == pytest.approx(1)
    assert report["parameters"]["sparse"] == sum(
        t.numel() for n, t in checkpoint.load(checkpoint.find(folder))[0]["model"].items() if n.endswith("values")
    )
    assert list((folder / "tensorboard").iterdir())
    assert "(word frequencies)" in (folder / "report.md").read_text()


def test_an_update_took_what_the_search_for_it_took(tiny, monkeypatch):
    """By a clock that passes 1 s in each forward pass: of eight passes over two micro-batches one is the step's own."""
    now, losses = [0.0], TorchEngine._losses

    def slow(self, batch):
        now[0] += 1.0
        return losses(self, batch)

    monkeypatch.setattr(TorchEngine, "_losses", slow)
    monkeypatch.setattr("ipu_bert.trainer.Stopwatch", lambda seconds: Stopwatch(seconds, clock=lambda: now[0]))
    monkeypatch.setattr("ipu_bert.trainer.time", SimpleNamespace(monotonic=lambda: now[0]))
    config = tiny("sparsity.growth=gradient", "train.micro_batch_size=2", "train.stop_at=4")
    folder = Trainer(config).run()
    (update,) = records(config, "update")
    assert update["seconds"] == update["searched"] == 7 * 2
    report = json.loads((folder / "report.json").read_text())
    assert report["seconds"]["update"] == 7 * 2
    assert report["seconds"]["forward"] == 4 * 2
    assert report["pattern"]["seconds_per_update"] == update["seconds"]


def test_evaluation_does_not_change_training(tiny, tmp_path):
    often = train(tiny("eval.every=1", "checkpoint.every=2", f"run.dir={tmp_path / 'a'}"))
    assert_same(often, train(tiny(f"run.dir={tmp_path / 'b'}")))


def test_a_nan_stops_the_run_and_keeps_the_checkpoint(tiny, monkeypatch):
    config = tiny("checkpoint.every=2", "sparsity.method=static")
    trainer = Trainer(config)
    step = trainer.engine.train_step

    def poisoned(batch, counts=None):
        if trainer.step == 3:
            with torch.no_grad():
                trainer.engine.model.bert.pooler.dense.weight[0, 0] = math.nan
        return step(batch, counts)

    monkeypatch.setattr(trainer.engine, "train_step", poisoned)
    with pytest.raises(
        NonFiniteError,
        match=r"step 4: loss became nan.*expected a finite number; the newest checkpoint is .*step_00000002",
    ):
        trainer.run()
    checkpoint.load(checkpoint.find(Path(config.run.dir)))


def test_a_pattern_update_with_nothing_finite_to_go_by_says_which_checkpoint_is_left(tiny, monkeypatch):
    trainer = Trainer(tiny("checkpoint.every=1", "sparsity.growth=gradient"))
    step = trainer.engine.train_step

    def poisoned(batch, counts=None):
        result = step(batch, counts)
        for blocks in (result.gradients or {}).values():
            blocks.active.fill_(math.inf)
        return result

    monkeypatch.setattr(trainer.engine, "train_step", poisoned)
    found = "expected a finite dense gradient, found NaN or inf; the newest checkpoint is .*step_00000002"
    with pytest.raises(ValueError, match=f"^pattern update after step 3: .*: {found}$"):
        trainer.run()


def test_a_step_that_is_not_finite_is_told_where_the_checkpoints_are_gone(tiny, monkeypatch):
    config = tiny("checkpoint.every=2")
    trainer, folder = Trainer(config), Path(config.run.dir) / "checkpoints"

    def poisoned(batch, counts=None):
        folder.rmdir()
        folder.symlink_to("a_disk_that_is_away")
        raise NonFiniteError("loss became nan", weights_kept=True)

    monkeypatch.setattr(trainer.engine, "train_step", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 1: loss became nan.*cannot be told: .*a_disk_that_is_away"):
        trainer.run()


def test_an_exploding_run_ends_with_one_line(tiny):
    """A learning rate beyond reason, as a user would meet it."""
    config = tiny("optim.lr=1e30", "optim.clip_norm=0", "optim.warmup_steps=0")
    with pytest.raises((NonFiniteError, ValueError), match="step"):
        Trainer(config).run()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.layers=1"], "model.layers: expected 1, found 2"),
        (["sparsity.block_size=4"], "sparsity.block_size: expected 4, found 8"),
        (["optim.lr=2e-3"], "optim.lr: expected 0.002, found 0.001"),
        (["run.seed=5"], "run.seed: expected 5, found 0"),
        (["data.vocab_size=900"], "data.vocab_size: expected 900, found 1000"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path, overrides, message):
    first = tiny("train.stop_at=1")
    train(first)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        Trainer(tiny(*overrides, f"run.dir={tmp_path / 'other'}"), checkpoint.find(Path(first.run.dir)))


def test_a_checkpoint_beyond_the_end_is_refused(tiny):
    first = tiny("train.stop_at=3")
    train(first)
    with pytest.raises(checkpoint.CheckpointError, match="expected a step of at most 2, found 3"):
        Trainer(tiny("train.stop_at=2"), checkpoint.find(Path(first.run.dir)))


def test_a_new_run_moves_an_earlier_one_aside(tiny, capsys):
    config = tiny("train.stop_at=1")
    train(config)
    first = (Path(config.run.dir) / "metrics.jsonl").read_text()
    train(config)
    aside = Path(config.run.dir + ".1")
    assert (aside / "metrics.jsonl").read_text() == first
    assert str(aside) in capsys.readouterr().out


def test_a_folder_of_something_else_is_left_alone(tiny):
    config = tiny()
    Path(config.run.dir).mkdir()
    (Path(config.run.dir) / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="expected a new or empty folder or an earlier run's"):
        Trainer(config).run()
    assert os.listdir(config.run.dir) == ["thesis.tex"]


@pytest.fixture
def config_file(tiny, tmp_path) -> str:
    return str(tmp_path / "tiny.yaml")


def test_the_program_end_to_end(config_file, tmp_path, capsys):
    """Begun in this process, resumed in another."""
    assert run_pretraining.main(["--config", config_file, "train.stop_at=2", "train.steps=9"]) == 0
    assert "report.md" in capsys.readouterr().out
    command = [sys.executable, str(PROGRAM), "--config", config_file, "--resume", "train.steps=9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "report.md" in done.stdout
    kinds = [(r["kind"], r["step"]) for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert [s for k, s in kinds if k == "train"] == list(range(1, 10))
    assert ("resume", 2) in kinds
    for name in ("loss_curves", "pattern_updates", "pattern_start_end"):
        with Image.open(tmp_path / "run" / f"{name}.png") as picture:
            assert min(picture.size) > 300


def test_dry_run_as_json_is_one_object(config_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_pretraining.main(["--config", "bert_base_dynsparse", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["flops_per_sequence"] == pytest.approx(8.33e9, rel=1e-3)
    assert found["parameters"]["sparse"] == 12 * (690 + 230 + 922 + 922) * 256
    assert found["memory"]["total"] > 0
    assert os.listdir(tmp_path) == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.stepz=3"], "unknown key train.stepz; did you mean 'steps'?"),
        (["--resume"], "to hold a complete checkpoint, found none"),
        (["data.path=/no/such/file.txt"], "/no/such/file.txt"),
        (["train.batch_size=5000"], "corpus too small"),
        (["log.wandb=true"], "wandb"),
    ],
)
def test_bad_input_ends_in_one_line_and_a_status(config_file, arguments, message, capsys):
    assert run_pretraining.main(["--config", config_file, *arguments]) == 2
    lines = capsys.readouterr().err
    errors = [line for line in lines.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert message in errors[0]


def test_a_terminated_run_saves_and_continues_bit_for_bit(config_file, tiny, tmp_path):
    settings = ["train.steps=400", "sparsity.updates=40", "log.every=1"]
    command = [sys.executable, str(PROGRAM), "--config", config_file, *settings]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (metrics.exists() and '"train"' in metrics.read_text()):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "go on with --resume" in errors
    step = checkpoint.complete(tmp_path / "run" / "checkpoints")[-1][0]
    assert 0 < step < 400
    last = step + 3
    found = train(tiny(*settings, f"train.stop_at={last}"), checkpoint.find(tmp_path / "run"))
    expected = train(tiny(*settings, f"train.stop_at={last}", f"run.dir={tmp_path / 'whole'}"))
    assert_same(found, expected)
