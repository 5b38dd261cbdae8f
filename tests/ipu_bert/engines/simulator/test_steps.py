"""What the simulated device computes, against the same model on the host; and how it moves data."""

from __future__ import annotations

import pytest
import torch
from small import EPS, FEATURES, ROWS, Run, reference_loss, sparse_layer
from torch import Tensor

from sparse_ops.linear import BlockSparseLinear


def reference_step(
    layers: list[BlockSparseLinear], optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor
) -> Tensor:
    optimizer.zero_grad()
    loss = reference_loss(layers, x, target)
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize(("accumulation", "replicas"), [(3, 1), (3, 2), (4, 3)])
def test_float_steps_equal_the_host_across_pattern_updates(seed: int, accumulation: int, replicas: int) -> None:
    run = Run(seed, accumulation=accumulation, replicas=replicas)
    layers = [sparse_layer(seed + i) for i in (0, 1)]
    optimizer = torch.optim.AdamW([p for x in layers for p in x.parameters()], lr=0.01, eps=EPS, weight_decay=0.01)
    for step in range(6):
        x, target = run.inputs()
        (losses,) = run.executor(x, target)
        expected = reference_step(layers, optimizer, x, target)
        assert losses.shape == (accumulation * replicas,)
        torch.testing.assert_close(losses.sum(), expected, rtol=1e-4, atol=0)
        if step in (1, 3):
            run.update()
            slots = torch.tensor([1, 3])
            layers[0].reallocate(slots, run.layers[0].rows[slots], run.layers[0].cols[slots])
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[layers[0].values][moment][slots] = 0.0
    for module, layer in zip((run.model.first, run.model.second), layers):
        values, _ = module.read_slots(layer.rows, layer.cols)
        torch.testing.assert_close(values, layer.values.detach(), rtol=2e-4, atol=2e-5)
    assert run.executor.compilations == 1


def test_half_steps_stay_within_what_half_allows(seed: int) -> None:
    run = Run(seed, data_type="half")
    layers = [sparse_layer(seed + i) for i in (0, 1)]
    for layer in layers:  # the device starts from halves
        for p in layer.parameters():
            p.data.copy_(p.data.half())
    optimizer = torch.optim.AdamW([p for x in layers for p in x.parameters()], lr=0.01, eps=EPS, weight_decay=0.01)
    for _ in range(4):
        x, target = run.inputs()
        (losses,) = run.executor(x, target)
        expected = reference_step(layers, optimizer, x.float(), target)
        # About 2 * FEATURES / 16 + 6 roundings on a path of the forward pass, each of relative size 2^-11, enter a
        # residual of size 1 that is squared (factor 2).
        torch.testing.assert_close(losses.sum(), expected, rtol=2 * (2 * FEATURES / 16 + 6) * 2.0**-11, atol=0)
    for module, layer in zip((run.model.first, run.model.second), layers):
        values, _ = module.read_slots(layer.rows, layer.cols)
        difference = (values - layer.values.detach()).abs()
        # A weight below 2 rounds by at most 2^-11 per step. A gradient is wrong by some hundredths of its size (as the
        # loss above), and Adam turns that into at most as large a share of its step of at most lr.
        assert difference.max() <= 4 * (2.0**-11 + 0.05 * 0.01)


def test_order_of_micro_batches_and_replicas(seed: int) -> None:
    run = Run(seed, accumulation=3, replicas=2)
    run.step()
    assert run.executor.log == [(0, m, r) for m in range(3) for r in range(2)]
    assert run.executor.stages == [("one", 0), ("two", 1)]


def test_downloads_happen_only_when_weights_are_touched(seed: int) -> None:
    run = Run(seed)
    run.step()
    run.step()
    assert run.executor.transfers.downloads == 0
    before = run.layers[0].values.detach().clone()
    values, _ = run.model.first.read_slots(run.layers[0].rows, run.layers[0].cols)
    assert run.executor.transfers.downloads == 1
    assert not torch.equal(values, before)
    run.model.first.nz_values.sum()
    run.model.second.bias.sum()
    assert run.executor.transfers.downloads == 1, "once per step is enough"


def test_bytes_of_an_update(seed: int) -> None:
    run = Run(seed)
    run.step()
    transfers = run.executor.transfers
    down, up = transfers.bytes_down, transfers.bytes_up
    run.update()
    run.step()
    down, up = transfers.bytes_down - down, transfers.bytes_up - up
    weights = sum(p.numel() * p.element_size() for p in run.model.parameters())
    meta_info = sum(b.numel() * 2 for b in (run.model.first.meta_info, run.model.second.meta_info))
    state = 2 * weights + 4 * len(list(run.model.parameters()))  # two moments and a step counter each
    everything = weights + meta_info + state
    assert down == 2 * everything, "weights once, optimizer state once"
    assert up == 2 * everything


def test_learning_rate_reaches_the_device(seed: int) -> None:
    run = Run(seed)
    run.step()
    before = run.model.first.nz_values.detach().clone()
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    run.executor.setOptimizer(run.optimizer)
    run.step()
    assert torch.equal(run.model.first.nz_values, before)


def test_moments_have_no_padding_and_are_unscaled(seed: int) -> None:
    run = Run(seed)
    run.optimizer.loss_scaling = 512.0
    plain = Run(seed)
    x, target = run.inputs()
    run.executor(x, target)
    run.executor.detachFromDevice()
    plain.executor(x, target)
    state, expected = run.optimizer.state_dict()["ipu_state"], plain.optimizer.state_dict()["ipu_state"]
    for key in ("Accl1___first.nz_values", "Accl2___first.nz_values"):
        torch.testing.assert_close(state[key], expected[key], rtol=1e-5, atol=0)
    assert run.model.first.plan.batch == ROWS
