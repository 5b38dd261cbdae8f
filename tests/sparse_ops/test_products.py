"""block_linear and the reference kernel against dense float64, in both directions; what must be refused."""

from __future__ import annotations

import pytest
import torch

from sparse_ops import BlockIndex, BlockPattern, BlockSparseLinear, block_linear, functional, reference
from sparse_ops.functional import observe_gradients

CASES = [  # shape, block size, sparsity, segments
    ((48, 32), 1, 0.9, 1),
    ((96, 64), 4, 0.8, 3),
    ((64, 128), 8, 0.7, 1),
    ((96, 64), 16, 0.6, 3),
    ((32, 32), 16, 0.0, 1),  # full density
    ((16, 16), 16, 0.0, 1),  # one block
]


def make(seed, shape, block_size, sparsity, segments, tokens=7, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    pattern = BlockPattern.random(shape, block_size, sparsity, g, segments)
    shuffled = torch.randperm(pattern.nnz, generator=g)  # slots in any order
    pattern = BlockPattern(shape, block_size, pattern.rows[shuffled], pattern.cols[shuffled], segments)
    layer = BlockSparseLinear.from_pattern(pattern).to(dtype)
    with torch.no_grad():
        layer.values.copy_(torch.randn(layer.values.shape, generator=g))
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=g))
    x, dy = (torch.randn(tokens, size, generator=g, dtype=dtype) for size in (shape[1], shape[0]))
    return layer, x, dy


def blocks_of(dense, pattern):
    b = pattern.block_size
    blocks = dense.reshape(pattern.grid[0], b, pattern.grid[1], b).transpose(1, 2)
    return blocks[pattern.rows.long(), pattern.cols.long()]


@pytest.mark.parametrize("tokens", [1, 7, 129])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_equal_dense_ones(seed, case, tokens):
    """The masked dense weight in float64; sums of at most 128 terms of size 1 differ by far less than 1e-12."""
    layer, x, dy = make(seed, *case, tokens=tokens)
    dense = layer.to_dense()
    x.requires_grad_()
    y = layer(x)
    y.backward(dy)
    torch.testing.assert_close(y, x @ dense.t() + layer.bias, rtol=0, atol=1e-12)
    torch.testing.assert_close(x.grad, dy @ dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.values.grad, blocks_of(dy.t() @ x, layer.pattern), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.bias.grad, dy.sum(0), rtol=0, atol=1e-12)


def test_one_block_by_hand():
    """A 1x1 block 2 at (row 1, col 0) of a 2x3 weight: y = [b0, 2 x0 + b1]."""
    rows, cols = torch.tensor([1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    pattern = BlockPattern((2, 3), 1, rows, cols)
    x, values = torch.tensor([[3.0, 5.0, 7.0]], requires_grad=True), torch.tensor([[[2.0]]], requires_grad=True)
    y = block_linear(x, values, pattern, torch.tensor([10.0, 20.0]))
    assert y.tolist() == [[10.0, 26.0]]
    y[0, 1].backward()
    assert x.grad.tolist() == [[2.0, 0.0, 0.0]]
    assert values.grad.tolist() == [[[3.0]]]


def test_leading_dimensions_and_strides_are_kept(seed):
    layer, x, _ = make(seed, (32, 64), 8, 0.5, 1, tokens=30)
    expected = x @ layer.to_dense().t() + layer.bias
    torch.testing.assert_close(layer(x.view(2, 3, 5, 64)).view(30, 32), expected, rtol=0, atol=1e-12)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(layer(strided), expected, rtol=0, atol=1e-12)


SMALL = [((24, 8), 1, 0.9, 3), ((24, 8), 4, 0.5, 3), ((16, 16), 8, 0.5, 1), ((16, 32), 16, 0.5, 1)]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck_and_opcheck(seed, case):
    layer, x, _ = make(seed, *case, tokens=3)
    inputs = (x.requires_grad_(), layer.values, layer.bias)
    assert torch.autograd.gradcheck(lambda x, v, b: block_linear(x, v, layer.index, b), inputs)
    operator = torch.ops.sparse_ops.block_linear.default
    torch.library.opcheck(operator, (*inputs, list(layer.index), "torch"))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck_and_opcheck_with_gelu(seed, case):
    layer, x, _ = make(seed, *case, tokens=3)
    inputs = (x.requires_grad_(), layer.values, layer.bias)
    dense = torch.nn.functional.gelu(x @ layer.to_dense().t() + layer.bias)
    torch.testing.assert_close(layer(x, gelu=True), dense, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x, v, b: block_linear(x, v, layer.index, b, gelu=True), inputs)
    operator = torch.ops.sparse_ops.block_linear_gelu.default
    torch.library.opcheck(operator, (*inputs, list(layer.index), "torch", True))
    with torch.no_grad():
        torch.testing.assert_close(layer(x, gelu=True), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gelu", [False, True])
def test_the_same_without_registered_operators(seed, gelu, monkeypatch):
    """As torch 2.0 has it, which IPUs need."""
    layer, x, dy = make(seed, (24, 8), 4, 0.5, 3, tokens=3)
    inputs = (x.requires_grad_(), layer.values, layer.bias)
    y = layer(x, gelu=gelu)
    expected = torch.autograd.grad(y, inputs, dy)
    monkeypatch.setattr(functional, "_PRODUCTS", functional._plain())
    again = layer(x, gelu=gelu)
    assert torch.equal(again, y)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(again, inputs, dy), expected))
    assert torch.autograd.gradcheck(lambda x, v, b: block_linear(x, v, layer.index, b, gelu=gelu), inputs)


@pytest.mark.parametrize("gelu", [False, True])
def test_gradients_can_be_observed_where_the_product_ends(seed, gelu):
    layer, x, dy = make(seed, (32, 64), 8, 0.5, 1)
    seen = []
    with observe_gradients(lambda *what: seen.append(what)):
        layer(x, gelu=gelu).backward(dy)
    layer(x, gelu=gelu).backward(dy)  # no longer
    [(index, seen_x, seen_dy)] = seen
    assert index.rows.data_ptr() == layer.rows.data_ptr()
    assert torch.equal(seen_x, x)
    before = (x @ layer.to_dense().t() + layer.bias).requires_grad_()
    after = torch.nn.functional.gelu(before) if gelu else before.clone()
    (expected,) = torch.autograd.grad(after, before, dy)
    torch.testing.assert_close(seen_dy, expected, rtol=0, atol=1e-12)


def test_no_gradient_is_computed_that_nobody_wants(seed):
    layer, x, dy = make(seed, (32, 32), 8, 0.5, 1)
    layer.values.requires_grad_(False)
    layer(x).backward(dy)
    assert layer.values.grad is None
    assert x.grad is None
    assert layer.bias.grad is not None


def test_autocast_multiplies_in_bfloat16_and_gives_float32_gradients(seed):
    layer, x, _ = make(seed, (32, 64), 8, 0.5, 1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.values.grad.dtype == torch.float32
    # bfloat16 keeps 8 bits: inputs, weights and output are each off by up to 2^-9 of themselves.
    bound = 3 * 2.0**-8 * (x.abs() @ layer.to_dense().abs().t() + layer.bias.abs())
    assert bool(((y.float() - (x @ layer.to_dense().t() + layer.bias)).abs() <= bound).all())


def test_torch_compile_sees_one_operator(seed):
    layer, x, _ = make(seed, (32, 32), 8, 0.5, 1)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 31)}, r"x: expected \[\*, 32\], found \[3, 31\]"),
        ({"x": torch.zeros(3, 32, dtype=torch.int64)}, "expected a floating dtype|expected torch.int64"),
        ({"values": torch.zeros(2, 8, 8)}, "values: expected"),
        ({"values": torch.zeros(8, 8, 4)}, "values: expected"),
        ({"bias": torch.zeros(31)}, r"bias: expected \[32\]"),
        ({"values": torch.zeros(8, 8, 8, dtype=torch.float64)}, "values: expected torch.float32 on cpu as x"),
        ({"kernel": "fast"}, "kernel: expected one of"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    pattern = BlockPattern.random((32, 32), 8, 0.5, torch.Generator().manual_seed(0))
    good = {"x": torch.zeros(3, 32), "values": torch.zeros(8, 8, 8), "bias": torch.zeros(32), "kernel": "auto"}
    block_linear(pattern=pattern, **good)
    with pytest.raises(ValueError, match=message):
        block_linear(pattern=pattern, **{**good, **change})


def test_an_index_elsewhere_is_refused():
    """Torch took the operator's fake: a result of whatever was in memory."""
    index = BlockIndex(*(t.to("meta") for t in BlockPattern.random((32, 32), 8, 0.5, torch.Generator()).index()))
    with pytest.raises(ValueError, match="index: expected it on cpu as x, found it on meta"):
        block_linear(torch.zeros(3, 32), torch.zeros(8, 8, 8), index)


def test_no_tensor_of_the_dense_size_exists(seed):
    """Every tensor that torch makes in forward and backward is smaller than the weight would be if it were dense."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            results = result if isinstance(result, (list, tuple)) else [result]
            largest.extend(r.numel() for r in results if isinstance(r, torch.Tensor))
            return result

    for block_size in (1, 16):
        layer, x, dy = make(seed, (256, 512), block_size, 0.9, 1, tokens=4, dtype=torch.float32)
        largest.clear()
        with Watch():
            reference.forward(x, layer.values, layer.index, layer.bias)
            reference.grad_input(dy, layer.values, layer.index)
            reference.grad_values(x, dy, layer.index, block_size)
        assert 256 * 512 // 8 <= max(largest) <= 256 * 512 // 8 * 2


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("sparsity", [0.99, 0.999, 0.99999])
def test_very_sparse_weights(seed, sparsity, kernel):
    """1x1 blocks, most rows and columns with none of them, down to a single one: what masks are used for elsewhere."""
    torch.manual_seed(seed)
    layer = BlockSparseLinear(512, 256, 1, sparsity, kernel=kernel)
    x, dy = torch.randn(33, 512, requires_grad=True), torch.randn(33, 256)
    y = layer(x)
    y.backward(dy)
    dense, exact_x, exact_dy = layer.to_dense().double(), x.detach().double(), dy.double()
    # Sums of at most 33 products of numbers below 6, in float32: 33 x 36 x 33 x 2^-24 = 0.0024 at the very worst.
    bound = {"rtol": 0, "atol": 2.4e-3}
    torch.testing.assert_close(y.double(), exact_x @ dense.t() + layer.bias.double(), **bound)
    torch.testing.assert_close(x.grad.double(), exact_dy @ dense, **bound)
    expected = (exact_dy.t() @ exact_x)[layer.rows.long(), layer.cols.long()]
    torch.testing.assert_close(layer.values.grad.flatten().double(), expected, **bound)
    assert layer.values.numel() == round((1 - sparsity) * 512 * 256)
