"""docs/examples/masked_on_gpu.py makes the steps that the product makes, where there is no GPU, too."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable
from unittest.mock import MagicMock

import pytest
import torch

from ipu_bert import assemble
from ipu_bert.config import Config
from ipu_bert.stopwatch import Stopwatch

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "masked_on_gpu.py"


@pytest.fixture
def example() -> Any:
    spec = importlib.util.spec_from_file_location("masked_on_gpu", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("block", [1, 16])
def test_masked_steps_are_the_products(example: Any, tiny: Callable[..., Config], block: int) -> None:
    """Losses, gradient norms, held-out losses and patterns over six steps with two pattern updates."""
    no_dropout = ("model.dropout=0", "model.attention_dropout=0")
    config = tiny(f"sparsity.block_size={block}", "sparsity.updates=3", "train.steps=6", *no_dropout)
    files = assemble.open_data(config, progress=False)
    engines = [make(config, files.vocab_size, Stopwatch()) for make in (assemble.make_engine, example.make_engine)]
    stream = assemble.make_stream(config, files, "train")
    updaters = [assemble.make_updater(config) for _ in engines]
    for engine, updater in zip(engines, updaters):
        with engine.host_state() as host:
            updater.track(host.layers)
    moved = 0
    for step in range(1, 7):
        mine, other = (engine.train_step(stream.batch(step - 1)) for engine in engines)
        assert (other.mlm_loss, other.nsp_loss) == pytest.approx((mine.mlm_loss, mine.nsp_loss), rel=1e-5)
        assert (other.grad_norm, other.lr) == pytest.approx((mine.grad_norm, mine.lr), rel=1e-4)
        if updaters[0].is_due(step):
            for engine, updater in zip(engines, updaters):
                with engine.host_state() as host:
                    report = updater.update(host.layers, host.moments, step, None)
            moved += report.as_record()["moved"]
    assert moved > 0
    states = [engine.state()["model"] for engine in engines]
    for name in (name.removesuffix("rows") for name in states[0] if name.endswith(".rows")):
        mine, other = (set(zip(s[f"{name}rows"].tolist(), s[f"{name}cols"].tolist())) for s in states)
        # Sums are rounded in another order, so of two blocks whose norms are equal but for that each may drop one.
        assert len(mine ^ other) <= 2 * 2, name
    losses = [engine.eval_step(stream.batch(9)).means()["mlm_loss"] for engine in engines]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_run_that_goes_on_corrects_its_bias_by_the_steps_it_has_made(
    example: Any, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's first step in a process is recorded after some that are undone; here it is recorded by nothing."""
    config = tiny("model.dropout=0", "model.attention_dropout=0", "train.steps=9")
    files = assemble.open_data(config, progress=False)
    stream = assemble.make_stream(config, files, "train")
    whole, later = (example.make_engine(config, files.vocab_size, Stopwatch()) for _ in range(2))
    for step in range(3):
        whole.train_step(stream.batch(step))
    later.load_state(whole.state(), 3)
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, nullcontext)
    monkeypatch.setattr(later, "_static", stream.batch(3))
    later._labels = torch.tensor(1.0)
    later._step += 1
    later._capture()
    later._step -= 1
    for step in (3, 4, 5):
        assert later.train_step(stream.batch(step)) == whole.train_step(stream.batch(step))


@pytest.mark.parametrize(
    "setting",
    [
        "model.dropout=0.1",
        "model.attention_dropout=0.1",
        "optim.group_lasso=1",
        "precision.compute=bfloat16",
        "sparsity.growth=gradient",
    ],
)
def test_what_the_masked_engine_has_not_is_refused(example: Any, tiny: Callable[..., Config], setting: str) -> None:
    config = tiny("model.dropout=0", "model.attention_dropout=0", setting)
    with pytest.raises(ValueError, match=f"{setting.partition('=')[0]}: expected"):
        example.make_engine(config, 300, Stopwatch())
