"""What options make of an executable: recomputation, where variables are, the loss scale, and the mean of gradients."""

from __future__ import annotations

import pytest
import torch
from small import FEATURES, ROWS, Model, Run, options, sparse_layer

from ipu_bert.engines import simulator as sim
from ipu_bert.engines.simulator.arithmetic import Rounding
from ipu_bert.engines.simulator.loss_scale import AutomaticLossScale
from ipu_bert.engines.simulator.options import RecomputationType
from ipu_bert.engines.simulator.reduction import GradientReduction


@pytest.mark.parametrize(
    ("chosen", "expected"), [(None, RecomputationType.Pipeline), (0, RecomputationType.NoRecomputation)]
)
def test_several_ipus_recompute_unless_told_otherwise(seed: int, chosen: int | None, expected: object) -> None:
    model, set_options = Model([sparse_layer(seed), sparse_layer(seed + 1)]), options()
    if chosen is not None:
        set_options._Popart.set("autoRecomputation", chosen)
    executor = sim.trainingModel(model, set_options, sim.optim.AdamW(model.parameters(), lr=0.01))
    executor.compile(torch.randn(3 * ROWS, FEATURES), torch.randn(3 * ROWS, FEATURES))
    assert executor.recomputation is expected


def test_positions_stay_where_their_layer_is(seed: int) -> None:
    """Without its flag the second layer's metaInfo, on IPU 1, would come from IPU 0 in every micro-batch."""
    run = Run(seed)
    run.step()
    assert run.executor.travelling == {}
    run.executor.destroy()
    model = Model([sparse_layer(seed), sparse_layer(seed + 1)])
    for layer in (model.first, model.second):
        layer.meta_info.requires_grad_(False)
    executor = sim.trainingModel(model, options(), sim.optim.AdamW(model.parameters(), lr=0.01))
    executor(*run.inputs())
    assert executor.travelling == {"second.meta_info": 2 * model.second.meta_info.numel()}


def test_a_mean_in_half_is_kept_as_it_goes_and_never_outgrows_a_gradient() -> None:
    """Three times 40,000 make 120,000, which no half holds; their running mean is exact."""
    gradient = {"a": torch.full((3,), 40000.0)}
    for reduction, expected in ((sim.ReductionType.Mean, 40000.0), (sim.ReductionType.Sum, torch.inf)):
        total: dict[str, torch.Tensor] = {}
        rule = GradientReduction(reduction, half=True, rounding=Rounding())
        for done in range(3):
            rule.accumulate(total, gradient, done)
        assert rule.over_replicas([total, total], 3)["a"].tolist() == [expected] * 3


def test_the_mean_of_uneven_gradients_over_micro_batches_and_replicas(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(2, 5, 7, generator=generator)  # replica, micro-batch, element
    for half, tolerance in ((False, 1e-6), (True, 6 * 2.0**-11)):  # 5 + 1 results are rounded
        rule = GradientReduction(sim.ReductionType.Mean, half, Rounding())
        replicas: list[dict[str, torch.Tensor]] = [{}, {}]
        for total, each in zip(replicas, gradients):
            for done, gradient in enumerate(each):
                rule.accumulate(total, {"a": (gradient.half() if half else gradient).float()}, done)
        found = rule.over_replicas(replicas, 5)["a"].float()
        torch.testing.assert_close(found, gradients.mean((0, 1)), rtol=0, atol=tolerance * float(gradients.abs().max()))


def test_the_automatic_loss_scale_doubles_until_gradients_are_large() -> None:
    scale = AutomaticLossScale(enabled=True)
    for values, factor in (
        ([1.0, 8000.0], 2.0),
        ([1.0, 9000.0], 0.5),
        ([1.0, torch.inf], 0.5),
        ([1.0, torch.nan], 0.5),
    ):
        scale.count([torch.ones(2)])
        scale.count([torch.tensor(values)])
        assert scale.factor() == factor
    off = AutomaticLossScale(enabled=False)
    off.count({"a": torch.full((2,), 60000.0, dtype=torch.float16)})
    assert off.factor() == 1.0
