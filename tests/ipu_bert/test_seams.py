"""What is registered where it is written is a setting's value from then on; no list of names has to follow."""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator

import pytest
import torch
from torch import Tensor

from ipu_bert import assemble, lr_schedules, settings
from ipu_bert.config import Config, ConfigError, load_config
from ipu_bert.data.source import SOURCES
from ipu_bert.sizes.distribution import DISTRIBUTIONS
from ipu_bert.stopwatch import Stopwatch
from sparse_ops import norms
from sparse_ops.dynsparse import grow, schedules
from sparse_ops.operators import KERNELS
from sparse_ops.pattern import BLOCK_SIZES

REGISTRIES = {
    "sparsity.schedule": schedules.SCHEDULES,
    "sparsity.norm": norms.NORMS,
    "sparsity.growth": grow.GROW_RULES,
    "optim.schedule": lr_schedules.LR_SCHEDULES,
}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for registry in REGISTRIES.values():
        registry.pop("mine", None)


def load(*overrides: str) -> Config:
    return load_config("quickstart", overrides)


@pytest.mark.parametrize("key", REGISTRIES)
def test_an_unknown_name_is_one_line_with_the_known_ones(key):
    with pytest.raises(ConfigError) as caught:
        load(f"{key}=mine")
    assert caught.value.errors == [f"{key}: expected one of {', '.join(REGISTRIES[key])}, found 'mine'"]


def test_a_pruning_schedule():
    @schedules.register("mine")
    def square(progress: float) -> float:
        return (1.0 - progress) ** 2

    updater = assemble.make_updater(load("sparsity.schedule=mine", "sparsity.updates=4", "sparsity.pruning_ratio=0.5"))
    assert list(updater.ratios.values()) == [0.5 * 9 / 16, 0.5 * 4 / 16, 0.5 * 1 / 16]


def test_a_growth_rule():
    @grow.register("mine", needs_gradient=True)
    def last(free: grow.FreePositions, count: int, context: grow.GrowContext) -> Tensor:
        return free.at(torch.arange(len(free) - count, len(free)))

    assert assemble.make_updater(load("sparsity.growth=mine")).plan.growth == grow.GrowRule(last, True)
    with pytest.raises(ConfigError, match=r"sparsity\.growth: expected a rule without the dense gradient .* 'mine'"):
        load("sparsity.growth=mine", "engine.name=ipu", "precision.compute=float16")


def test_a_block_norm(tiny):
    """Pruning goes by it, and so does the choice among the blocks of the dense gradient."""
    calls = []

    @norms.register("mine")
    def mean(values: Tensor) -> Tensor:
        calls.append(values.shape)
        return values.float().abs().mean((-2, -1))

    config = tiny("sparsity.norm=mine", "sparsity.growth=gradient")
    updater, engine = assemble.make_updater(config), assemble.make_engine(config, 1000, Stopwatch())
    batch = assemble.make_stream(config, assemble.open_data(config, progress=False), "train").batch(0)
    with engine.host_state() as host:
        updater.track(host.layers)
    step = min(updater.ratios)
    gradients = engine.train_step(batch, updater.gradient_counts(step)).gradients
    assert {shape[-2:] for shape in calls} == {(8, 8)}
    assert all(len(shape) == 4 for shape in calls)  # strips of the dense gradient
    calls.clear()
    with engine.host_state() as host:
        updater.update(host.layers, host.moments, step, gradients)
        assert calls == [layer.values.shape for layer in host.layers.values()]


def test_a_learning_rate_schedule():
    @lr_schedules.register("mine")
    def root(left: float) -> float:
        return left**0.5

    factor = assemble.schedule(load("optim.schedule=mine", "optim.warmup_steps=100", "train.steps=500"))
    assert [factor(done) for done in (49, 100, 400, 475)] == [0.5, 1.0, 0.5, 0.25]
    with pytest.raises(ConfigError, match=r"expected less than train\.steps 500 before a decay to 0, found 500"):
        load("optim.schedule=mine", "optim.warmup_steps=500", "train.steps=500")
    assert load("optim.schedule=constant", "optim.warmup_steps=500", "train.steps=500").optim.warmup_steps == 500


def described(section: type, name: str) -> Any:
    return next(field.metadata for field in dataclasses.fields(section) if field.name == name)


def test_names_that_settings_repeat_are_those_of_the_code():
    """Settings are read without torch and without the readers of text, so some names stand twice."""
    assert described(settings.SparsitySettings, "block_size")["choices"] == BLOCK_SIZES
    assert described(settings.SparsitySettings, "distribution")["choices"] == DISTRIBUTIONS
    assert described(settings.EngineSettings, "kernel")["choices"] == KERNELS
    sources = described(settings.DataSettings, "source")["text"]
    assert sources == f"where text comes from: {', '.join(SOURCES)}"
