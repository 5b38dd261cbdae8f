"""FP16.16 as an IPU computes it, on a CPU: rounding to half, and products whose running sums are rounded.

An IPU's matrix unit adds up 16 products in float32, then rounds the running sum to the type of its partials. Values of
halves are kept in float32 here. Rounding is to nearest, or stochastic: up with the probability that makes it unbiased.
Its random bits follow from a key and an element's place alone, so that the native kernel (native_half.py) and the plain
torch of this module, which is used where there is no compiler, round alike.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_ops import native, native_half
from sparse_ops.random_bits import random_bits

PARTIAL_WIDTH = 16  # products between roundings
_CUT_OFF = 1 << 13  # a half has 13 bits of mantissa fewer than a float32
_SMALL = 2.0**-14  # below it, halves have a fixed step of 2^-24


def round_to_half(x: Tensor, key: int | None, place: int) -> Tensor:
    """float32 of any shape -> the values of halves, float32, contiguous; beyond the largest half infinite.

    key: 64 bits for stochastic rounding; None: to nearest, ties to even. place: number of the first element, so that
    parts of one array can be rounded as the whole would be. Raises ValueError for another dtype, or off the CPU.
    """
    _check(x)
    x = native.contiguous(x)
    if native.available():
        return native_half.round_to_half(x, torch.empty_like(x), key, place)
    if key is None:
        return x.half().float()
    draw = _draw(place + torch.arange(x.numel()), key).view(x.shape)
    normal = ((x.view(torch.int32) + draw) & -_CUT_OFF).view(torch.float32)
    shift = (draw.float() / _CUT_OFF + (0.5 / _CUT_OFF - 0.5)) * 2.0**-24
    small = (x + shift + 0.75) - 0.75  # sums in [0.5, 1) have a step of 2^-24
    return torch.where(torch.isnan(x), x, torch.where(x.abs() < _SMALL, small, normal)).half().float()


def round_in_place(x: Tensor, key: int | None) -> Tensor:
    """As round_to_half with place 0; what is contiguous is written over and returned.

    Raises ValueError for another dtype than float32, or off the CPU.
    """
    _check(x)
    x = x.detach()
    if native.available():
        x = native.contiguous(x)
        return native_half.round_to_half(x, x, key, 0)
    return x.half().float() if key is None else round_to_half(x, key, 0)


def _check(x: Tensor) -> None:
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(f"half: expected float32 on the CPU, found {x.dtype} on {x.device}")


def _draw(place: Tensor, key: int) -> Tensor:
    """13 random bits for each place, int32."""
    return (random_bits(place, key) >> 19).int()


class Products(NamedTuple):
    """Many small products by one addressing; all fields but sizes int64 on the CPU.

    Job j is a matrix [rows, columns]; in row m and column n it is the sum over terms[j] numbers k, from first[j] on,
    of a[a_base[j] + m * a_row + a_step[k]] * b[b_base[j] + b_step[k] + n], a and b flat.
    """

    a_base: Tensor  # [jobs]
    b_base: Tensor  # [jobs]
    first: Tensor  # [jobs]
    terms: Tensor  # [jobs]
    a_step: Tensor  # [terms of all jobs]
    b_step: Tensor  # [terms of all jobs]
    rows: int
    columns: int
    a_row: int

    def of(self, a: Tensor, b: Tensor, key: int | None, rounded: bool) -> Tensor:
        """float32 a and b -> float32 [jobs, rows, columns].

        rounded: the running sum is rounded (see round_to_half) before every 16 terms but the first; the last sum is
        not. Place of a sum: its number in the result, and as many more for each rounding before as there are sums.
        Raises ValueError for other dtypes, or off the CPU.
        """
        _check(a)
        _check(b)
        a, b = native.contiguous(a), native.contiguous(b)
        if native.available():
            return native_half.products(a, b, self[:4], self[4:6], self[6:], key, rounded)
        total = torch.zeros(self.a_base.numel(), self.rows, self.columns)
        for i in range(-(-int(self.terms.max()) // PARTIAL_WIDTH)):
            if i and rounded:
                more = (self.terms > i * PARTIAL_WIDTH)[:, None, None]
                total = torch.where(more, round_to_half(total, key, i * total.numel()), total)
            total += self._partial(a.flatten(), b.flatten(), i * PARTIAL_WIDTH)
        return total

    def _partial(self, a: Tensor, b: Tensor, skipped: int) -> Tensor:
        """The sums of each job's next 16 terms."""
        term = skipped + torch.arange(PARTIAL_WIDTH)
        there = term < self.terms[:, None]
        k = torch.where(there, self.first[:, None] + term, torch.zeros_like(term))  # [jobs, 16]
        at_a = (self.a_base[:, None] + self.a_step[k])[:, None] + (torch.arange(self.rows) * self.a_row)[:, None]
        at_b = (self.b_base[:, None] + self.b_step[k])[..., None] + torch.arange(self.columns)
        there = there.unsqueeze(1)  # what lies elsewhere may not be finite
        factors = torch.where(there, a[torch.where(there, at_a, torch.zeros_like(at_a))], torch.zeros(()))
        columns = there.transpose(1, 2)
        return factors @ torch.where(columns, b[torch.where(columns, at_b, torch.zeros_like(at_b))], torch.zeros(()))


def dense(a: Tensor, b: Tensor, key: int | None, rounded: bool) -> Tensor:
    """a [batch, rows, terms] times b [batch, terms, columns] -> float32 [batch, rows, columns]; see Products.of.

    Of any floating dtypes. A transposed `a` is read as it lies. Raises ValueError for shapes that do not multiply.
    """
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise ValueError(f"half: expected [N, R, T] times [N, T, C], found {list(a.shape)} times {list(b.shape)}")
    transposed = a.stride(-2) == 1 and a.stride(-1) >= a.shape[-2] and a.transpose(-2, -1).is_contiguous()
    sizes = _dense(a.shape[0], a.shape[1], a.shape[2], b.shape[2], transposed)
    a = a.transpose(-2, -1) if transposed else a
    a, b = (x.to(torch.float32, memory_format=torch.contiguous_format) for x in (a, b))
    return sizes.of(a, b, key, rounded)


@lru_cache(maxsize=256)
def _dense(batch: int, rows: int, terms: int, columns: int, transposed: bool) -> Products:
    """transposed: a is laid out [batch, terms, rows]."""
    number, k = torch.arange(batch), torch.arange(terms)
    first, count = torch.zeros_like(number), torch.full_like(number, terms)
    a_row, a_step = (1, k * rows) if transposed else (terms, k)
    return Products(
        number * rows * terms, number * terms * columns, first, count, a_step, k * columns, rows, columns, a_row
    )
