"""Pattern updates around torch's own optimizers, without the application."""

from __future__ import annotations

import pytest
import torch
from small_models import make_plan

from sparse_ops import BlockSparseLinear
from sparse_ops.dynsparse.moments import moments_of
from sparse_ops.dynsparse.updater import PatternUpdater

OPTIMIZERS = {  # by name: options, and how many tensors each keeps per element
    "SGD": ({"momentum": 0.9}, 1),
    "Adam": ({"amsgrad": True}, 3),
    "AdamW": ({}, 2),
    "RMSprop": ({"momentum": 0.9, "centered": True}, 3),
    "Adagrad": ({}, 1),
    "NAdam": ({}, 2),
}


def step_with(name: str, options: dict, seed: int) -> tuple[BlockSparseLinear, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    layer = BlockSparseLinear(64, 32, 8, 0.5)
    optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.01, **options)
    layer(torch.randn(9, 64)).square().sum().backward()
    optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_any_optimizer_keeps_of_a_moved_block_is_zeroed(seed, name):
    options, count = OPTIMIZERS[name]
    layer, optimizer = step_with(name, options, seed)
    updater, before = PatternUpdater(make_plan()), layer.pattern.keys()
    updater.track({"layer": layer})
    moments = moments_of(optimizer, {"layer": layer})
    assert [moment.shape for moment in moments["layer"]] == [layer.values.shape] * count
    updater.update({"layer": layer}, moments, 10)
    moved = layer.pattern.keys() != before
    assert int(moved.sum()) == 8  # half of sixteen
    for moment in moments["layer"]:
        assert not moment[moved].any()
        assert bool(moment[~moved].any())


def test_an_optimizer_without_state_per_element_is_refused(seed):
    layer, optimizer = step_with("Adafactor", {}, seed)
    with pytest.raises(ValueError, match=r"layer.values: expected row_var of the optimizer per element, \[16, 8, 8\]"):
        moments_of(optimizer, {"layer": layer})
    other = BlockSparseLinear(64, 32, 8, 0.5)
    with pytest.raises(ValueError, match=r"other\.values: expected a parameter of the optimizer"):
        moments_of(optimizer, {"other": other})
    assert moments_of(torch.optim.AdamW(other.parameters()), {"other": other}) == {"other": []}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("LBFGS", {}, "found LBFGS"),
        ("Rprop", {}, "found Rprop"),
        ("Adagrad", {"initial_accumulator_value": 0.1}, "found another initial_accumulator_value"),
    ],
)
def test_an_optimizer_whose_state_of_a_new_block_is_not_zero_is_refused(name, options, said):
    dense, layer = torch.nn.Linear(64, 64), BlockSparseLinear(64, 32, 8, 0.5)
    parameters = [*dense.parameters(), *layer.parameters()]
    optimizer = getattr(torch.optim, name)(parameters, lr=0.01, **options)
    with pytest.raises(ValueError, match=f"moments_of: expected .* begins at zero, {said}"):
        moments_of(optimizer, {"layer": layer})
