"""Problems for native kernels: awkward patterns, their float64 results, and what rounding may do to those."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ops import native
from sparse_ops.pattern import BlockPattern
from sparse_ops.variants import PRODUCTS

DTYPES = (torch.float32, torch.bfloat16)
TOKENS = (1, 7, 129)
UNIT = 2.0**-24


def shuffled(pattern: BlockPattern, generator: torch.Generator) -> BlockPattern:
    order = torch.randperm(pattern.nnz, generator=generator)
    return BlockPattern(pattern.shape, pattern.block_size, pattern.rows[order], pattern.cols[order], pattern.segments)


def patterns(b: int, generator: torch.Generator) -> list[BlockPattern]:
    """Sparse with shuffled slots; empty block rows and columns; one block; full; several groups of rows; several
    chunks of features, in rows longer than those of which inputs are read in place, on either side."""
    sparse = BlockPattern.random((9 * b, 7 * b), b, 0.6, generator)
    rows, cols = torch.tensor([1, 1, 5], dtype=torch.int32), torch.tensor([6, 2, 2], dtype=torch.int32)
    one = torch.tensor([2], dtype=torch.int32)
    return [
        shuffled(sparse, generator),
        BlockPattern((8 * b, 9 * b), b, rows, cols),
        BlockPattern((3 * b, 4 * b), b, one, one + 1),
        shuffled(BlockPattern.random((3 * b, 5 * b), b, 0.0, generator), generator),
        shuffled(BlockPattern.random((112, 272), b, 0.8, generator), generator),
        shuffled(BlockPattern.random((272, 80), b, 0.8, generator), generator),
        shuffled(BlockPattern.random((48, 2064), b, 0.9, generator), generator),
        shuffled(BlockPattern.random((2064, 48), b, 0.9, generator), generator),
    ]


class Case:
    """One problem, its float64 results, and the sums of absolute products that bound the rounding of any order."""

    def __init__(self, pattern: BlockPattern, tokens: int, dtype: torch.dtype, generator: torch.Generator) -> None:
        (out, inp), b = pattern.shape, pattern.block_size

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        self.index, self.block, self.dtype, self.tokens = pattern.index(), b, dtype, tokens
        self.x, self.dy, self.values = normal(tokens, inp), normal(tokens, out), normal(pattern.nnz, b, b)
        self.bias = normal(out)
        self.rows, self.cols = pattern.rows.long(), pattern.cols.long()
        x, dy, bias = self.x.double(), self.dy.double(), self.bias.double()
        dense = torch.zeros(out // b, inp // b, b, b, dtype=torch.float64)
        dense[self.rows, self.cols] = self.values.double()
        w = dense.transpose(1, 2).reshape(out, inp)
        self.exact = (x @ w.t() + bias, dy @ w, self.at_blocks(dy.t() @ x), dy.sum(0))
        self.size = (x.abs() @ w.abs().t() + bias.abs(), dy.abs() @ w.abs(), self.at_blocks(dy.abs().t() @ x.abs()))
        self.size += (dy.abs().sum(0),)
        self.terms = (inp + 1, out, tokens, tokens)

    def at_blocks(self, gradient: Tensor) -> Tensor:
        b = self.block
        blocks = gradient.reshape(gradient.shape[0] // b, b, gradient.shape[1] // b, b).transpose(1, 2)
        return blocks[self.rows, self.cols]

    def results(self) -> tuple[Tensor, ...]:
        return (
            native.forward(self.x, self.values, self.index, self.bias),
            native.grad_input(self.dy, self.values, self.index),
            *native.grad_values(self.x, self.dy, self.index, self.block, with_bias=True),
        )

    def gelu(self) -> tuple[Tensor, Tensor]:
        return native.forward_gelu(self.x, self.values, self.index, self.bias, True)

    def check(self, results: tuple[Tensor, ...]) -> None:
        """|error| <= gamma_n sum |a b|, gamma_n = n u / (1 - n u) (Higham 2002, 3.1), and half a unit for the store."""
        for name, got, exact, size, n in zip(
            ("forward", "grad_input", "grad_values", "grad_bias"), results, self.exact, self.size, self.terms
        ):
            self._check(name, got, exact, _gamma(n) * size)

    def check_gelu(self, y: Tensor, slope: Tensor) -> None:
        """GELU changes at most 1.13 times as fast as its input and its slope 0.8 times (2 phi(0)).

        Phi is off by 7.5e-8 (Abramowitz and Stegun, 7.1.26), six roundings of numbers below 0.75, and what a relative
        error of z 2^-23 in exp(-z) does to it, at most a fifth of that; x phi(x), below 0.25, likewise.
        """
        before = self.exact[0].clone().requires_grad_()
        exact = F.gelu(before)
        (exact_slope,) = torch.autograd.grad(exact.sum(), before)
        error = _gamma(self.terms[0]) * self.size[0]
        phi = 7.5e-8 + 6 * 0.75 * UNIT + 0.4 * UNIT
        self._check("gelu", y, exact.detach(), 1.13 * error + (before.detach().abs() + error) * (phi + UNIT))
        self._check("slope", slope, exact_slope, 0.8 * error + phi + 3 * UNIT)

    def _check(self, name: str, got: Tensor, exact: Tensor, bound: Tensor) -> None:
        assert got.dtype == self.dtype, name
        assert got.shape == exact.shape, name
        if self.dtype == torch.bfloat16:
            bound = bound + (exact.abs() + bound) * 2.0**-8
        excess = (got.double() - exact).abs() - bound
        assert bool((excess <= 0).all()), f"{name}: error exceeds its bound by {float(excess.max()):.3g}"


def check_all(b: int, dtype: torch.dtype, seed: int) -> None:
    """Every product, with and without GELU, on every pattern and number of tokens."""
    generator = torch.Generator().manual_seed(seed)
    for pattern in patterns(b, generator):
        for tokens in TOKENS:
            case = Case(pattern, tokens, dtype, generator)
            case.check(case.results())
            case.check_gelu(*case.gelu())


def check_variants(b: int, dtype: torch.dtype, seed: int) -> None:
    """Every way of every product gives the bits of the first, whatever stands beside it."""
    generator, choices = torch.Generator().manual_seed(seed), native.choices()
    for pattern in patterns(b, generator):
        for tokens in (5, 200):  # dW: four panels and some more
            case = Case(pattern, tokens, dtype, generator)
            works = [native.work(product, pattern.shape, b, pattern.nnz, tokens, dtype) for product in PRODUCTS]
            ways = [choices.names(work) for work in works]
            first: tuple[Tensor, ...] | None = None
            for number in range(max(map(len, ways))):
                for work, names in zip(works, ways):
                    choices.use(work, number % len(names))
                got = (*case.results(), *case.gelu())
                first = first or got
                for name, one, other in zip(("Y", "dX", "dW", "bias", "gelu", "slope"), first, got):
                    assert torch.equal(one, other), f"{name}, way {number} of {ways}"


def _gamma(n: int) -> float:
    return n * UNIT / (1 - n * UNIT)
