"""The loss of a masked-LM head against float64, at every instruction level, and in plain torch."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from compiler import needs_kernels
from torch import Tensor

from sparse_ops import linear_cross_entropy as module
from sparse_ops.linear_cross_entropy import linear_cross_entropy

UNIT, IGNORED = 2.0**-24, -100
NAMES = ("hidden", "weight", "bias")


def inputs(tokens: int, features: int, words: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """hidden, weight and bias, with a gradient; labels, of which every third but the first is ignored."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, generator=generator) for size in ((tokens, features), (words, features), (words,))]
    labels = torch.randint(words, (tokens,), generator=generator)
    labels[3::3] = IGNORED
    return [tensor.requires_grad_() for tensor in made], labels


def results(made: list[Tensor], labels: Tensor, scale: float = 1.0, kernel: str = "auto") -> list[Tensor]:
    loss = linear_cross_entropy(*made, labels, IGNORED, kernel)
    return [loss.detach(), *torch.autograd.grad(loss * scale, made)]


def in_float64(made: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in made]


def check(found: list[Tensor], made: list[Tensor], labels: Tensor, scale: float) -> None:
    """A score is off by `features` roundings of its terms, an exponential by that and by the roundings of their sum."""
    hidden, weight, bias = in_float64(made)
    scores = F.linear(hidden, weight, bias)
    scores.retain_grad()
    loss = F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")
    (loss * scale).backward()
    features, words, tokens = made[0].shape[1], len(made[2]), len(labels)
    terms = (hidden.detach().abs() @ weight.detach().abs().t() + bias.detach().abs()).max()
    off = (2 * (features + 8) * terms + words / 4 + 32) * UNIT
    assert (found[0] - loss.detach()).abs() < off * tokens
    dscores = scores.grad.abs()
    softmax = scale * (scores.detach().softmax(-1) * (labels != IGNORED)[:, None] + dscores)  # before 1 was taken away
    bounds = (softmax @ weight.detach().abs(), softmax.t() @ hidden.detach().abs(), softmax.sum(0))
    exact = (hidden.grad, weight.grad, bias.grad)
    for name, ours, theirs, bound, n in zip(NAMES, found[1:], exact, bounds, (words, tokens, tokens)):
        assert ours.shape == theirs.shape
        assert ((ours - theirs).abs() <= (off + n * UNIT) * bound + 1e-30).all(), name


@pytest.mark.parametrize("scale", [1.0, 512.0])
@pytest.mark.parametrize(("tokens", "features", "words"), [(1, 1, 1), (16, 8, 7), (35, 32, 1100), (130, 64, 513)])
def test_loss_and_gradients_match_float64(level, tokens, features, words, scale, seed):
    made, labels = inputs(tokens, features, words, seed)
    check(results(made, labels, scale), made, labels, scale)


def test_at_the_size_of_bert(level, seed):
    made, labels = inputs(37, 768, 30522, seed)
    with torch.no_grad():
        made[1].mul_(0.02)
    check(results(made, labels), made, labels, 1.0)


@needs_kernels
def test_the_native_kernel_runs_and_torch_where_it_is_wanted(monkeypatch, seed):
    calls: list[int] = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda *inputs: (calls.append(len(calls)), run(*inputs)))
    made, labels = inputs(20, 16, 40, seed)
    results(made, labels)
    assert len(calls) == 2
    results(made, labels, kernel="torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear_cross_entropy(*made, labels, IGNORED, "auto")
    results([tensor.detach().double().requires_grad_() for tensor in made], labels)
    assert len(calls) == 2


def test_bfloat16_scores_are_summed_in_float32(seed):
    made, labels = inputs(20, 16, 40, seed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(*made, labels, IGNORED, "auto")
        scores = F.linear(*made)
    assert scores.dtype == torch.bfloat16
    assert torch.equal(loss, F.cross_entropy(scores.float(), labels, ignore_index=IGNORED, reduction="sum"))


@needs_kernels
def test_bits_do_not_depend_on_threads(two_threads, seed):
    """Of the two passes; the products are torch's."""
    generator = torch.Generator().manual_seed(seed)
    scores, bias = torch.randn(1300, 48, generator=generator), torch.randn(1300, generator=generator)
    share = torch.rand(48, generator=generator)

    def passes() -> list[Tensor]:
        mine, (largest, sums), dbias = scores.clone(), scores.new_empty(2, 48), torch.empty_like(bias)
        module._run(mine, bias, None, largest, sums, None)
        module._run(mine, bias, share, largest, sums, dbias)
        return [largest, sums, mine, dbias]

    both = passes()
    torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(passes(), both))


def test_no_label_no_gradient(level, seed):
    made, labels = inputs(5, 16, 40, seed)
    loss, *gradients = results(made, torch.full_like(labels, IGNORED))
    assert loss == 0.0
    assert all(gradient.abs().max() == 0.0 for gradient in gradients)


def test_a_graph_that_is_kept_gives_the_same_twice(level, seed):
    made, labels = inputs(20, 16, 40, seed)
    loss = linear_cross_entropy(*made, labels, IGNORED, "auto")
    first = torch.autograd.grad(loss, made, retain_graph=True)
    assert all(torch.equal(one, two) for one, two in zip(first, torch.autograd.grad(loss, made)))


def test_autocast_of_the_backward_pass_changes_nothing(level, seed):
    """Not the second time either, when scores are made anew: in bfloat16 they would be half of what is written."""
    made, labels = inputs(20, 16, 600, seed)
    loss = linear_cross_entropy(*made, labels, IGNORED, "auto")
    expected = torch.autograd.grad(loss, made, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16) if level != "torch" else nullcontext():
        for _ in range(2):
            found = torch.autograd.grad(loss, made, retain_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))


@needs_kernels
def test_several_gradients_at_once(seed):
    made, labels = inputs(20, 16, 600, seed)
    loss = linear_cross_entropy(*made, labels, IGNORED, "auto")
    (expected,) = torch.autograd.grad(loss, made[:1], retain_graph=True)
    found = torch.func.vmap(lambda share: torch.autograd.grad(loss, made[:1], share)[0])(torch.tensor([1.0, -2.0]))
    assert torch.allclose(found, torch.stack([expected, -2 * expected]), atol=1e-5)


def test_only_the_gradients_that_are_wanted(level, seed):
    made, labels = inputs(20, 16, 40, seed)
    wanted = results(made, labels)
    for i, tensor in enumerate(made):
        alone = [t if t is tensor else t.detach() for t in made]
        assert torch.equal(
            torch.autograd.grad(linear_cross_entropy(*alone, labels, IGNORED, "auto"), tensor)[0], wanted[i + 1]
        )


def test_second_derivatives_match_float64(level, seed):
    def second(made: list[Tensor], loss: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(loss, made, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), made)]

    made, labels = inputs(7, 8, 11, seed)
    found = second(made, linear_cross_entropy(*made, labels, IGNORED, "auto"))
    exact = in_float64(made)
    scores = F.linear(*exact)
    expected = second(exact, F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum"))
    for ours, theirs in zip(found, expected):
        assert (ours - theirs).abs().max() < 1e3 * UNIT * (1 + theirs.abs().max())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["hidden", "weight", "bias"])
def test_what_is_not_finite_stays_so(level, where, bad, seed):
    made, labels = inputs(20, 16, 600, seed)
    labels[labels == 577] = 0  # the word is nobody's label, so the sum alone can tell
    with torch.no_grad():
        {"hidden": made[0], "weight": made[1], "bias": made[2]}[where].view(-1)[
            {"hidden": 3, "bias": 577}.get(where, 577 * 16)
        ] = bad
    loss, *gradients = results(made, labels)
    assert not math.isfinite(loss)
    assert all(not gradient.isfinite().all() for gradient in gradients)


def test_no_share_is_above_one_however_large_scores_are(level, seed):
    made, labels = inputs(20, 16, 600, seed)
    with torch.no_grad():
        made[1] *= 1e7
    labels[labels == IGNORED] = 1
    found = results(made, labels)[3]
    scores = F.linear(*made[:2], made[2]).detach()
    # A distance of scores is off by their roundings, some 20, so all else has no share: one-hot in float64, too.
    expected = torch.zeros(600).index_add_(0, scores.argmax(1), torch.ones(20)).index_add_(0, labels, -torch.ones(20))
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_word_that_cannot_be_has_no_share(level, seed):
    made, labels = inputs(20, 16, 600, seed)
    labels[labels == 577] = 0
    with torch.no_grad():
        made[2][512:600] = -math.inf  # a part of the words that has nothing else
        labels[labels >= 512] = 1
    loss, *gradients = results(made, labels)
    kept = [made[0], made[1][:512], made[2][:512]]
    exact = in_float64(kept)
    expected = F.cross_entropy(F.linear(*exact), labels, ignore_index=IGNORED, reduction="sum")
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert gradients[2][512:].abs().max() < 1e-30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": torch.tensor([0, 40])},
            "labels: expected -100 or words in \\[0, 40\\), found numbers in \\[0, 40\\]",
        ),
        ({"labels": torch.tensor([0, -1])}, "labels: expected .* found numbers in \\[-1, 0\\]"),
        ({"labels": torch.tensor([0])}, r"labels: expected \[2\], found \[1\]"),
        ({"hidden": torch.ones(2, 15)}, r"hidden and weight: expected .* found \[2, 15\] and \[40, 16\]"),
        ({"weight": torch.ones(16)}, r"hidden and weight: expected .* found \[2, 16\] and \[16\]"),
        ({"bias": torch.ones(39)}, r"bias: expected \[40\], found \[39\]"),
        ({"hidden": torch.tensor(1.0)}, r"hidden and weight: expected .* found \[\] and \[40, 16\]"),
        ({"labels": torch.tensor([0, 1], dtype=torch.uint8)}, "labels: expected torch.int64, found torch.uint8"),
        ({"kernel": "fast"}, "kernel: expected one of .* found 'fast'"),
    ],
)
@needs_kernels
def test_wrong_inputs_are_named(change, message):
    given = {
        "hidden": torch.ones(2, 16),
        "weight": torch.ones(40, 16),
        "bias": torch.ones(40),
        "labels": torch.tensor([0, 1]),
        "ignored": IGNORED,
        "kernel": "auto",
    }
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**given, **change})
