"""Two ranks are one process: the same patterns and losses, whoever begins and whoever goes on."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from many_ranks import start, statuses
from torch import Tensor

from ipu_bert import assemble, checkpoint
from ipu_bert.config import Config, load_config
from ipu_bert.engines.torch_engine import TorchEngine
from ipu_bert.ranks import ALONE, Ranks, join
from ipu_bert.record.context import RECORDED
from ipu_bert.record.metrics import read_metrics
from ipu_bert.sizes.exchange import step_bytes
from ipu_bert.sizes.footprint import parameter_counts
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.stopwatch import Stopwatch
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")

LONG = (
    *("train.steps=20", "train.micro_batch_size=1", "model.attention_dropout=0.1"),
    *("eval.every=10", "eval.batches=4", "model.layers=1"),
)
GRADIENT = ("sparsity.growth=gradient", "train.steps=6", "sparsity.updates=2")
DIFFERING = ("values", "cols")
RUNS = {"random": (), "gradient": GRADIENT}
SECONDS = 900.0  # for all ranks to end, on a machine that has much else to do


def doubled(config: Config, vocab_size: int, made: Callable[..., Any] = assemble.make_model) -> Any:
    return made(config, vocab_size).double()


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


def _add(total: Tensor, gradient: Tensor) -> None:
    total += gradient.abs()


def gradients(config: Config, ranks: Ranks) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the first step, before clipping, and the sum of this rank's micro-batches' magnitudes."""
    data = assemble.open_data(config, progress=False)
    engine = assemble.make_engine(config, data.vocab_size, Stopwatch(), ranks)
    assert isinstance(engine, TorchEngine)
    parameters, found = dict(engine.model.named_parameters()), {}
    magnitudes = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for name, parameter in parameters.items():  # called once in each backward pass
        parameter.register_hook(functools.partial(_add, magnitudes[name]))

    def kept(lr: float) -> float:
        found.update({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        return 1.0

    engine._update_weights = kept  # type: ignore[method-assign]
    engine.train_step(assemble.make_stream(config, data, "train").share(0, *engine.share))
    if ranks.count > 1:
        sizes = parameter_counts(bert_shape(config.model, data.vocab_size), assemble.weights(config))
        assert engine._gradients.sent_bytes == step_bytes(sizes).total, "what a report says is what was sent"
    return found, magnitudes


def _work(index: int, path: str, folder: str) -> None:
    """What two ranks do one after the other; the second's native kernels are those of another level."""
    ranks, out = join(), Path(folder)
    config = functools.partial(load_config, path)
    with pytest.MonkeyPatch.context() as patch, ranks.together():
        without_pictures(patch)
        ranks.connect(SECONDS)
        named = os.fsdecode(b"run/caf\xe9")
        assert (ranks.text_from_first(named), ranks.gather(named)) == (named, [named, named])
        torch.save(gradients(config(LONG), ranks)[0], out / f"gradients{index}")
        if index == 1:
            os.environ["SPARSE_OPS_LEVEL"] = "portable"
        single = config([*LONG, f"run.dir={out / 'levels'}"])
        Trainer(single, None, ranks).run()
        mine = ["engine.kernel=torch"] if index == 1 else []
        Trainer(config([*LONG, *mine, f"run.dir={out / 'kernels'}", "train.stop_at=2"]), None, ranks).run()
        _differ(config, ranks, out)
        patch.setattr(assemble, "make_model", doubled)
        for name, settings in RUNS.items():
            Trainer(config([*LONG, *settings, f"run.dir={out / name}"]), None, ranks).run()
        Trainer(config([*LONG, f"run.dir={out / 'begun'}", "train.stop_at=9"]), None, ranks).run()
        alone = config([*LONG, f"run.dir={out / 'alone'}"])
        Trainer(alone, checkpoint.find(out / "alone"), ranks).run()


def _differ(config: Callable[..., Config], ranks: Ranks, out: Path) -> None:
    """The second rank alone has another value, another position, after the first update."""
    for what in DIFFERING:
        trainer = Trainer(config([*LONG, f"run.dir={out / what}"]), None, ranks)
        assert trainer.updater is not None
        apply = trainer.updater.apply

        def changing(layers: Any, moments: Any, *rest: Any, what: str = what, apply: Any = apply) -> Any:
            report = apply(layers, moments, *rest)
            name = sorted(layers)[1]
            if what == "values":
                layers[name].values.data[3, 0, 0] += 1e-7
            else:
                layer = layers[name]
                layer.reallocate(torch.tensor([0, 1]), layer.rows[[1, 0]], layer.cols[[1, 0]])
            return report

        if ranks.index == 1:
            trainer.updater.apply = changing  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="pattern update after step 5: rank 1 has another ") as caught:
            trainer.run()
        (out / f"{what}{ranks.index}").write_text(str(caught.value))


@pytest.fixture(scope="module")
def whole(corpus: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of one process, and the folder of those of two ranks, all ended."""
    import yaml
    from small_runs import tiny_settings

    folder = tmp_path_factory.mktemp("ranks")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny_settings(corpus, prepared), "run": {"dir": str(folder / "run")}}))
    found = {"path": path, "two": folder / "two"}
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        patch.setattr(assemble, "make_model", doubled)
        for name, settings in RUNS.items():
            found[name] = Trainer(load_config(str(path), [*LONG, *settings, f"run.dir={folder / name}"])).run()
        begun = load_config(str(path), [*LONG, f"run.dir={found['two'] / 'alone'}", "train.stop_at=9"])
        Trainer(begun).run()
        ranks = start(_work, 2, str(path), str(found["two"]))
        assert statuses(ranks, SECONDS) == [0, 0]
        rest = load_config(str(path), [*LONG, f"run.dir={found['two'] / 'begun'}"])
        Trainer(rest, checkpoint.find(Path(rest.run.dir))).run()
    return found


def losses(folder: Path) -> list[tuple[Any, ...]]:
    """(kind, step, losses) of every step and of the evaluations of a whole run."""
    records = read_metrics(folder / "metrics.jsonl")
    chosen = [r for r in records if r["kind"] == "train" or (r["kind"] == "eval" and r["step"] % 10 == 0)]
    judged = RECORDED  # of all ranks' labels
    return [(r["kind"], r["step"], r["mlm_loss"], r["nsp_loss"], *(r.get(key, 0) for key in judged)) for r in chosen]


@pytest.mark.parametrize(
    ("two", "one"),
    [("random", "random"), ("gradient", "gradient"), ("begun", "random"), ("alone", "random")],
)
def test_two_ranks_in_float64_are_one_process(whole: dict[str, Path], two: str, one: str) -> None:
    """20 steps and 3 updates with dropout: the same patterns, losses to 1e-9; begun by two and ended by one, or so."""
    first, second = losses(whole[one]), losses(whole["two"] / two)
    assert [x[:2] for x in first] == [x[:2] for x in second]
    assert len(first) == (20 + 3 if one == "random" else 6 + 1)
    for mine, theirs in zip(first, second):
        assert mine[2:] == pytest.approx(theirs[2:], rel=0, abs=1e-9), mine
    states = [checkpoint.load(checkpoint.find(folder))[0]["model"] for folder in (whole[one], whole["two"] / two)]
    moved = assemble.make_model(load_config(str(whole["path"]), LONG), 1000).state_dict()
    for name, tensor in states[0].items():
        if name.endswith(("rows", "cols")):
            assert torch.equal(tensor, states[1][name]), name
            assert not torch.equal(tensor, moved[name]), f"{name}: no block has moved"


def test_a_float32_gradient_is_within_the_bound_of_its_sum(whole: dict[str, Path]) -> None:
    """Ranks add the same four terms in another order: each sum is off by at most (n - 1) u times that of magnitudes."""
    mine, magnitudes = gradients(load_config(str(whole["path"]), LONG), ALONE)
    both = [torch.load(whole["two"] / f"gradients{rank}", weights_only=True) for rank in (0, 1)]
    for name, gradient in mine.items():
        assert torch.equal(both[0][name], both[1][name]), f"{name}: other bits on rank 1"
        bound = 2 * 3 * 2.0**-24 * magnitudes[name]
        off = (both[0][name].double() - gradient.double()).abs()
        assert bool((off <= bound * (1 + 1e-6)).all()), f"{name}: {float((off - bound).max()):.3g} beyond the bound"
    assert any(not torch.equal(both[0][name], gradient) for name, gradient in mine.items()), "the order does not show"


def test_ranks_with_other_kernels_train_one_model(whole: dict[str, Path]) -> None:
    """Their weights were compared at the start, at each update and at each checkpoint; the run is that of one process
    as far as float32 goes: to rounding before a weight has moved. After that AdamW makes a step of the whole learning
    rate of a gradient that is rounding alone, so losses are compared to a fiftieth of what they change by.
    """
    one, two = losses(whole["random"]), losses(whole["two"] / "levels")
    assert [x[:2] for x in one] == [x[:2] for x in two]
    mlm = [x[2] for x in one]
    for mine, theirs in zip(one, two):
        bound = 1e-5 if mine[1] <= 1 else 0.02 * (max(mlm) - min(mlm))
        assert mine[2:] == pytest.approx(theirs[2:], rel=0, abs=bound), mine


@pytest.mark.parametrize("what", DIFFERING)
def test_a_rank_that_differs_stops_the_run_on_all(whole: dict[str, Path], what: str) -> None:
    """It names the layer, the step and the rank."""
    said = [(whole["two"] / f"{what}{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    layer = "bert.encoder.layer.0.attention.self.qkv"
    assert said[0].startswith(f"pattern update after step 5: rank 1 has another {layer}.{what} than rank 0: ")


def test_a_batch_that_does_not_divide_is_refused(tiny: Callable[..., Config]) -> None:
    three = Ranks()
    three.count = 3
    with pytest.raises(ValueError, match=r"multiple of 3 ranks x train\.micro_batch_size 2, found 4$"):
        assemble.check_share(tiny("train.micro_batch_size=2"), three)
    three.count = 2
    assemble.check_share(tiny("train.micro_batch_size=2"), three)
    with pytest.raises(
        ValueError, match=r"2 ranks x train\.micro_batch_size 4, found 4; train\.micro_batch_size=2 fits$"
    ):
        assemble.check_share(tiny("train.micro_batch_size=4"), three)
