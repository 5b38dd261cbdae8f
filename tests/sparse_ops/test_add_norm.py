"""LayerNorm(residual + dropout(x)) against float64, at every instruction level, and in plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compiler import LEVELS, needs_kernels
from torch import Tensor

from sparse_ops.add_norm import add_norm
from sparse_ops.random_bits import KEYS, kept, random_bits

EPS, UNIT = 1e-12, 2.0**-24


def second(made: list[Tensor], dy: Tensor, y: Tensor) -> list[Tensor]:
    """The gradients of all inputs' squared gradients, also at dy."""
    first = torch.autograd.grad(y, made, dy, create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), [*made[:3], dy]))


def inputs(tokens: int, features: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """x, residual, weight, bias, and the gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(tokens, features), (tokens, features), (features,), (features,)]
    made = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
    return made, torch.randn(tokens, features, generator=generator)


def results(made: list[Tensor], dy: Tensor, dropout: float, key: int, kernel: str = "auto") -> list[Tensor]:
    y = add_norm(*made, EPS, dropout, key, kernel)
    return [y.detach(), *torch.autograd.grad(y, made, dy)]


def in_float64(made: list[Tensor], dy: Tensor, dropout: float, key: int) -> list[Tensor]:
    x, residual, weight, bias = (tensor.detach().double().requires_grad_() for tensor in made)
    mask = kept(tuple(x.shape), dropout, key).double()
    y = F.layer_norm(x * mask + residual, x.shape[-1:], weight, bias, EPS)
    return [y.detach(), *torch.autograd.grad(y, (x, residual, weight, bias), dy.double())]


def check(found: list[Tensor], expected: list[Tensor], tokens: int, features: int) -> None:
    """Sums of n terms are off by at most n units of their terms, of which there are some 4 for each result."""
    names = ("y", "dx", "dresidual", "dweight", "dbias")
    for name, ours, theirs in zip(names if len(found) > 1 else ("dx",), found, expected):
        terms = tokens if name in ("dweight", "dbias") else features
        bound = 4 * (terms + 16) * UNIT * (1 + theirs.abs().max())
        assert (ours - theirs).abs().max() < bound, name


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("tokens", "features"), [(1, 16), (65, 64), (131, 768), (3, 1024), (7, 20)])
def test_result_and_gradients_match_float64(level, tokens, features, dropout, seed):
    made, dy = inputs(tokens, features, seed)
    key = (seed * 0x9E3779B97F4A7C15) % KEYS
    check(results(made, dy, dropout, key), in_float64(made, dy, dropout, key), tokens, features)


@needs_kernels
def test_threads_levels_and_kernels_drop_the_same(two_threads, monkeypatch, seed):
    made, dy = inputs(200, 64, seed)
    first = results(made, dy, 0.3, seed)
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(first, results(made, dy, 0.3, seed)))
    dropped = {"auto": first[1] == 0, "torch": results(made, dy, 0.3, seed, "torch")[1] == 0}
    for name in LEVELS:
        monkeypatch.setenv("SPARSE_OPS_LEVEL", name)
        dropped[name] = results(made, dy, 0.3, seed)[1] == 0
    assert all(torch.equal(mask, dropped["auto"]) for mask in dropped.values())


def test_dropout_drops_its_share_and_keeps_the_mean(seed):
    """The share of n independent draws is off by less than five standard deviations, once in a million."""
    n, p = 1 << 20, 0.1
    mask = kept((n,), p, seed)
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    assert abs((mask == 0).double().mean().item() - p) < 5 * (p * (1 - p) / n) ** 0.5
    pairs = {f"key + 2^{bit}": (mask, kept((n,), p, seed + (1 << bit))) for bit in (0, 1, 20, 32, 40, 62)}
    pairs |= {f"place + {step}": (mask[step:], mask[:-step]) for step in (1, 2, 64, 768, 98304)}
    for name, (one, other) in pairs.items():
        both = ((one == 0) & (other == 0)).double().mean().item()
        assert abs(both - p * p) < 6 * (p * p * (1 - p * p) / one.numel()) ** 0.5, name


def test_random_bits_are_lowbias32():
    """By hand, in Python's integers: Wellons' constants, the key in two halves."""
    key, place = 0x0123456789ABCDEF, 0xFFFFFFF0
    x = (place + (key & 0xFFFFFFFF)) & 0xFFFFFFFF
    x = ((x ^ x >> 16) * 0x7FEB352D) & 0xFFFFFFFF
    x ^= key >> 32
    x = ((x ^ x >> 15) * 0x846CA68B) & 0xFFFFFFFF
    assert random_bits(torch.tensor([place]), key).tolist() == [x ^ x >> 16]


def test_layouts_and_leading_axes_do_not_matter(seed):
    made, dy = inputs(12, 32, seed)
    flat = results(made, dy, 0.2, seed)
    x, residual, weight, bias = made
    y = add_norm(x.view(3, 4, 32), residual.t().contiguous().t().view(3, 4, 32), weight, bias, EPS, 0.2, seed, "auto")
    assert torch.equal(y.view(12, 32), flat[0])


@needs_kernels
def test_torch_knows_the_operator(seed):
    made, _ = inputs(5, 32, seed)
    torch.library.opcheck(torch.ops.sparse_ops.add_norm.default, (*made, EPS, 0.1, seed))
    compiled = torch.compile(add_norm, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*made, EPS, 0.1, seed, "auto"), add_norm(*made, EPS, 0.1, seed, "auto"))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_second_derivatives_match_float64(level, dropout, seed):
    """To a hundred roundings, of the few that follow each other in each of four passes."""
    made, dy = inputs(5, 32, seed)
    found = second(made, dy.requires_grad_(), add_norm(*made, EPS, dropout, seed, "auto"))
    made, dy = ([t.detach().double().requires_grad_() for t in some] for some in (made, [dy]))
    x, residual, weight, bias = made
    y = F.layer_norm(x * kept(tuple(x.shape), dropout, seed).double() + residual, (32,), weight, bias, EPS)
    for name, ours, theirs in zip(("x", "residual", "weight", "dy"), found, second(made, dy[0], y)):
        assert (ours - theirs).norm() < 100 * UNIT * theirs.norm(), name


def test_gradients_with_a_graph_of_a_norm_that_is_used_twice(seed):
    """What the second use has from the first was added twice; to a hundred roundings."""
    (x, residual, weight, bias), dy = inputs(5, 32, seed)

    def loss():
        first = add_norm(x, residual, weight, bias, EPS, 0.3, seed, "auto")
        return (add_norm(first, residual, weight, bias, EPS, 0.3, seed + 1, "auto") * dy).sum()

    plain, with_graph = (torch.autograd.grad(loss(), (x, weight, bias), create_graph=graph) for graph in (False, True))
    for one, other in zip(plain, with_graph):
        assert (one - other).norm() < 100 * UNIT * one.norm()


def test_torch_func_differentiates_it(seed):
    made, dy = inputs(6, 32, seed)
    found = torch.func.grad(lambda x: (add_norm(x, *made[1:], EPS, 0.2, seed, "auto") * dy).sum())(made[0].detach())
    expected = in_float64(made, dy, 0.2, seed)[1]
    check([found], [expected], 6, 32)


def test_the_smallest_dropout_is_one(level, seed):
    """Below 2^-32, where no random bits would be: gradients are written all the same."""
    made, dy = inputs(9, 32, seed)
    check(results(made, dy, 1e-12, seed), in_float64(made, dy, 1e-12, seed), 9, 32)


def test_results_are_contiguous_and_torch_compile_knows(seed):
    (x, residual, weight, bias), dy = inputs(4, 32, seed)
    turned = [t.detach().t().contiguous().t() for t in (x, residual, dy)]
    with torch.device("meta"):
        fake = [torch.empty_strided(t.shape, t.stride()) for t in turned]
        ends, numbers = [torch.empty(32)] * 2, torch.empty(4, 2)
    ops = torch.ops.sparse_ops
    for real, faked in (
        (ops.add_norm(*turned[:2], weight, bias, EPS, 0.2, seed), ops.add_norm(*fake[:2], *ends, EPS, 0.2, seed)),
        (
            ops.add_norm_gradient(turned[2], x.detach().contiguous(), torch.ones(4, 2), weight.detach(), 0.2, seed),
            ops.add_norm_gradient(fake[2], fake[0], numbers, ends[0], 0.2, seed),
        ),
    ):
        assert [(t.shape, t.stride()) for t in real] == [(t.shape, t.stride()) for t in faked]


def test_what_does_not_fit_is_named(seed):
    (x, residual, weight, bias), _ = inputs(4, 32, seed)
    for arguments, said in (
        ((x, residual[:3], weight, bias, EPS, 0.0, 0, "auto"), r"residual: expected \[4, 32\] as x, found \[3, 32\]"),
        ((x, residual, weight[:5], bias, EPS, 0.0, 0, "auto"), r"weight: expected \[32\], found \[5\]"),
        ((x, residual, weight, bias, EPS, 1.0, 0, "auto"), r"dropout: expected a probability in \[0, 1\), found 1.0"),
        ((x, residual, weight, bias, EPS, 0.0, 0, "fast"), "kernel: expected one of"),
    ):
        with pytest.raises(ValueError, match=said):
            add_norm(*arguments)


@needs_kernels
@pytest.mark.parametrize("name", LEVELS)
def test_squares_that_overflow_are_no_number(name, monkeypatch):
    """Not the bias alone, with no gradient, behind which a run that diverges would look well."""
    monkeypatch.setenv("SPARSE_OPS_LEVEL", name)
    x, residual = torch.randn(2, 32), torch.zeros(2, 32)
    x[1] *= 1e20
    y = add_norm(x, residual, torch.ones(32), torch.zeros(32), EPS, 0.0, 0, "auto")
    assert bool(y[0].isfinite().all())
    assert bool(y[1].isnan().all())
