"""What works as for nn.Linear and what is refused: a test for each row of the table in docs/library.md."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from compiler import needs_kernels
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sparse_ops import BlockSparseLinear

IN, OUT, TOKENS = 16, 24, 5


@pytest.fixture
def layer(seed: int) -> BlockSparseLinear:
    torch.manual_seed(seed)
    return BlockSparseLinear(IN, OUT, 4, 0.5, dtype=torch.float64)


def twin(layer: BlockSparseLinear) -> nn.Linear:
    """The linear layer with the same weight."""
    linear = nn.Linear(IN, OUT, dtype=layer.values.dtype)
    with torch.no_grad():
        linear.weight.copy_(layer.to_dense())
        linear.bias.copy_(layer.bias)
    return linear


def inputs() -> Tensor:
    return torch.randn(TOKENS, IN, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    """Sums of at most some hundred terms of size 1 to 10 in float64 differ by far less than 1e-11."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def at_blocks(layer: BlockSparseLinear, dense: Tensor) -> Tensor:
    blocks = dense.unflatten(-2, (OUT // 4, 4)).unflatten(-1, (IN // 4, 4)).transpose(-3, -2)
    return blocks[..., layer.rows.long(), layer.cols.long(), :, :]


def test_a_vector_a_batch_of_none_and_a_frozen_layer(layer):
    linear = twin(layer)
    for shape in ((IN,), (0, IN), (2, 0, IN), (2, 3, IN)):
        x = torch.randn(shape, dtype=torch.float64)
        close(layer(x), linear(x))
    layer.requires_grad_(False)
    assert not layer(inputs()).requires_grad


def test_dtypes_and_moves(layer):
    x = inputs()
    before = layer.pattern.checksum()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert layer.to(dtype)(x.to(dtype)).dtype == dtype
        assert layer.index.rows.dtype == torch.int32
    layer.to_empty(device="cpu")
    assert layer.pattern.checksum() == before, "positions outlive to_empty"


@pytest.mark.parametrize("how", ["argument", "context"])
def test_the_meta_device(seed, how):
    if how == "argument":
        layer = BlockSparseLinear(IN, OUT, 4, 0.5, device="meta")
    else:
        with torch.device("meta"):
            layer = BlockSparseLinear(IN, OUT, 4, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.empty(TOKENS, IN, device="meta")).shape == (TOKENS, OUT)
    with pytest.raises(ValueError, match=r"expected positions, found none \(made on the meta device\)"):
        layer.to_dense()
    layer.to_empty(device="cpu")
    with pytest.raises(ValueError, match="call reset_parameters or load_state_dict first"):
        layer(torch.zeros(TOKENS, IN))
    torch.manual_seed(seed)
    layer.reset_parameters()
    torch.manual_seed(seed)
    other = BlockSparseLinear(IN, OUT, 4, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), other.state_dict().values()))


def test_assign_puts_a_state_into_a_layer_of_the_meta_device(layer):
    empty = BlockSparseLinear(IN, OUT, 4, 0.5, dtype=torch.float64, device="meta")
    state = layer.state_dict()
    empty.load_state_dict(state, assign=True)
    x = inputs()
    assert torch.equal(empty(x), layer(x))
    assert empty.values.data_ptr() == layer.values.data_ptr(), "as of nn.Linear"
    layer.reallocate(torch.tensor([0, 1]), layer.rows[[1, 0]], layer.cols[[1, 0]])
    empty(x)  # its positions are its own: else its index would be wrong now


def test_copies(layer):
    x, file = inputs(), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    state = io.BytesIO()
    torch.save(layer.state_dict(), state)
    state.seek(0)
    loaded = BlockSparseLinear(IN, OUT, 4, 0.5, dtype=torch.float64)
    loaded.load_state_dict(torch.load(state, weights_only=True))
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False), loaded]
    expected = layer(x)
    assert all(torch.equal(other(x), expected) for other in copies)
    layer.reallocate(torch.tensor([0, 1]), layer.rows[[1, 0]], layer.cols[[1, 0]])
    assert all(torch.equal(other(x), expected) for other in copies)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast(layer, dtype):
    layer.to(dtype)
    x = inputs().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), twin(layer)(x)
    assert y.dtype == expected.dtype
    y.sum().backward()
    assert (x.grad.dtype, layer.values.grad.dtype) == (dtype, dtype)


def test_compile(layer):
    x = inputs()
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    close(y, twin(layer)(x))
    found, expected = torch.autograd.grad(y.sum(), layer.values)[0], torch.autograd.grad(layer(x).sum(), layer.values)
    close(found, expected[0])


def test_export(layer):
    x = inputs()
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    close(program.module()(x[:3]), twin(layer)(x[:3]))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(layer, reentrant):
    x = inputs().requires_grad_()
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    expected = torch.autograd.grad(layer(x).square().sum(), (x, layer.values, layer.bias))
    assert all(torch.equal(a, b) for a, b in zip((x.grad, layer.values.grad, layer.bias.grad), expected))


@pytest.mark.parametrize("gelu", [False, True])
def test_func_grad(layer, gelu):
    x, linear = inputs(), twin(layer)

    def loss(parameters, x, module, **options):
        return functional_call(module, parameters, (x,), options).square().sum()

    found = torch.func.grad(loss, (0, 1))(dict(layer.named_parameters()), x, layer, gelu=gelu)

    def dense_loss(parameters, x):
        y = functional_call(linear, parameters, x)
        return (F.gelu(y) if gelu else y).square().sum()

    expected = torch.func.grad(dense_loss, (0, 1))(dict(linear.named_parameters()), x)
    close(found[0]["values"], at_blocks(layer, expected[0]["weight"]))
    close(found[0]["bias"], expected[0]["bias"])
    close(found[1], expected[1])


def test_vmap_over_activations_weights_and_gradients(layer):
    x = torch.randn(3, TOKENS, IN, dtype=torch.float64)
    close(torch.vmap(layer)(x), twin(layer)(x))
    close(torch.vmap(layer, in_dims=1, out_dims=1)(x), twin(layer)(x))
    ensemble = torch.randn(3, *layer.values.shape, dtype=torch.float64)
    each = [functional_call(layer, {"values": values}, x[0]) for values in ensemble]
    close(torch.vmap(lambda v: functional_call(layer, {"values": v}, x[0]))(ensemble), torch.stack(each))

    def per_sample(module, name, weight):
        loss = torch.func.grad(lambda w, x: functional_call(module, {name: w}, x).square().sum())
        return torch.vmap(loss, (None, 0))(weight, x[0])

    linear = twin(layer)
    expected = per_sample(linear, "weight", linear.weight)
    close(per_sample(layer, "values", layer.values), at_blocks(layer, expected))


def test_an_ensemble_by_stacked_states_with_a_skeleton_on_the_meta_device(seed):
    """torch.func's way to run several models at once: each has positions of its own, which are among the buffers."""
    torch.manual_seed(seed)
    models = [
        nn.Sequential(BlockSparseLinear(16, 32, 4, 0.5), nn.GELU(), BlockSparseLinear(32, 8, 4, 0.5)).double()
        for _ in range(3)
    ]
    parameters, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(3, 5, 16, dtype=torch.float64)

    def call(parameters, buffers, x):
        return functional_call(skeleton, (parameters, buffers), (x,))

    for dim in (None, 0):
        given = x if dim == 0 else x[0]
        found = torch.vmap(call, (0, 0, dim))(parameters, buffers, given)
        close(found, torch.stack([model(x[i if dim == 0 else 0]) for i, model in enumerate(models)]))

    def loss(*parts):
        return call(*parts).square().sum()

    for found in (
        torch.vmap(torch.func.grad(loss), (0, 0, 0))(parameters, buffers, x),
        torch.func.grad(lambda p: torch.vmap(loss, (0, 0, 0))(p, buffers, x).sum())(parameters),
    ):
        for i, model in enumerate(models):
            expected = torch.autograd.grad(model(x[i]).square().sum(), list(model.parameters()))
            for (name, _), gradient in zip(model.named_parameters(), expected):
                close(found[name][i], gradient)
    with pytest.raises(ValueError, match="expected positions, found none"):  # of the index no part may lack
        functional_call(skeleton, dict(models[0].state_dict()), (x[0],))


@pytest.mark.parametrize("gelu", [False, True])
def test_second_derivatives(layer, gelu):
    x = inputs().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x, values, bias: functional_call(layer, {"values": values, "bias": bias}, x, {"gelu": gelu}).square(),
        (x, layer.values, layer.bias),
        fast_mode=True,
    )
    # What the check differentiates are gradients that have a graph; they are those that have none.
    inputs_of = (x, layer.values, layer.bias)
    plain, with_graph = (
        torch.autograd.grad(layer(x, gelu=gelu).pow(3).sum(), inputs_of, create_graph=graph) for graph in (False, True)
    )
    close(with_graph, plain)
    linear = twin(layer)
    found, expected = (torch.func.hessian(lambda x, m=m: m(x).pow(3).sum())(x[0]) for m in (layer, linear))
    close(found, expected)


@pytest.mark.parametrize("gelu", [False, True])
def test_gradients_with_a_graph_of_a_layer_that_is_used_twice(gelu):
    """What the second use has from the first was added twice."""
    layer = BlockSparseLinear(32, 32, 4, 0.5, dtype=torch.float64)
    x, made_from = torch.randn(5, 32, dtype=torch.float64), list(layer.parameters())

    def loss():
        return layer(layer(x, gelu) * layer.values.sum(), gelu).square().sum()

    plain, with_graph = (torch.autograd.grad(loss(), made_from, create_graph=graph) for graph in (False, True))
    close(with_graph, plain)


def test_forward_mode(layer):
    """Of activations and of every parameter, trained or frozen; it gave zeros."""
    x, tangent = inputs(), inputs()
    dvalues, dbias = torch.randn_like(layer.values), torch.randn_like(layer.bias)
    moved = BlockSparseLinear.from_pattern(layer.pattern, dtype=torch.float64)
    with torch.no_grad():
        moved.values.copy_(dvalues)
        moved.bias.copy_(dbias)
    expected = tangent @ layer.to_dense().t() + moved(x)
    duals = {"values": dvalues, "bias": dbias}
    for trained in (True, False):
        layer.requires_grad_(trained)
        with forward_ad.dual_level():
            made = {name: forward_ad.make_dual(getattr(layer, name), t) for name, t in duals.items()}
            y = functional_call(layer, made, forward_ad.make_dual(x, tangent))
            close(forward_ad.unpack_dual(y).tangent, expected)
        only_x = torch.func.jvp(layer, (x,), (tangent,))[1]
        close(only_x, tangent @ layer.to_dense().t())
    close(torch.func.jacfwd(layer)(x[0]), layer.to_dense())


@pytest.mark.parametrize("kernel", [pytest.param("native", marks=needs_kernels), "torch"])
def test_flops_are_those_executed(layer, kernel):
    """Two a multiply-add: of existing weights in native code, of all in plain torch; thrice with gradients."""
    layer.float().kernel = kernel
    weights = layer.values.numel() if kernel == "native" else IN * OUT
    x = inputs().float().requires_grad_()
    for gelu in (False, True):
        with FlopCounterMode(display=False) as counter:
            layer(x, gelu=gelu)
        assert counter.get_total_flops() == 2 * TOKENS * weights
        with FlopCounterMode(display=False) as counter:
            layer(x, gelu=gelu).sum().backward()
        assert counter.get_total_flops() == 3 * 2 * TOKENS * weights
    meta = BlockSparseLinear(IN, OUT, 4, 0.5, device="meta")
    with FlopCounterMode(display=False) as counter:
        meta(x.to("meta"))
    assert counter.get_total_flops() == 2 * TOKENS * meta.values.numel()


def test_the_dense_weight_is_not_there(layer):
    with pytest.raises(AttributeError, match="no attribute 'weight'"):
        layer.weight  # noqa: B018


def test_averaged_buffers_are_positions_that_no_model_has():
    """Of torch's own making, and why docs/library.md says to leave it: halfway between the places of a moved block."""
    layer = BlockSparseLinear(16, 16, 4, 15 / 16)
    first = {"rows": torch.tensor([0], dtype=torch.int32), "cols": torch.tensor([0], dtype=torch.int32)}
    layer.load_state_dict({**layer.state_dict(), **first})
    places = {}
    for buffers in (False, True):
        layer.load_state_dict({**layer.state_dict(), **first})
        average = AveragedModel(layer, use_buffers=buffers)
        average.update_parameters(layer)
        layer.reallocate(*(torch.tensor([n]) for n in (0, 2, 2)))
        average.update_parameters(layer)
        places[buffers] = (average.module.rows.tolist(), average.module.cols.tolist())
    assert places[True] == ([1], [1])
    assert places[False] == ([2], [2])
