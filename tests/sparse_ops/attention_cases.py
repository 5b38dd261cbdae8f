"""Problems for the native attention, their float64 results, and what rounding may do to those."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparse_ops import native_attention
from sparse_ops.random_bits import KEYS, kept

BATCH, HEADS = 3, 2
LENGTHS, WIDTHS = (7, 64, 128, 130), (32, 64, 80)
UNIT = 2.0**-24
EXP = 16  # units that an exponential may be off by for its own roundings: ten, and its polynomial's 1.9e-9


def _gamma(n: float) -> float:
    return n * UNIT / (1 - n * UNIT)


class Case:
    """One problem. Of its sequences the first sees some tokens, the second none, the third all."""

    def __init__(self, length: int, width: int, dropout: float, generator: torch.Generator) -> None:
        size = HEADS * width
        self.qkv = torch.randn(BATCH, length, 3 * size, generator=generator)
        self.dout = torch.randn(BATCH, length, size, generator=generator)
        self.seen = torch.rand(BATCH, length, generator=generator) < 0.7
        self.seen[0, 0], self.seen[1], self.seen[2] = True, False, True
        self.dropout, self.key = dropout, int(torch.randint(KEYS - 1, (), generator=generator))
        self.length, self.width = length, width

    def results(self) -> tuple[Tensor, Tensor]:
        """The result and the gradient of qkv."""
        out, rows = native_attention.forward(self.qkv, self.seen, HEADS, self.dropout, self.key)
        return out, native_attention.gradient(self.dout, self.qkv, self.seen, rows, self.dropout, self.key)

    def heads(self, tensor: Tensor) -> Tensor:
        """[B, S, parts * H] -> [parts, B, N, S, D], in float64."""
        batch, length, size = tensor.shape
        parts = size // (HEADS * self.width)
        return tensor.double().view(batch, length, parts, HEADS, self.width).permute(2, 0, 3, 1, 4)

    def check(self, results: tuple[Tensor, Tensor]) -> None:
        """Against the formulas written out, each step's error carried on to the next to first order.

        A sum of n products of a and b is off by gamma_n sum |a b| (Higham 2002, 3.1), in any order. A probability is
        off by `relative` of itself: twice what its row's scores may be off by, once for itself and once for the sum;
        as much again as their distance to the largest is rounded; the exponential; and the sum of S of them.
        """
        (q, k, v), (dout,) = self.heads(self.qkv), self.heads(self.dout)
        scale, length = 1 / math.sqrt(self.width), self.length
        seen = self.seen[:, None, None, :]
        mask = kept((BATCH, HEADS, length, length), self.dropout, self.key).double()
        scores = (q @ k.mT * scale).masked_fill(~seen, -math.inf)
        p = torch.softmax(scores, -1).nan_to_num(0.0)
        dp = mask * (dout @ v.mT)
        mean = (p * dp).sum(-1, keepdim=True)
        ds = p * (dp - mean)

        scores_error = (_gamma(self.width + 3) * scale * (q.abs() @ k.abs().mT)).masked_fill(~seen, 0.0)
        finite = scores.masked_fill(~seen, 0.0)
        spread = finite.amax(-1, keepdim=True) - finite.amin(-1, keepdim=True)
        relative = 2 * scores_error.amax(-1, keepdim=True) + UNIT * (2 * spread + 2 * EXP) + _gamma(length + 3)
        sums = _gamma(length + 3)
        dp_error = mask * _gamma(self.width + 3) * (dout.abs() @ v.abs().mT)
        mean_error = ((relative + sums) * p * dp.abs() + p * dp_error).sum(-1, keepdim=True)
        ds_error = p * (relative * (dp - mean).abs() + dp_error + mean_error + 4 * UNIT * (dp.abs() + mean.abs()))

        expected = (
            ("out", results[0], (mask * p) @ v, (relative + sums) * ((mask * p) @ v.abs())),
            ("dq", 0, scale * ds @ k, scale * (ds_error + sums * ds.abs()) @ k.abs()),
            ("dk", 1, scale * ds.mT @ q, scale * (ds_error + sums * ds.abs()).mT @ q.abs()),
            ("dv", 2, (mask * p).mT @ dout, ((relative + sums) * mask * p).mT @ dout.abs()),
        )
        for name, found, exact, bound in expected:
            got = self.heads(results[1])[found] if isinstance(found, int) else self.heads(found)[0]
            excess = (got - exact).abs() - bound * (1 + 2.0**-10) - 2.0**-100
            assert bool((excess <= 0).all()), f"{name}: error exceeds its bound by {float(excess.max()):.3g}"


def check_all(length: int, width: int, seed: int) -> None:
    """With and without dropout."""
    generator = torch.Generator().manual_seed(seed)
    for dropout in (0.0, 0.1):
        case = Case(length, width, dropout, generator)
        case.check(case.results())
