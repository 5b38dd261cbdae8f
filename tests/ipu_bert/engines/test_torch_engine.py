"""The torch engine's step: dropout by number, the whole step's gradient for growth, and steps that are not finite."""

from __future__ import annotations

import copy
import itertools
import math
import weakref
from typing import Any

import pytest
import torch
from small_models import dense_model, make_optimization, make_shape, sparse_model
from torch import Tensor

from ipu_bert.bench.models import random_batch
from ipu_bert.data.batches import Batch
from ipu_bert.engines import torch_engine
from ipu_bert.engines.base import NonFiniteError
from ipu_bert.engines.torch_engine import TorchEngine, eval_batch
from ipu_bert.lr_schedules import LR_SCHEDULES, with_warmup
from ipu_bert.model import BertForPreTraining, PretrainingLosses, pretraining_losses, sparse_layers
from ipu_bert.precision import Precision
from ipu_bert.stopwatch import Stopwatch
from sparse_ops.dynsparse import gradients
from sparse_ops.norms import BlockNorm, l1, l2

SEQUENCES, TOKENS, LABELS = 6, 16, 3
SHAPE = make_shape(dropout=0.2, attention_dropout=0.1)
WITHOUT_DROPOUT = make_shape()
SCHEDULE = with_warmup(LR_SCHEDULES["linear"], total_steps=10, warmup_steps=4)


def make_engine(
    model: BertForPreTraining,
    micro_batch_size: int = SEQUENCES,
    seed: int = 0,
    loss_scale: float = 1.0,
    block_norm: BlockNorm = l1,
) -> TorchEngine:
    return TorchEngine(
        model,
        optimization=make_optimization(schedule=SCHEDULE, eps=1e-12),
        precision=Precision(compute="float32", loss_scale=loss_scale),
        micro_batch_size=micro_batch_size,
        block_norm=block_norm,
        seed=seed,
        timer=Stopwatch(),
    )


def make_batch(seed: int, sequences: int = SEQUENCES) -> Batch:
    return random_batch(SHAPE, sequences, TOKENS, LABELS, seed)


def assert_same(first: TorchEngine, second: TorchEngine) -> None:
    for group, tensors in first.state().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.state()[group][name]), f"{group} {name}"


def masks(engine: TorchEngine, steps: int) -> dict[tuple[int, int], Tensor]:
    """The embeddings' dropout mask of each (step, micro-batch) of the steps that follow."""
    found: list[Tensor] = []
    hook = engine.model.bert.embeddings.dropout.register_forward_hook(lambda _, __, out: found.append(out != 0))
    first = engine._step + 1
    for step in range(first, first + steps):
        engine.train_step(make_batch(step))
    hook.remove()
    numbers = itertools.product(range(first, first + steps), range(len(found) // steps))
    return dict(zip(numbers, found))


def test_dropout_is_a_function_of_seed_step_and_micro_batch(seed: int) -> None:
    engine = make_engine(sparse_model(SHAPE, 0.5, 8, seed), micro_batch_size=2, seed=seed)
    expected = masks(engine, 3)
    assert len(expected) == 9
    for a, b in itertools.combinations(expected.values(), 2):
        assert not torch.equal(a, b)
    other = make_engine(sparse_model(SHAPE, 0.5, 8, seed + 1), micro_batch_size=2, seed=seed)
    state = other.state()
    del state["random"]  # a resume needs no generator
    other.load_state(state, 1)
    found = masks(other, 2)
    assert all(torch.equal(found[key], expected[key]) for key in itertools.product((2, 3), range(3)))
    third = masks(make_engine(sparse_model(SHAPE, 0.5, 8, seed), micro_batch_size=2, seed=seed + 1), 1)
    assert not torch.equal(third[1, 0], expected[1, 0])


def test_what_others_draw_changes_no_step_and_a_step_changes_nothing_of_theirs(seed: int) -> None:
    """Between the steps, and by evaluation; the process's own generator goes on as if no step had been."""
    quiet, busy = (make_engine(sparse_model(SHAPE, 0.5, 8, seed), micro_batch_size=3) for _ in range(2))
    for step in range(3):
        quiet.train_step(make_batch(seed + step))
    for step in range(3):
        torch.rand(7)
        busy.eval_step(make_batch(seed))
        before = torch.get_rng_state()
        busy.train_step(make_batch(seed + step))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(quiet, busy)


# --- the gradient for growth


def dense_gradients(model: BertForPreTraining, batch: Batch) -> dict[str, Tensor]:
    """By a dense model in float64 with the same weights, on the whole batch: [out, in] of every sparse weight."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith((".rows", ".cols"))}
    layers = dict(sparse_layers(model))
    for name, layer in layers.items():
        state[f"{name}.weight"] = layer.to_dense()
        del state[f"{name}.values"]
    dense = dense_model(WITHOUT_DROPOUT).double()
    dense.load_state_dict(state)
    logits = dense(batch.input_ids, batch.token_type_ids, batch.attention_mask, batch.masked_positions)
    losses = pretraining_losses(*logits, batch.masked_labels, batch.next_sentence_labels)
    (losses.mlm_sum / losses.mlm_count + losses.nsp_sum / len(batch.input_ids)).backward()
    return {name: dense.get_parameter(f"{name}.weight").grad for name in layers}


@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2, SEQUENCES])
def test_growth_sees_the_gradient_of_the_whole_step(seed: int, micro_batch_size: int, block_size: int) -> None:
    """The chosen positions are the largest of the float64 dense gradient; within float32's rounding, any of a tie."""
    model = sparse_model(WITHOUT_DROPOUT, 0.6, block_size, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)  # gradients that are not tiny
    batch, layers, count = make_batch(seed), dict(sparse_layers(model)), 4
    expected = dense_gradients(model, batch)
    engine = make_engine(model, micro_batch_size)
    found = engine.train_step(batch, {name: count for name in layers}).gradients
    assert found is not None
    for name, layer in layers.items():
        grid, rows, cols = layer.pattern.grid, layer.rows.long(), layer.cols.long()
        blocks = expected[name].view(grid[0], block_size, grid[1], block_size).transpose(1, 2)
        norms = blocks.abs().sum((2, 3))
        # A gradient is a sum over TOKENS x SEQUENCES tokens behind some 20 operations, each rounded to 2^-24.
        tolerance = 100 * 2.0**-24 * TOKENS * SEQUENCES * float(norms.max())
        torch.testing.assert_close(found[name].active.double(), norms[rows, cols], rtol=0, atol=tolerance)
        norms[rows, cols] = -1.0
        for segment, part in enumerate(norms.chunk(layer.segments)):
            mine = found[name].rows // (grid[0] // layer.segments) == segment
            chosen = norms[found[name].rows[mine], found[name].cols[mine]]
            assert len({*zip(found[name].rows[mine].tolist(), found[name].cols[mine].tolist())}) == count
            best = part.flatten().topk(count).values
            torch.testing.assert_close(chosen.sort(descending=True).values, best, rtol=0, atol=tolerance)


def test_the_search_does_not_change_the_step(seed: int) -> None:
    plain, searching = (make_engine(sparse_model(SHAPE, 0.5, 8, seed), micro_batch_size=2) for _ in range(2))
    counts = dict.fromkeys(dict(sparse_layers(plain.model)), 2)
    results = plain.train_step(make_batch(seed)), searching.train_step(make_batch(seed), counts)
    assert [(r.mlm_loss, r.nsp_loss, r.grad_norm) for r in results[:1]] == [
        (r.mlm_loss, r.nsp_loss, r.grad_norm) for r in results[1:]
    ]
    assert_same(plain, searching)


@pytest.mark.parametrize("micro_batch_size", [2, SEQUENCES])
def test_the_search_holds_an_eighth_of_the_dense_gradient(
    seed: int, micro_batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one micro-batch a single strip; counted in elements of strips that are alive."""
    alive, sizes, peak = 0, [], 0
    strip_of = gradients.dense_gradient_strip

    def freed(size: int) -> None:
        nonlocal alive
        alive -= size

    def counted(*arguments: Any) -> Tensor:
        nonlocal alive, peak
        blocks = strip_of(*arguments)
        alive += blocks.numel()
        sizes.append(blocks.numel())
        peak = max(peak, alive)
        weakref.finalize(blocks, freed, blocks.numel())
        return blocks

    monkeypatch.setattr(gradients, "dense_gradient_strip", counted)
    model = sparse_model(WITHOUT_DROPOUT, 0.6, 4, seed)
    layers = dict(sparse_layers(model))
    make_engine(model, micro_batch_size).train_step(make_batch(seed), dict.fromkeys(layers, 1))
    dense = sum(layer.in_features * layer.out_features for layer in layers.values())
    several = micro_batch_size < SEQUENCES
    assert sum(sizes) == dense * (SEQUENCES // micro_batch_size)  # every strip of every micro-batch, once
    assert 0 < peak <= (dense // 8 if several else 0) + 2 * max(sizes)  # a strip dies when the next has been made


@pytest.mark.parametrize("micro_batch_size", [2, SEQUENCES])
def test_what_the_search_adds_to_a_step_counts_as_the_update(
    seed: int, micro_batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that passes 1 s in a forward pass, 2 in a backward one, 1/4 for a strip, 1/8 to sum it over ranks.

    All of eight passes were counted as forward and backward, and an update was told as milliseconds.
    """
    now, strips, strip_of = [0.0], [0], gradients.dense_gradient_strip

    def strip(*arguments: Any) -> Tensor:
        now[0], strips[0] = now[0] + 0.25, strips[0] + 1
        return strip_of(*arguments)

    monkeypatch.setattr(gradients, "dense_gradient_strip", strip)
    engine = make_engine(sparse_model(WITHOUT_DROPOUT, 0.6, 4, seed), micro_batch_size)
    engine._timer = timer = Stopwatch(clock=lambda: now[0])
    sums = [0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    def summed(_: Tensor) -> None:
        now[0], sums[0] = now[0] + 0.125, sums[0] + 1

    monkeypatch.setattr(type(engine._ranks), "sum_", lambda _, tensor: summed(tensor))
    engine.model.register_forward_hook(lambda *_: passes(1.0))
    engine.model.bert.pooler.dense.bias.register_hook(lambda _: passes(2.0))
    micro_batches = SEQUENCES // micro_batch_size
    engine.train_step(make_batch(seed))
    assert timer.seconds["update"] == 0.0
    engine.train_step(make_batch(seed), {name: 1 for name, _ in sparse_layers(engine.model)})
    more = 0 if micro_batches == 1 else gradients.PORTIONS - 1  # passes that are the search's alone
    assert timer.seconds["forward"] == 2 * micro_batches
    assert timer.seconds["backward"] == 2 * 2.0 * micro_batches
    assert timer.seconds["update"] == more * micro_batches * 3.0 + 0.25 * strips[0]
    assert strips[0] > 0
    assert timer.seconds["exchange"] == 0.125 * sums[0]


@pytest.mark.parametrize("micro_batch_size", [SEQUENCES, 2])
def test_growth_goes_by_the_gradient_without_the_loss_scale(micro_batch_size: int, seed: int) -> None:
    """With 1e25 the squares of l2 were infinite where loss and gradient norm were finite, and the run ended."""
    found = []
    for scale in (1.0, 2.0**80, 1e25):
        engine = make_engine(sparse_model(WITHOUT_DROPOUT, 0.5, 8, seed), micro_batch_size, seed, scale, l2)
        counts = {name: 2 for name, _ in sparse_layers(engine.model)}
        result = engine.train_step(make_batch(seed), counts)
        assert math.isfinite(result.grad_norm)
        assert result.gradients is not None
        found.append(result.gradients)
    alone, power, other = found
    for name, expected in alone.items():
        assert all(torch.equal(a, b) for a, b in zip(power[name], expected)), name
        torch.testing.assert_close(other[name].norms, expected.norms)
        torch.testing.assert_close(other[name].active, expected.active)


# --- steps that are not finite


def poison(engine: TorchEngine, losses: set[int] = frozenset(), gradients: set[int] = frozenset()) -> None:
    """Make the loss of some steps NaN, and of others the gradient behind a finite loss."""

    def hook(module: Any, inputs: Any, found: PretrainingLosses) -> PretrainingLosses:
        if engine._step in losses:
            return found._replace(mlm_sum=found.mlm_sum * math.nan)
        if engine._step in gradients:
            found.mlm_sum.register_hook(lambda gradient: gradient * math.inf)
        return found

    engine.model.register_forward_hook(hook)


@pytest.mark.parametrize(("bad", "message"), [("losses", "loss became nan"), ("gradients", "gradient norm became")])
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_goes_by_its_own_number(
    seed: int, bad: str, message: str
) -> None:
    """The learning rate is the second step's, the bias correction the first update's: Adam moves by lr x sign."""
    engine = make_engine(sparse_model(WITHOUT_DROPOUT, 0.5, 8, seed), micro_batch_size=2)
    poison(engine, **{bad: {1}})
    before = copy.deepcopy(engine.state())
    with pytest.raises(NonFiniteError, match=message) as raised:
        engine.train_step(make_batch(seed))
    assert raised.value.weights_kept
    for group in ("model", "optimizer"):
        assert all(torch.equal(engine.state()[group][name], tensor) for name, tensor in before[group].items())
    result = engine.train_step(make_batch(seed + 1))
    assert result.lr == pytest.approx(1e-2 * SCHEDULE(1))
    state, name = engine.state(), "bert.encoder.layer.0.intermediate.dense.values"
    start = before["model"][name]
    gradient = state["optimizer"][f"exp_avg.{name}"] / (1 - 0.9)
    direction = gradient / (gradient.abs() + 1e-12)  # the sign, but where the gradient is not far above eps
    expected = start * (1 - result.lr * 0.01) - result.lr * direction
    torch.testing.assert_close(state["model"][name], expected, rtol=0, atol=1e-6)


def test_a_skipped_step_is_the_same_after_a_resume(seed: int) -> None:
    def fresh() -> TorchEngine:
        engine = make_engine(sparse_model(SHAPE, 0.5, 8, seed), micro_batch_size=2)
        poison(engine, losses={2})
        return engine

    def steps(engine: TorchEngine, first: int, last: int) -> TorchEngine:
        for step in range(first, last + 1):
            try:
                engine.train_step(make_batch(seed + step))
            except NonFiniteError:
                assert step == 2
        return engine

    whole = steps(fresh(), 1, 4)
    for stop in (1, 2, 3):
        saved = copy.deepcopy(steps(fresh(), 1, stop).state())
        rest = fresh()
        rest.load_state(saved, stop)
        assert_same(whole, steps(rest, stop + 1, 4))


def test_an_evaluation_keeps_to_the_micro_batch(seed):
    """No more sequences at a time than a step takes; sums and counts are those of the whole batch."""
    engine, sizes = make_engine(sparse_model(SHAPE, 0.5, 4), micro_batch_size=2), []
    batch = random_batch(SHAPE, SEQUENCES, TOKENS, LABELS, seed=seed)
    engine.model.register_forward_hook(lambda module, inputs, out: sizes.append(inputs[0].shape[0]))
    found = engine.eval_step(batch)
    whole = eval_batch(engine.model, Precision("float32", 1.0), batch, SEQUENCES)
    assert sizes == [2, 2, 2, SEQUENCES]
    assert (found.mlm_count, found.mlm_correct, found.nsp_count, found.nsp_correct) == (
        (whole.mlm_count, whole.mlm_correct, whole.nsp_count, whole.nsp_correct)
    )
    terms = SEQUENCES * LABELS  # a float32 sum of so many losses, each of a product of its own shape
    assert found.mlm_sum == pytest.approx(whole.mlm_sum, rel=terms * 2**-23)
    assert found.nsp_sum == pytest.approx(whole.nsp_sum, rel=terms * 2**-23)


def test_the_process_is_made_ready(monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(torch_engine, "make_ready", lambda: asked.append(True))
    make_engine(dense_model(WITHOUT_DROPOUT))
    assert asked == [True]
