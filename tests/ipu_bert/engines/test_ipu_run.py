"""Whole runs on the simulated device: the torch engine's within rounding, resumed exactly, one compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import run_pretraining
from ipu_bert import checkpoint
from ipu_bert.engines.simulator import executor
from ipu_bert.record.metrics import read_metrics
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")

IPU = ("engine.name=ipu", "engine.device=simulated", "model.dropout=0", "model.attention_dropout=0", "optim.eps=0.001")


def train(config, resume=None) -> dict[str, dict[str, torch.Tensor]]:
    executor._attached.clear()
    return checkpoint.load(checkpoint.find(Trainer(config, resume).run()))[0]


def records(config, kind: str) -> list[dict]:
    return [r for r in read_metrics(Path(config.run.dir) / "metrics.jsonl") if r["kind"] == kind]


def written_out(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sparse values at their places in the grid of blocks, whichever slot holds them."""
    for name in [name[: -len(".rows")] for name in model if name.endswith(".rows")]:
        rows, cols = (model.pop(f"{name}.{key}").long() for key in ("rows", "cols"))
        blocks = model[f"{name}.values"]
        model[f"{name}.values"] = torch.zeros(64, 64, *blocks.shape[1:])
        model[f"{name}.values"][rows, cols] = blocks
    return model


def test_float32_run_is_the_torch_engines(tiny, tmp_path):
    on_torch = tiny(*IPU, "engine.name=torch", f"run.dir={tmp_path / 'torch'}")
    on_ipu = tiny(*IPU, "train.micro_batch_size=1", f"run.dir={tmp_path / 'ipu'}")
    expected, found = (written_out(train(config)["model"]) for config in (on_torch, on_ipu))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=2e-4)
    updates = records(on_ipu, "update")
    assert len(updates) >= 2
    for update in updates:
        assert update["transfers"]["compilations"] == 1
        assert update["transfers"]["bytes_down"] > 0
        assert update["transfers"]["bytes_up"] > 0
    expected_losses = [r["mlm_loss"] for r in records(on_torch, "eval")]
    assert [r["mlm_loss"] for r in records(on_ipu, "eval")] == pytest.approx(expected_losses, rel=1e-3)


def test_stop_and_resume_in_half_is_the_same_run(tiny, tmp_path):
    shorter = ("train.steps=6", "sparsity.updates=3", "eval.batches=1")  # updates after steps 2 and 4
    settings = (*IPU, *shorter, "precision.compute=float16", "precision.loss_scale=512", "train.micro_batch_size=2")
    whole, parts = tiny(*settings, f"run.dir={tmp_path / 'whole'}"), tiny(*settings, "train.stop_at=3")
    expected = train(whole)
    train(parts)
    rest = tiny(*settings)
    found = train(rest, checkpoint.find(Path(rest.run.dir)))
    for group in ("model", "optimizer"):
        for name, tensor in expected[group].items():
            assert torch.equal(found[group][name], tensor), f"{group} {name}"


def test_a_dry_run_needs_no_sdk(capsys):
    status = run_pretraining.main(["--config", "bert_base_dynsparse_pod16", "--dry-run", "--json"])
    assert status == 0
    assert '"placement"' in capsys.readouterr().out


def test_hardware_without_poptorch_is_one_message(tiny, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "poptorch", None)
    config = tiny("engine.name=ipu", "engine.device=hardware")
    with pytest.raises(ValueError, match=r"poptorch cannot be imported .* engine\.device: simulated"):
        Trainer(config)
