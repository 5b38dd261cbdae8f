"""feed_forward against its two layers one after the other, and against dense float64."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import pytest
import torch
import torch.nn.functional as F
from compiler import LEVELS, needs_kernels
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparse_ops import native
from sparse_ops.feed_forward import feed_forward
from sparse_ops.functional import observe_gradients
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.pattern import BLOCK_SIZES
from sparse_ops.variants import PRODUCTS

OPERATOR = "block_linear_feed_forward"


def make(
    seed: int, b: int, dtype: torch.dtype, tokens: int = 37, bias: bool = True, kernel: str = "auto"
) -> tuple[BlockSparseLinear, BlockSparseLinear, Tensor, Tensor]:
    """Both layers, inputs and the gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    first = BlockSparseLinear(64, 128, b, 0.75, bias, kernel=kernel, generator=generator, dtype=dtype)
    second = BlockSparseLinear(128, 48, b, 0.75, bias, kernel=kernel, generator=generator, dtype=dtype)
    x = torch.randn(tokens, 64, generator=generator, dtype=dtype).requires_grad_()
    return first, second, x, torch.randn(tokens, 48, generator=generator, dtype=dtype)


def results(function: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor, graph: bool = False) -> list[Tensor]:
    y = function()
    return [y, *torch.autograd.grad(y, inputs, dy, create_graph=graph)]


def inputs_of(first: BlockSparseLinear, second: BlockSparseLinear, x: Tensor) -> list[Tensor]:
    return [x, *first.parameters(), *second.parameters()]


def is_together(y: Tensor) -> bool:
    return y.grad_fn is not None and OPERATOR in y.grad_fn.next_functions[0][0].name()


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize(("tokens", "bias"), [(1, True), (37, False), (300, True)])
@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_bits_of_two_layers(b: int, tokens: int, bias: bool, kernel: str, seed: int) -> None:
    first, second, x, dy = make(seed, b, torch.float32, tokens, bias, kernel)
    inputs = inputs_of(first, second, x)
    found = results(lambda: feed_forward(x, first, second), inputs, dy)
    expected = results(lambda: second(first(x, gelu=True)), inputs, dy)
    assert is_together(found[0])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected))


@needs_kernels
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_results_times_slope(
    b: int, dtype: torch.dtype, level: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of the product multiplies what it would have written, before it is rounded."""
    monkeypatch.setenv("SPARSE_OPS_LEVEL", level)
    choices = native.choices()
    for tokens in (1, 37, 300):
        _, layer, _, dy = make(seed, b, dtype, tokens)
        slope = torch.randn(tokens, 128, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        work = native.work(PRODUCTS[1], (48, 128), b, layer.values.shape[0], tokens, dtype)
        plain = native.grad_input(dy.float(), layer.values.float(), layer.index) * slope.float()
        for number in range(len(choices.names(work))):
            monkeypatch.setattr(choices, "number", lambda _, number=number: number)
            found = native.grad_input(dy, layer.values, layer.index, slope)
            if dtype == torch.float32:
                assert torch.equal(found, plain)
            else:  # half a unit of the result; another order of pairs of products, see test_native
                size = native.grad_input(dy.float().abs(), layer.values.float().abs(), layer.index) * slope.abs()
                assert bool(((found - plain).abs() <= plain.abs() * 2.0**-8 + size * 128 * 2.0**-24).all())


@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_against_dense_float64(b: int, seed: int) -> None:
    first, second, x, dy = make(seed, b, torch.float64)
    weights = [layer.to_dense().requires_grad_() for layer in (first, second)]
    biases = [layer.bias.detach().clone().requires_grad_() for layer in (first, second) if layer.bias is not None]
    inputs = [x, weights[0], biases[0], weights[1], biases[1]]
    dense = results(lambda: F.gelu(x @ weights[0].t() + biases[0]) @ weights[1].t() + biases[1], inputs, dy)
    found = results(lambda: feed_forward(x, first, second), inputs_of(first, second, x), dy)
    assert is_together(found[0])
    for layer, at in ((first, 2), (second, 4)):
        layer.values.data.copy_(found[at])
        blocks = BlockSparseLinear.from_pattern(layer.pattern, dtype=torch.float64)
        blocks.from_dense(dense[at])
        dense[at], found[at] = blocks.to_dense(), layer.to_dense()
    for ours, theirs in zip(found, dense):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_bfloat16_is_rounded_once_less(seed: int) -> None:
    first, second, x, dy = make(seed, 16, torch.bfloat16)
    inputs = inputs_of(first, second, x)
    found = results(lambda: feed_forward(x, first, second), inputs, dy)
    expected = results(lambda: second(first(x, gelu=True)), inputs, dy)
    assert is_together(found[0])
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=2.0**-6, atol=2.0**-6 * float(theirs.detach().abs().max()))


def test_both_products_can_be_observed(seed: int) -> None:
    first, second, x, dy = make(seed, 8, torch.float32)
    seen: list[list[Any]] = [[], []]
    for into, function in zip(seen, (partial(feed_forward, x, first, second), lambda: second(first(x, gelu=True)))):
        with observe_gradients(lambda *what, into=into: into.append(what)):
            function().backward(dy)
    assert len(seen[0]) == len(seen[1]) == 2
    for (index, *tensors), (other, *others) in zip(*seen):
        assert index.rows.data_ptr() == other.rows.data_ptr()
        assert all(torch.equal(a, b) for a, b in zip(tensors, others))


def test_some_gradients_alone(seed: int) -> None:
    """Each by itself is what it is among all; none is made that nobody wants."""
    first, second, x, dy = make(seed, 4, torch.float32)
    inputs = inputs_of(first, second, x)
    expected = results(lambda: feed_forward(x, first, second), inputs, dy)[1:]
    for alone, its in zip(inputs, expected):
        for other in inputs:
            other.requires_grad_(other is alone)
        y = feed_forward(x, first, second)
        assert is_together(y)
        (found,) = torch.autograd.grad(y, alone, dy)
        if alone.dim() > 1:
            assert torch.equal(found, its)
        else:  # a bias alone is torch's sum, of 37 terms, which are below 10, in another order
            assert bool(((found - its).abs() <= 36 * 2.0**-24 * 37 * 10).all())


def test_second_derivatives(seed: int) -> None:
    first, second, x, dy = make(seed, 4, torch.float64, tokens=3)
    inputs = inputs_of(first, second, x)

    def squares(function: Callable[..., Tensor]) -> list[Tensor]:
        made = results(function, inputs, dy, graph=True)
        return list(torch.autograd.grad(sum(t.square().sum() for t in made), inputs))  # type: ignore[arg-type]

    found = squares(lambda: feed_forward(x, first, second))
    for ours, theirs in zip(found, squares(lambda: second(first(x, gelu=True)))):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_as_an_operator(seed: int) -> None:
    first, second, x, _ = make(seed, 8, torch.float64, kernel="torch")
    parts = [(layer.values, layer.bias, list(layer.index)) for layer in (first, second)]
    torch.library.opcheck(getattr(torch.ops.sparse_ops, OPERATOR).default, (x, *parts[0], *parts[1], "torch"))
    counted = []
    for function in (partial(feed_forward, x, first, second), lambda: second(first(x, gelu=True))):
        with FlopCounterMode(display=False) as counter:
            function().sum().backward()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


class Derived(BlockSparseLinear):
    """A layer with a forward pass of its own, as an adapter's."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return super().forward(2 * x, gelu)


def test_nothing_is_passed_over(seed: int) -> None:
    """What a layer does beside its product is done."""
    first, second, x, _ = make(seed, 8, torch.float32)
    calls: list[str] = []

    def note(module: nn.Module, *_: Any) -> None:
        calls.append(type(module).__name__)

    for layer in (first, second):
        for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
            hook = register(note)
            feed_forward(x, first, second)
            assert calls == ["BlockSparseLinear"], layer
            hook.remove()
            calls.clear()
    hook = nn.modules.module.register_module_forward_hook(note)
    feed_forward(x, first, second)
    hook.remove()
    assert len(calls) == 2
    derived = Derived.from_pattern(second.pattern)
    derived.load_state_dict(second.state_dict())
    assert torch.equal(feed_forward(x, first, derived), second(2 * first(x, gelu=True)))
    with torch.no_grad():
        assert torch.equal(feed_forward(x, first, second), second(first(x, gelu=True)))


def test_elsewhere_two_layers(seed: int) -> None:
    first, second, x, dy = make(seed, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = feed_forward(x, first, second)
    assert y.dtype == torch.bfloat16
    assert not is_together(y)
    other = BlockSparseLinear.from_pattern(second.pattern, kernel="torch")
    assert not is_together(feed_forward(x, first, other))

    by_func = torch.func.grad(lambda x: (feed_forward(x, first, second) * dy).sum())(x)
    _, by_layers, *_ = results(lambda: second(first(x, gelu=True)), inputs_of(first, second, x), dy)
    torch.testing.assert_close(by_func, by_layers)
    meta = [BlockSparseLinear(64, 64, 8, 0.5, device="meta") for _ in range(2)]
    assert feed_forward(torch.empty(3, 64, device="meta"), *meta).shape == (3, 64)


def test_what_does_not_fit_is_refused(seed: int) -> None:
    first, second, x, _ = make(seed, 8, torch.float32)
    for wrong, message in (
        (lambda: feed_forward(x[:, :40], first, second), r"x: expected \[\*, 64\], found \[37, 40\]"),
        (lambda: feed_forward(x, second, first), r"x: expected \[\*, 128\], found \[37, 64\]"),
        (lambda: feed_forward(x.double(), first, second), "values: expected torch.float64 on cpu as x"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    first.kernel = second.kernel = "fast"
    with pytest.raises(ValueError, match="kernel: expected one of"):
        feed_forward(x, first, second)
    first.kernel = second.kernel = "auto"
    second.values.data = second.values.data[1:]
    with pytest.raises(ValueError, match=r"values: expected \["):
        feed_forward(x, first, second)
    empty = BlockSparseLinear(128, 48, 8, 0.75, device="meta").to_empty(device="cpu")
    with pytest.raises(ValueError, match="expected positions, found none"):
        feed_forward(x, first, empty)


def test_a_forward_of_the_layers_own_is_called(seed: int) -> None:
    """accelerate hooks a layer so."""
    first, second, x, _ = make(seed, 8, torch.float32)
    plain = first.forward
    first.forward = lambda x, gelu=False: 2 * plain(x, gelu)  # type: ignore[method-assign]
    found = feed_forward(x, first, second)
    assert torch.equal(found, second(2 * plain(x, True)))
    assert not is_together(found)
