"""How a BlockSparseLinear comes about: new, from a linear layer, and in the place of a model's linear layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparse_ops import BlockPattern, BlockSparseLinear, sparsify
from sparse_ops.pattern import block_count


@pytest.mark.parametrize("block_size", [1, 4, 8, 16])
def test_a_new_layer_keeps_the_variance_that_nn_linear_keeps(seed, block_size):
    """Uniform in +-1/sqrt(n) with n inputs an output: the variance of W x is a third of x's, as in nn.Linear."""
    torch.manual_seed(seed)
    layer = BlockSparseLinear(512, 512, block_size, 0.9, bias=False)
    assert layer.values.shape[0] == block_count((512, 512), block_size, 0.9)
    dense = layer.to_dense()
    inputs = (dense != 0).sum(1)
    bound = inputs.float().rsqrt().unsqueeze(1)
    assert bool((dense.abs() <= bound * (1 + 2.0**-20))[inputs > 0].all())
    scaled = (dense / bound)[dense != 0].double()
    # n uniform numbers in (-1, 1): mean 0 with deviation 3^-1/2 n^-1/2, mean square 1/3 with (4/45)^1/2 n^-1/2.
    root = scaled.numel() ** -0.5
    assert abs(float(scaled.mean())) < 6 * 3**-0.5 * root
    assert abs(float(scaled.square().mean()) - 1 / 3) < 6 * (4 / 45) ** 0.5 * root


def test_two_new_layers_in_a_row_learn(seed):
    """What stood still when values were zero: with GELU between them no gradient got through."""
    torch.manual_seed(seed)
    model = nn.Sequential(BlockSparseLinear(32, 64, 8, 0.5), nn.GELU(), BlockSparseLinear(64, 32, 8, 0.5))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, losses = torch.randn(64, 32), []
    for _ in range(30):
        loss = (model(x) - x).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(bool(p.grad.any()) for p in model.parameters())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_the_start_follows_the_generator_or_torch_s_own_seed(seed):
    def made(**options):
        return BlockSparseLinear(32, 48, 8, 0.5, segments=3, **options).state_dict()

    torch.manual_seed(seed)
    first = made()
    torch.manual_seed(seed)
    again = made()
    other, own = made(), [made(generator=torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(own[0][name], own[1][name]) for name in first)
    assert not torch.equal(first["values"], other["values"])
    assert BlockPattern((48, 32), 8, first["rows"], first["cols"], 3).slot_segments().bincount().tolist() == [4, 4, 4]


def test_an_output_without_blocks_starts_with_the_bias_of_all_inputs():
    rows, cols = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    layer = BlockSparseLinear.from_pattern(BlockPattern((8, 16), 4, rows, cols))
    assert float(layer.bias[:4].detach().abs().max()) <= 0.5
    assert float(layer.bias[4:].detach().abs().max()) <= 0.25
    assert bool(torch.isfinite(layer.bias).all())


@pytest.mark.parametrize("pattern", ["random", "magnitude"])
def test_from_linear_keeps_what_stands_at_its_blocks(seed, pattern):
    torch.manual_seed(seed)
    linear = nn.Linear(32, 48, dtype=torch.float64).eval()
    linear.weight.requires_grad_(False)
    layer = BlockSparseLinear.from_linear(linear, 8, 0.5, pattern, segments=3)
    mask = layer.to_dense() != 0
    assert torch.equal(layer.to_dense(), linear.weight * mask)
    assert torch.equal(layer.bias, linear.bias)
    assert mask.reshape(3, -1).sum(1).tolist() == [256, 256, 256]
    assert (layer.values.dtype, layer.training) == (torch.float64, False)
    assert (layer.values.requires_grad, layer.bias.requires_grad) == (False, True)
    x = torch.randn(3, 32, dtype=torch.float64)
    expected = x @ (linear.weight * mask).t() + linear.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)  # 33 terms of size 1


def test_magnitude_by_hand():
    linear = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[0, 4], linear.weight[5, 1], linear.weight[7, 7] = -5.0, 4.0, 3.0
        linear.weight[0:4, 0:4] = 0.25  # sixteen of them: L1 norm 4.0, largest element 0.25
    layer = BlockSparseLinear.from_linear(linear, 4, 0.5, "magnitude")
    assert list(zip(layer.rows.tolist(), layer.cols.tolist())) == [(0, 0), (0, 1)]
    by_segment = BlockSparseLinear.from_linear(linear, 4, 0.5, "magnitude", segments=2)
    assert list(zip(by_segment.rows.tolist(), by_segment.cols.tolist())) == [(0, 1), (1, 0)]


def model_of_linears() -> nn.ModuleDict:
    shared = nn.Linear(16, 16)
    model = nn.ModuleDict({"first": shared, "inner": nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))})
    model["again"], model["head"], model["words"] = shared, nn.Linear(16, 10), nn.Embedding(10, 16)
    return model


def test_sparsify_replaces_what_matches(seed):
    torch.manual_seed(seed)
    model = model_of_linears()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = sparsify(model, 8, 0.5, include=["first", "again", "inner.*"], exclude=["*.2"])
    assert list(layers) == ["first", "inner.0"]
    assert model["again"] is model["first"] is layers["first"]
    assert type(model["inner"][2]) is type(model["head"]) is nn.Linear
    dense = layers["inner.0"].to_dense()
    assert torch.equal(dense, before["inner.0.weight"] * (dense != 0))


@pytest.mark.parametrize(
    ("block_size", "sparsity", "said"),
    [
        (8.0, 0.5, "block size: expected a whole number, found 8.0"),
        (True, 0.5, "block size: expected a whole number, found True"),
        ("8", 0.5, "block size: expected a whole number, found '8'"),
        (8, "0.5", r"sparsity: expected a number in \[0, 1\), found '0.5'"),
    ],
)
def test_what_only_looks_like_a_size_is_refused(block_size, sparsity, said):
    with pytest.raises(ValueError, match=said):
        BlockSparseLinear(32, 32, block_size, sparsity)
    with pytest.raises(ValueError, match=f"^0: {said}; exclude it"):
        sparsify(nn.Sequential(nn.Linear(32, 32)), block_size, sparsity)


def test_numpys_numbers_are_sizes_too():
    layer = BlockSparseLinear(np.int64(32), np.int32(16), np.int64(8), np.float32(0.5))
    assert layer(torch.randn(3, 32)).shape == (3, 16)
    with pytest.raises(ValueError, match=r"inputs: expected a whole number, found 32\.0"):
        BlockSparseLinear(32.0, 16, 8, 0.5)


def test_names_may_come_from_an_iterator():
    model = model_of_linears()
    names = (name for name in ["words", "inner.2", "first", "again"])
    assert list(sparsify(model, 1, 0.5, exclude=names)) == ["inner.0", "head"]


def test_sparsify_refuses_and_replaces_nothing():
    model = model_of_linears()
    with pytest.raises(ValueError, match=r"exclude: expected names of layers, found 'inner', which holds inner\.0"):
        sparsify(model, 1, 0.5, exclude=["inner"])
    with pytest.raises(ValueError, match=r"^head: weight \[10, 16\]: expected rows in a multiple .*; exclude it$"):
        sparsify(model, 8, 0.5)
    with pytest.raises(ValueError, match=r"expected an nn.Linear whose name matches \['words'\], found none"):
        sparsify(model, 8, 0.5, include=["words"])
    for what in ("include", "exclude"):
        with pytest.raises(ValueError, match=f"{what}: expected names of modules, found 'haed', which is none's"):
            sparsify(model, 8, 0.5, **{what: ["head", "haed"]})
        with pytest.raises(ValueError, match=f"{what}: expected a list of names, found the text 'head'"):
            sparsify(model, 8, 0.5, **{what: "head"})
    with pytest.raises(ValueError, match="first: expected all places of this layer to match, found again, which does"):
        sparsify(model, 8, 0.5, include=["first", "inner.0"])
    with pytest.raises(ValueError, match="pattern: expected one of"):
        sparsify(model, 8, 0.5, pattern="best")
    with pytest.raises(ValueError, match="use from_linear"):
        sparsify(nn.Linear(16, 16), 8, 0.5)
    model["head"].weight = model["words"].weight
    with pytest.raises(ValueError, match="head: expected a weight of its own, found it tied to words's; exclude it"):
        sparsify(model, 1, 0.5)
    model["inner"][2].bias = shared_bias = model["first"].bias
    with pytest.raises(ValueError, match=r"expected a bias of its own, found it tied to inner\.2's; exclude it"):
        sparsify(model, 1, 0.5, exclude=["head"])
    assert model["first"].bias is shared_bias
    assert not any(isinstance(module, BlockSparseLinear) for module in model.modules())


def test_a_layer_with_hooks_is_refused_since_they_would_be_lost() -> None:
    hooked, pruned, replaced = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
    replaced.forward = lambda x: 2 * x  # as accelerate does
    hooked.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    prune.l1_unstructured(pruned, "weight", 0.5)
    for layer in (hooked, pruned, replaced):
        model = nn.Sequential(nn.Linear(16, 16), layer)
        with pytest.raises(ValueError, match="1: expected no hooks, found some, which would be lost"):
            sparsify(model, 4, 0.5)
        assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("what", ["buffer", "passing buffer", "child", "weight hook", "state hook", "int8"])
def test_what_a_layer_has_besides_and_other_numbers_are_refused_by_name(what: str) -> None:
    odd = nn.Linear(16, 16)
    if "buffer" in what:
        odd.register_buffer("scale", torch.ones(1), persistent=what == "buffer")
    elif what == "child":
        odd.act = nn.ReLU()
    elif what == "weight hook":
        odd.weight.register_hook(lambda gradient: 0 * gradient)
    elif what == "state hook":
        odd._register_state_dict_hook(lambda *_: None)
    else:
        odd.weight = nn.Parameter(torch.zeros(16, 16, dtype=torch.int8), requires_grad=False)
    model = nn.Sequential(nn.Linear(16, 16), odd)
    with pytest.raises(ValueError, match="^1: expected a weight of " if what == "int8" else "^1: .* would be lost"):
        sparsify(model, 1, 0.5)
    assert type(model[0]) is nn.Linear


def test_a_half_precision_start_with_more_inputs_than_float16_counts(seed) -> None:
    torch.manual_seed(seed)
    layer = BlockSparseLinear(81920, 16, 16, 0.0, dtype=torch.float16)
    bound = 81920**-0.5
    assert 0.9 * bound < layer.values.abs().max() <= bound * (1 + 2**-10)
    assert layer.bias is not None
    assert bool(layer.bias.any())
