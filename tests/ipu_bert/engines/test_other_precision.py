"""A checkpoint of one precision goes on in another, moments and step included, with one warning."""

from __future__ import annotations

import pytest
import torch

from ipu_bert import checkpoint
from ipu_bert.checkpoint import CheckpointError
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")

RUN = ("train.steps=4", "sparsity.updates=2", "train.micro_batch_size=1", "eval.batches=1")
HALF = ("engine.name=ipu", "precision.compute=float16", "precision.loss_scale=512")


def test_half_on_ipus_goes_on_in_float32_on_the_torch_engine(tiny, capsys):
    folder = Trainer(tiny(*RUN, *HALF, "train.stop_at=2")).run()
    groups, _ = checkpoint.load(checkpoint.find(folder))
    capsys.readouterr()
    trainer = Trainer(tiny(*RUN), checkpoint.find(folder))
    assert trainer.step == 2
    state = trainer.engine.state()
    for group in ("model", "optimizer"):
        for name, tensor in groups[group].items():
            assert torch.equal(state[group][name], tensor), f"{group} {name}"
    assert any(bool(tensor.any()) for name, tensor in groups["optimizer"].items() if name.startswith("exp_avg_sq."))
    parameter = next(iter(trainer.engine._parameters.values()))  # type: ignore[attr-defined]
    assert int(trainer.engine._moments(parameter)["step"]) == 2  # type: ignore[attr-defined]
    trainer.run()
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "not bit for bit" in line]
    for changed in ("precision.compute: float32, before float16", "precision.loss_scale: 1.0, before 512.0", "kernel"):
        assert changed in warning


def test_another_setting_is_another_run_still(tiny):
    folder = Trainer(tiny(*RUN, "train.stop_at=1")).run()
    with pytest.raises(CheckpointError, match=r"is of another run: optim\.lr: expected 0\.5, found 0\.001$"):
        Trainer(tiny(*RUN, "optim.lr=0.5", "precision.compute=bfloat16"), checkpoint.find(folder))
