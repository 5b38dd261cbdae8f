"""What the benchmark compares: our kernels and every other way to multiply with a sparse weight that is installed.

Each implementation is a function of a Problem and a product's name that returns a function to time, or None where it
has no such product. The timed function takes the activations as a network has them, token by token, and returns the
result as it comes; `Problem.error` knows how to read it. What is made once per pattern (an index, another format of the
weight) is not timed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from sparse_ops import dense, native
from sparse_ops.bench import peers_xsmm
from sparse_ops.pattern import BlockPattern

PRODUCTS = ("forward", "grad_input", "grad_values")
Run = Callable[[], Any]
Implementation = Callable[["Problem", str], Optional[Run]]


class Problem:
    """One weight, its pattern, and activations: x [T, in], dy [T, out], values [nnz, b, b], float32 on the CPU."""

    def __init__(self, out: int, inp: int, tokens: int, block: int, density: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        pattern = BlockPattern.random((out, inp), block, 1.0 - density, generator)
        order = torch.randperm(pattern.nnz, generator=generator)  # slots come in any order once blocks have moved
        self.pattern = BlockPattern((out, inp), block, pattern.rows[order], pattern.cols[order])
        self.index, self.block, self.tokens = self.pattern.index(), block, tokens
        self.x = torch.randn(tokens, inp, generator=generator)
        self.dy = torch.randn(tokens, out, generator=generator)
        self.values = torch.randn(pattern.nnz, block, block, generator=generator)
        self.dense = torch.zeros(out // block, inp // block, block, block)
        self.dense[self._rows, self._cols] = self.values
        self.dense = self.dense.transpose(1, 2).reshape(out, inp)
        self.mask = (self.dense != 0).float()

    @property
    def _rows(self) -> Tensor:
        return self.pattern.rows.long()

    @property
    def _cols(self) -> Tensor:
        return self.pattern.cols.long()

    def error(self, product: str, result: Any, dense: bool) -> float:
        """Largest error over the size of a typical entry, against float64, at a sample of 16 tokens or 64 blocks.

        Activations come as [T, n]; gradients as [nnz, b, b] in slot order, or all of [out, in] where `dense`.
        """
        if product != "grad_values":
            source, weight = (self.x, self.dense.t()) if product == "forward" else (self.dy, self.dense)
            some = torch.linspace(0, self.tokens - 1, min(16, self.tokens)).long()
            exact, got = source[some].double() @ weight.double(), result[some].double()
        else:
            b, some = self.block, torch.arange(0, self.pattern.nnz, max(1, self.pattern.nnz // 64))
            outputs = (self._rows[some, None] * b + torch.arange(b)).unsqueeze(2).expand(-1, b, b)
            inputs = (self._cols[some, None] * b + torch.arange(b)).unsqueeze(1).expand(-1, b, b)
            dy, x = self.dy[:, outputs[:, :, 0]].double(), self.x[:, inputs[:, 0]].double()
            exact = dy.permute(1, 2, 0) @ x.transpose(0, 1)
            got = (result[outputs, inputs] if dense else result[some]).double()
        return float((got - exact).abs().max() / exact.pow(2).mean().sqrt())


def _ours(dtype: torch.dtype) -> Implementation:
    def implementation(problem: Problem, product: str) -> Run | None:
        x, dy, values = problem.x.to(dtype), problem.dy.to(dtype), problem.values.to(dtype)
        index, block = problem.index, problem.block
        return {
            "forward": lambda: native.forward(x, values, index, None),
            "grad_input": lambda: native.grad_input(dy, values, index),
            "grad_values": lambda: native.grad_values(x, dy, index, block)[0],
        }[product]

    return implementation


def _dense(dtype: torch.dtype) -> Implementation:
    def implementation(problem: Problem, product: str) -> Run | None:
        x, dy, w = problem.x.to(dtype), problem.dy.to(dtype), problem.dense.to(dtype)
        return {
            "forward": lambda: x @ w.t(),
            "grad_input": lambda: dy @ w,
            "grad_values": lambda: dy.t() @ x,
        }[product]

    return implementation


def _fastest_dense(problem: Problem, product: str) -> Run | None:
    x, dy, w = problem.x, problem.dy, problem.dense
    return {
        "forward": lambda: dense.product(x, w),
        "grad_input": lambda: dense.product(dy, w.t()),
        "grad_values": lambda: dense.gradient(dy, x),
    }[product]


def _torch_dense(problem: Problem, product: str) -> Run | None:
    """Where "dense" is another library's."""
    return None if dense.library() == dense.TORCH else _dense(torch.float32)(problem, product)


def _masked(problem: Problem, product: str) -> Run | None:
    x, dy, w, mask = problem.x, problem.dy, problem.dense, problem.mask
    return {
        "forward": lambda: x @ (w * mask).t(),
        "grad_input": lambda: dy @ (w * mask),
        "grad_values": lambda: (dy.t() @ x) * mask,
    }[product]


def _torch_bsr(problem: Problem, product: str) -> Run | None:
    if problem.block == 1 or product == "grad_values":
        return None  # sampled_addmm refuses BSR
    forward = product == "forward"
    weight = problem.dense if forward else problem.dense.t().contiguous()  # dY @ BSR is not implemented
    bsr = weight.to_sparse_bsr((problem.block, problem.block))
    activations = (problem.x if forward else problem.dy).t()
    return lambda: (bsr @ activations).t()  # linear(activations, bsr) is slower by another factor of ten


def _torch_csr(problem: Problem, product: str) -> Run | None:
    if problem.block > 1:
        return None
    if product == "grad_values":
        pattern = problem.mask.to_sparse_csr()
        places, dy, x = _csr_places(problem), problem.dy.t(), problem.x
        return lambda: _Reordered(torch.sparse.sampled_addmm(pattern, dy, x, beta=0.0).values(), places)
    forward = product == "forward"
    csr = (problem.dense if forward else problem.dense.t().contiguous()).to_sparse_csr()
    activations = (problem.x if forward else problem.dy).t()
    return lambda: (csr @ activations).t()


def _csr_places(problem: Problem) -> Tensor:
    """Where CSR keeps each slot's value; int64 [nnz], for 1x1 blocks."""
    return torch.argsort(problem.index.row_slots)


class _Reordered:
    """Values in another order, put into slot order only when looked at."""

    def __init__(self, values: Tensor, places: Tensor) -> None:
        self.values, self.places = values, places

    def __getitem__(self, some: Tensor) -> Tensor:
        return self.values[self.places[some]].reshape(-1, 1, 1)


def _csr_or_bsr(problem: Problem, product: str) -> Any:
    """The matrix that is multiplied with [n, T] activations, in scipy's format. ImportError without scipy."""
    import scipy.sparse

    weight = problem.dense if product == "forward" else problem.dense.t().contiguous()
    csr = scipy.sparse.csr_matrix(weight.numpy())
    return csr.tobsr((problem.block, problem.block)) if problem.block > 1 else csr


def _scipy(problem: Problem, product: str) -> Run | None:
    if product == "grad_values":
        return None
    weight = _csr_or_bsr(problem, product)
    activations = (problem.x if product == "forward" else problem.dy).numpy()
    return lambda: torch.from_numpy(weight @ activations.T).t()


def _mkl(problem: Problem, product: str) -> Run | None:
    if product == "grad_values":
        return None
    for library in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):  # where pip puts it and no loader looks
        os.environ.setdefault("MKL_RT", str(library))
    # Otherwise MKL brings Intel's OpenMP, whose threads go on spinning through the turn of whoever comes next.
    os.environ.setdefault("MKL_THREADING_LAYER", "GNU")
    from sparse_dot_mkl import dot_product_mkl

    weight = _csr_or_bsr(problem, product)
    activations = problem.x if product == "forward" else problem.dy
    # [n, T] in memory order: with the transposed view MKL takes as long or up to three times longer.
    return lambda: torch.from_numpy(dot_product_mkl(weight, activations.t().contiguous().numpy())).t()


def _sparseprop(problem: Problem, product: str) -> Run | None:
    if problem.block > 1:
        return None
    from sparseprop.modules import SparseLinear

    layer = SparseLinear(problem.dense)
    return _of_a_layer(layer, layer.W_val, _csr_places(problem), problem, product)


def _sparselab(problem: Problem, product: str) -> Run | None:
    """Its layer as it is, which transposes activations; its threads are those of torch's OpenMP."""
    if problem.block > 1:
        return None
    from sparselab import PaddedCSR, SparseLinear
    from sparselab.ops import _clear_transpose_cache

    _clear_transpose_cache()  # it goes by id(), and a new weight may have that of one that is gone
    csr, (out, inp) = PaddedCSR.from_dense(problem.dense), problem.dense.shape
    layer = SparseLinear(inp, out, bias=False)
    layer._csr, layer._values = csr, torch.nn.Parameter(torch.from_numpy(csr.values))
    filled = torch.from_numpy(csr.col_indices >= 0).nonzero().flatten()  # rows have room for more
    return _of_a_layer(layer, layer._values, filled[_csr_places(problem)], problem, product)


def _of_a_layer(
    layer: Callable[[Tensor], Tensor], values: Tensor, places: Tensor, problem: Problem, product: str
) -> Run:
    """A peer's torch module, whose backward pass makes both gradients. places: of each slot in `values`."""
    if product == "forward":
        return lambda: layer(problem.x).detach()
    x = problem.x.clone().requires_grad_()
    y = layer(x)

    def backward() -> Any:
        grad_x, grad_values = torch.autograd.grad(y, (x, values), problem.dy, retain_graph=True)
        return grad_x if product == "grad_input" else _Reordered(grad_values, places)

    return backward


def _libxsmm(problem: Problem, product: str) -> Run | None:
    return peers_xsmm.prepare(product, problem.x, problem.dy, problem.values, problem.index)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "dense": _fastest_dense,
    "ours": _ours(torch.float32),
    "dense bf16": _dense(torch.bfloat16),
    "ours bf16": _ours(torch.bfloat16),
    "dense torch": _torch_dense,
    "masked dense": _masked,
    "torch BSR": _torch_bsr,
    "torch CSR": _torch_csr,
    "scipy": _scipy,
    "sparse_dot_mkl": _mkl,
    "sparseprop": _sparseprop,
    "sparselab": _sparselab,
    "libxsmm": _libxsmm,
}
OURS_AND_DENSE = ("dense", "ours", "dense bf16", "ours bf16")
ALL_OF_GRADIENT = ("dense", "dense torch", "dense bf16", "masked dense")  # their grad_values is [out, in]
BOTH_GRADIENTS = ("sparseprop", "sparselab")  # one call makes both gradients: each is given half of its time


def prepare(name: str, problem: Problem, product: str) -> Run | None:
    """The function to time, or None where this is not installed or has no such product."""
    try:
        return IMPLEMENTATIONS[name](problem, product)
    except (ImportError, NotImplementedError):
        if name in OURS_AND_DENSE:
            raise
        return None
