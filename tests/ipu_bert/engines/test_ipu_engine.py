"""The IPU engine on the simulated device against the torch engine: the same model, batches and pattern updates."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Mapping, Sequence

import pytest
import torch
from small_models import make_optimization, make_plan, make_run, make_shape, sparse_model, with_tanh_gelu
from torch import Tensor

from ipu_bert.data.batches import Batch
from ipu_bert.engines import simulator as sim
from ipu_bert.engines.ipu.engine import IpuEngine
from ipu_bert.engines.ipu.options import IpuRun
from ipu_bert.engines.simulator import executor
from ipu_bert.engines.torch_engine import TorchEngine
from ipu_bert.lr_schedules import constant, with_warmup
from ipu_bert.model import BertForPreTraining, sparse_layers
from ipu_bert.precision import Precision
from ipu_bert.ranks import ALONE, Ranks
from ipu_bert.stopwatch import Stopwatch
from sparse_ops.dynsparse.schedules import cosine
from sparse_ops.dynsparse.updater import PatternUpdater
from sparse_ops.norms import l1

SHAPE = make_shape(layers=2, vocab_size=48)
SEQUENCES, TOKENS, LABELS = 12, 16, 3
EPS = 1e-3  # large, so that a step is a smooth function of the gradient and engines can be compared
LR = 1e-2


def make_model(seed: int, block_size: int = 8) -> BertForPreTraining:
    model = sparse_model(SHAPE, 0.5, block_size, seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(5.0)  # gradients that are not tiny
    return model


OPTIMIZATION = make_optimization(lr=LR, schedule=with_warmup(constant, total_steps=8, warmup_steps=4), eps=EPS)


def make_engine(model: BertForPreTraining, run: IpuRun) -> IpuEngine:
    return IpuEngine(model, run, sim, sim.SimulatedEncoder(), ALONE, OPTIMIZATION, Stopwatch())


def make_torch_engine(model: BertForPreTraining) -> TorchEngine:
    return TorchEngine(
        with_tanh_gelu(model),
        optimization=OPTIMIZATION,
        precision=Precision(compute="float32", loss_scale=1.0),
        micro_batch_size=SEQUENCES,
        block_norm=l1,
        seed=0,
        timer=Stopwatch(),
    )


def make_updater() -> PatternUpdater:
    return PatternUpdater(make_plan(total_steps=8, schedule=cosine, seed=3))


def make_batch(seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, SHAPE.vocab_size, (SEQUENCES, TOKENS), generator=g)
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (SEQUENCES, 1), generator=g)
    mask = torch.arange(TOKENS)[None, :] < lengths
    labels = torch.randint(1, SHAPE.vocab_size, (SEQUENCES, LABELS), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.3] = -100
    labels[0, 0] = 1
    positions = torch.stack([torch.randperm(TOKENS // 2, generator=g)[:LABELS] for _ in range(SEQUENCES)])
    return Batch(
        input_ids=torch.where(mask, ids, torch.zeros_like(ids)),
        token_type_ids=torch.randint(0, 2, (SEQUENCES, TOKENS), generator=g),
        attention_mask=mask,
        masked_positions=positions,
        masked_labels=labels,
        next_sentence_labels=torch.randint(0, 2, (SEQUENCES,), generator=g),
    )


def run_both(seed: int, run: IpuRun, steps: int = 6) -> tuple[TorchEngine, IpuEngine, list[tuple[float, float]]]:
    """Train both with pattern updates on; the losses of both at each step."""
    model = make_model(seed)
    if run.half:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.half())
    torch_engine, ipu_engine = make_torch_engine(copy.deepcopy(model)), make_engine(model, run)
    updaters = [make_updater(), make_updater()]
    losses = []
    for updater, engine in zip(updaters, (torch_engine, ipu_engine)):
        with engine.host_state() as host:
            updater.track(host.layers)
    for step in range(1, steps + 1):
        results = [engine.train_step(make_batch(seed + step)) for engine in (torch_engine, ipu_engine)]
        losses.append((results[0].mlm_loss + results[0].nsp_loss, results[1].mlm_loss + results[1].nsp_loss))
        assert results[0].lr == results[1].lr
        for updater, engine in zip(updaters, (torch_engine, ipu_engine)):
            if updater.is_due(step):
                with engine.host_state() as host:
                    updater.update(host.layers, host.moments, step)
    return torch_engine, ipu_engine, losses


def sparse_state(engine: TorchEngine | IpuEngine) -> dict[str, Tensor]:
    """Weights and moments, sparse ones written out densely, and the positions of blocks as a dense mask.

    So it does not matter which slot holds which block: moved blocks whose norms tie within rounding may swap.
    """
    groups = engine.state()
    state = {**groups["model"], **groups["optimizer"]}
    for name in [name[: -len(".rows")] for name in state if name.endswith(".rows")]:
        rows, cols = (state.pop(f"{name}.{key}").long() for key in ("rows", "cols"))
        grid = torch.zeros(64, 64)  # larger than any grid of these models
        grid[rows, cols] = 1.0
        state[f"{name}.positions"] = grid
        for key in (f"{name}.values", *(f"{moment}.{name}.values" for moment in ("exp_avg", "exp_avg_sq"))):
            blocks = state[key]
            state[key] = torch.zeros(64, 64, *blocks.shape[1:])
            state[key][rows, cols] = blocks
    return state


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"replicas": 2, "gradient_accumulation": 6, "layers_per_ipu": (1, 1)},
        {"layers_per_ipu": (2,), "micro_batch_size": 3, "gradient_accumulation": 4},
        {"layers_per_ipu": (1, 1), "micro_batch_size": 2, "gradient_accumulation": 6, "vocabulary_parts": 4},
    ],
)
def test_float32_is_the_torch_engine_across_pattern_updates(seed: int, changes: dict[str, object]) -> None:
    torch_engine, ipu_engine, losses = run_both(seed, make_run(**changes))
    for expected, found in losses:
        assert found == pytest.approx(expected, rel=1e-4)
    expected, found = sparse_state(torch_engine), sparse_state(ipu_engine)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        if name.endswith("positions"):
            # One block may stand elsewhere where two are about 0: which of them is pruned is then up to rounding. Their
            # values are compared below all the same.
            assert int((found[name] != tensor).sum()) <= 2, f"{name}: patterns differ"
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert ipu_engine._trainer.compilations == 1


def test_fp16_stays_within_what_half_allows(seed: int) -> None:
    run = make_run(half=True, loss_scale=512.0, layers_per_ipu=(1, 1), micro_batch_size=2, gradient_accumulation=6)
    torch_engine, ipu_engine, losses = run_both(seed, run, steps=5)
    # A logit sums rounding errors of (products with 64 / 16 partial sums and other operations) at 3 places in 2 layers:
    # about 60 roundings of relative size u = 2^-11 that add up as a random walk on values of size 4. A mean of log
    # probabilities is wrong by at most twice a logit's error. Steps of lr = 0.01 on slightly wrong gradients add less.
    u = 2.0**-11
    bound = 2 * 4 * 60**0.5 * u
    for expected, found in losses:
        assert abs(found - expected) < bound
    expected, found = sparse_state(torch_engine), sparse_state(ipu_engine)
    for name, layer in sparse_layers(torch_engine.model):
        shared = int((found[f"{name}.positions"] * expected[f"{name}.positions"]).sum())
        assert shared >= 0.6 * layer.values.shape[0], "blocks whose norms tie within rounding may go either way, few do"


def test_step_uploads_nothing_and_host_state_moves_only_what_changed(seed: int) -> None:
    engine = make_engine(make_model(seed), make_run())
    engine.train_step(make_batch(seed))
    transfers = engine._trainer.transfers
    up = transfers.bytes_up
    engine.train_step(make_batch(seed + 1))
    assert (transfers.bytes_up, transfers.bytes_down) == (up, 0)
    with engine.host_state():
        pass
    assert transfers.bytes_up == up, "nothing was changed, so nothing is uploaded"
    assert engine.transfers.bytes_up == 0
    down = transfers.bytes_down
    assert engine.transfers.bytes_down == down
    engine.train_step(make_batch(seed + 2))
    with engine.host_state() as host:
        layer = next(iter(host.layers.values()))
        with torch.no_grad():
            layer.values[0] += 1.0
    engine.train_step(make_batch(seed + 3))
    assert engine.transfers.bytes_up == transfers.bytes_up - up
    assert engine.transfers.bytes_down == transfers.bytes_down - down
    assert engine.transfers.compilations == 1


def test_evaluation_equals_torch_and_training_goes_on(seed: int) -> None:
    model = make_model(seed)
    torch_engine, engine = make_torch_engine(copy.deepcopy(model)), make_engine(model, make_run())
    for step in range(3):
        batch = make_batch(seed + step)
        expected, found = torch_engine.eval_step(batch), engine.eval_step(batch)
        assert found.mlm_sum == pytest.approx(expected.mlm_sum, rel=1e-4)
        assert found.nsp_sum == pytest.approx(expected.nsp_sum, rel=1e-4)
        assert (found.mlm_count, found.nsp_count) == (expected.mlm_count, expected.nsp_count)
        assert abs(found.mlm_correct - expected.mlm_correct) <= 1
        torch_engine.train_step(batch)
        engine.train_step(batch)
        with engine.host_state() as host:  # between an evaluation and a step, attached or not
            assert all(moment.any() for pair in host.moments.values() for moment in pair)
    assert (engine._trainer.compilations, engine._evaluator.compilations) == (1, 1)


def test_update_while_the_evaluation_holds_the_device(seed: int) -> None:
    engine, updater = make_engine(make_model(seed), make_run()), make_updater()
    with engine.host_state() as host:
        updater.track(host.layers)
    for step in range(1, 5):
        engine.train_step(make_batch(seed + step))
        engine.eval_step(make_batch(seed))
        if updater.is_due(step):
            with engine.host_state() as host:
                updater.update(host.layers, host.moments, step)
    engine.train_step(make_batch(seed))
    assert engine._trainer.compilations == 1


@pytest.mark.parametrize("direction", ["ipu to torch", "torch to ipu", "ipu to ipu"])
def test_checkpoints_fit_either_engine(seed: int, direction: str) -> None:
    source, target = direction.split(" to ")
    engines = {
        name: make_engine(make_model(s), make_run()) if name == "ipu" else make_torch_engine(make_model(s))
        for name, s in ((source, seed), (target, seed + 1))
    }
    first = make_engine(make_model(seed), make_run()) if source == "ipu" else engines[source]
    second = make_engine(make_model(seed + 1), make_run()) if target == "ipu" else engines[target]
    for step in range(3):
        first.train_step(make_batch(seed + step))
    saved = copy.deepcopy(first.state())
    expected = [first.train_step(make_batch(seed + step)).mlm_loss for step in (3, 4)]
    executor._attached.clear()
    second.load_state(saved, 3)
    found = [second.train_step(make_batch(seed + step)).mlm_loss for step in (3, 4)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_run_with_skipped_steps_goes_on_with_its_count_of_updates(seed: int) -> None:
    """Of 40 steps 39 were skipped: AdamW's correction of its bias is that of the second update, and is saved again."""
    first = make_torch_engine(make_model(seed))
    first.train_step(make_batch(seed))
    saved = copy.deepcopy(first.state())
    assert "updates" not in saved["optimizer"]
    saved["optimizer"]["updates"] = torch.tensor(1)
    engines = [make_torch_engine(make_model(seed + 1)), make_engine(make_model(seed + 1), make_run())]
    losses = []
    for engine in engines:
        engine.load_state(saved, 40)
        losses.append([engine.train_step(make_batch(seed + step)).mlm_loss for step in (1, 2, 3)])
        assert int(engine.state()["optimizer"]["updates"]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_resume_repeats_dropout_and_stochastic_rounding(seed: int) -> None:
    shape = dataclasses.replace(SHAPE, dropout=0.2, attention_dropout=0.1)
    settings = {"layers_per_ipu": (2,), "micro_batch_size": 6, "gradient_accumulation": 2}
    run = make_run(half=True, loss_scale=512.0, stochastic_rounding=True, **settings)

    def fresh() -> IpuEngine:
        executor._attached.clear()
        return make_engine(sparse_model(shape, 0.5, 8, seed), run)

    whole = fresh()
    expected = [whole.train_step(make_batch(seed + i)).mlm_loss for i in range(3)]
    judged = whole.eval_step(make_batch(seed))
    assert whole.eval_step(make_batch(seed)) == judged, "nothing is drawn in an evaluation"
    expected.append(whole.train_step(make_batch(seed + 3)).mlm_loss)
    first = fresh()
    assert [first.train_step(make_batch(seed + i)).mlm_loss for i in range(2)] == expected[:2]
    saved = copy.deepcopy(first.state())
    second = fresh()
    second.load_state(saved, 2)
    assert second.train_step(make_batch(seed + 2)).mlm_loss == expected[2]
    assert second.eval_step(make_batch(seed)) == judged
    assert second.train_step(make_batch(seed + 3)).mlm_loss == expected[3]


def test_what_stands_at_pad_sends_no_gradient_to_its_embedding(seed: int) -> None:
    """So no padding_idx is needed, which TiedGather would drop."""
    engine, batch = make_engine(make_model(seed), make_run()), make_batch(seed)
    found: list[Tensor] = []
    words = engine._device_model.bert.embeddings.word_embeddings

    def keep_gradient(module: Any, inputs: Any, output: Tensor) -> None:
        output.register_hook(found.append)

    words.register_forward_hook(keep_gradient)
    loss, *_ = engine._device_model.train()(*engine._inputs(batch, mean=True))
    loss.backward()
    (gradient,) = found
    padding = ~batch.attention_mask
    assert padding.any()
    assert not gradient[padding].any()
    assert gradient[batch.attention_mask].any()


@pytest.mark.parametrize(
    ("layers_per_ipu", "recompute", "expected"),
    [
        ((1, 1), True, "Pipeline"),
        ((1, 1), False, "NoRecomputation"),
        ((2,), True, "RecomputeAll"),
        ((2,), False, "NoRecomputation"),
    ],
)
def test_recompute_means_what_it_says_on_one_ipu_and_on_several(
    seed: int, layers_per_ipu: tuple[int, ...], recompute: bool, expected: str
) -> None:
    engine = make_engine(make_model(seed), make_run(layers_per_ipu=layers_per_ipu, recompute=recompute))
    engine.compile(make_batch(seed))
    assert engine._trainer.recomputation.name == expected
    assert engine._trainer.travelling == {}, "no variable leaves the IPU of its layer"


class OneOfTwo(Ranks):
    """One of two instances; the sum over both is asked of `labels`, which knows what the other would say."""

    count = 2

    def __init__(self, index: int, labels: int) -> None:
        self.index, self._labels = index, labels

    def sum(self, values: Sequence[float]) -> list[float]:
        return [float(self._labels)] if len(values) == 1 else list(values)

    def check_same(self, found: Mapping[str, str], when: str) -> None:
        """The other has the same."""


def test_each_instance_trains_on_its_own_share(seed: int) -> None:
    """Two instances with half of a batch each: side by side their inputs are one instance's, weights included."""
    batch = make_batch(seed)
    run, labels = make_run(gradient_accumulation=6, layers_per_ipu=(2,)), int((batch.masked_labels != -100).sum())
    parts = []
    for index in (0, 1):
        instance, mine = OneOfTwo(index, labels), Batch(*(x.chunk(2)[index] for x in vars(batch).values()))
        engine = IpuEngine(make_model(seed), run, sim, sim.SimulatedEncoder(), instance, OPTIMIZATION, Stopwatch())
        assert engine.share == (index, 2)
        parts.append(engine._inputs(mine, mean=True))
    whole = make_engine(make_model(seed), make_run(layers_per_ipu=(2,)))._inputs(batch, mean=True)
    for number, (first, second, both) in enumerate(zip(*parts, whole)):
        assert torch.equal(torch.cat([first, second]), both), f"input {number}"


def test_refusals(seed: int) -> None:
    model = make_model(seed)
    with pytest.raises(ValueError, match=r"ipu\.layers_per_ipu: expected 2 layers in all, found \[1, 2\]"):
        make_engine(model, make_run(layers_per_ipu=(1, 2)))
    engine = make_engine(model, make_run())
    with pytest.raises(ValueError, match=r"sparsity\.growth"):
        engine.train_step(make_batch(seed), {"a": 1})
    short = Batch(*(x[:6] for x in vars(make_batch(seed)).values()))
    with pytest.raises(ValueError, match="expected 12 sequences for this instance, found 6"):
        engine.train_step(short)
    offline = make_engine(make_model(seed), make_run(device="offline"))
    offline.compile(make_batch(seed))
    assert offline._trainer.isCompiled()
    assert offline._evaluator.isCompiled(), "a run evaluates at step 0"
    with pytest.raises(ValueError, match="offline compiles only"):
        offline.train_step(make_batch(seed))
    groups = engine.state()
    del groups["model"]["cls.predictions.bias"]
    with pytest.raises(ValueError, match=r"cls\.predictions\.bias: expected float32 \[48\]"):
        engine.load_state(groups, 1)
