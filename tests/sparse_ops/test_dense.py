"""Dense products against float64, by whichever library; and that it is oneDNN where it is to be."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any, Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ops import dense, processor
from sparse_ops.dense import DenseLinear, linear
from sparse_ops.sparsify import sparsify

UNIT = 2.0**-24
SIZES = [(640, 256, 512), (1003, 128, 320), (515, 512, 131)]  # tokens, inputs, outputs: whole vectors, and not


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As on a processor whose vectors MKL leaves half empty, or on another, whichever this is."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("a torch without oneDNN")
    monkeypatch.setattr(dense, "_mkl_is_narrow", lambda: request.param)
    return request.param


def random(*sizes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(size, requires_grad=True) for size in sizes]


def close(found: Tensor, left: Tensor, right: Tensor, more: Tensor | float = 0.0) -> bool:
    """Whether found = left right + more, but for a rounding a term (and one for each of the sum's few parts)."""
    left, right = left.detach().double(), right.detach().double()
    exact, bound = left @ right + more, left.abs() @ right.abs()
    return bool(((found - exact).abs() <= (left.shape[1] + 8) * UNIT * (bound + abs(torch.as_tensor(more)))).all())


def operators(run: Callable[[], Any]) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {event.name for event in profile.events() or ()}


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SIZES)
def test_results_and_gradients_match_float64(tokens, inputs, outputs, narrow):
    x, weight, bias = random((tokens, inputs), (outputs, inputs), (outputs,))
    y = linear(x.view(1, tokens, inputs), weight, bias)
    dy = torch.randn_like(y)
    dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), dy)
    dy = dy[0]
    assert y.shape == (1, tokens, outputs)
    assert y.is_contiguous()
    assert close(y.detach()[0], x, weight.t(), bias.detach().double())
    assert close(dx, dy, weight)
    assert close(dweight, dy.t(), x)
    assert close(dbias[None], torch.ones(1, tokens), dy)
    assert close(dense.product(x.detach(), weight.detach()), x, weight.t())
    assert close(dense.product(dy, weight.detach().t()), dy, weight)
    assert close(dense.gradient(dy, x.detach()), dy.t(), x)


def test_a_gradient_has_a_gradient(narrow):
    x, weight = random((640, 256), (256, 256))
    (dx,) = torch.autograd.grad(linear(x, weight, None).square().sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(dx.square().sum(), x)
    exact, w = x.detach().double(), weight.detach().double()
    square = w.t() @ w  # dx = 2 x W^T W
    assert (found - 8 * exact @ square @ square).norm() < 1e-6 * found.norm()  # three products of 256 terms


@pytest.mark.parametrize("threads", [1, 2])
def test_all_three_products_are_onednns(threads, monkeypatch):
    """Torch gives convolutions to MKL, too, for several reasons, and says nothing."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("a torch without oneDNN")
    monkeypatch.setattr(dense, "_mkl_is_narrow", lambda: True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer, x = DenseLinear(256, 512), torch.randn(640, 256, requires_grad=True)
        names = operators(lambda: layer(x).sum().backward())
    finally:
        torch.set_num_threads(before)
    assert "aten::mkldnn_convolution" in names
    assert "aten::convolution_backward" in names
    assert not names & {"aten::mm", "aten::addmm", "aten::_slow_conv2d_forward", "aten::thnn_conv2d"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
def test_what_onednn_does_not_take_is_torchs(monkeypatch):
    monkeypatch.setattr(dense, "_mkl_is_narrow", lambda: True)
    monkeypatch.setattr(dense, "_convolved", None)  # calling it is an error
    x, weight, bias = (t.detach() for t in random((640, 256), (512, 256), (512,)))
    wanted = F.linear(x, weight, bias)
    assert torch.equal(linear(x, weight, bias, "torch"), wanted)
    doubles = [t.double() for t in (x, weight, bias)]
    assert torch.equal(linear(*doubles), F.linear(*doubles))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert torch.equal(linear(x[:100], weight, bias), F.linear(x[:100], weight, bias))  # not worth it
    assert torch.equal(linear(x[:, None, :][:0], weight, bias), wanted[:, None, :][:0])
    many = [torch.func.vmap(function, (0, None, None))(x[None], weight, bias) for function in (linear, F.linear)]
    assert torch.equal(*many)
    assert linear(x.to("meta"), weight.to("meta"), None).shape == (640, 512)
    for other in (torch.ones(1), torch.ones(()), torch.ones(1, 512), torch.ones(640, 512)):  # biases that are spread
        assert torch.equal(linear(x, weight, other), F.linear(x, weight, other))
    assert torch.equal(linear(x, weight.to_sparse(), None), F.linear(x, weight.to_sparse(), None))
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    large = torch.randn(4200, 1000)  # words of a decoder, of which no cache holds the weight
    assert torch.equal(linear(large[:511], large, None), F.linear(large[:511], large, None))
    traced = torch.jit.trace(lambda x: linear(x, weight, bias), x, check_trace=False)
    assert torch.equal(traced(x[:300]), F.linear(x[:300], weight, bias))
    with pytest.raises(ValueError, match="kernel: expected one of"):
        linear(x, weight, bias, "fast")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        linear(x[:, :255].contiguous(), weight, bias)


def test_torch_compile_chooses_by_itself(monkeypatch):
    monkeypatch.setattr(dense, "_mkl_is_narrow", lambda: True)
    layer, x = DenseLinear(256, 512), torch.randn(640, 256)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("maker", "instructions", "library"),
    [("AuthenticAMD", "AVX512", "oneDNN"), ("AuthenticAMD", "AVX2", "torch's"), ("GenuineIntel", "AVX512", "torch's")],
)
def test_it_is_onednn_where_mkl_leaves_vectors_half_empty(maker, instructions, library, monkeypatch):
    monkeypatch.setattr(dense, "vendor", lambda: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    dense._mkl_is_narrow.cache_clear()
    try:
        assert dense.library() == library
    finally:
        dense._mkl_is_narrow.cache_clear()


def test_the_processor_tells_its_maker():
    if shutil.which("lscpu") is None:
        pytest.skip("no lscpu")
    found = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    if "Vendor ID:" not in found:
        pytest.skip("lscpu does not tell")
    assert processor.vendor()
    assert f"Vendor ID: {processor.vendor()}" in " ".join(found.split())


def test_its_layers_can_be_made_sparse():
    model = torch.nn.Sequential(DenseLinear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    assert list(sparsify(model, 16, 0.5)) == ["0", "2"]
