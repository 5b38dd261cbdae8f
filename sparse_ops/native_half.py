"""The native kernels behind sparse_ops.half; compiled with sparse_ops.native's and found as those are."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sparse_ops import native
from sparse_ops.native import Call
from sparse_ops.random_bits import RandomKey


class _HalfKey(Call):
    _fields_ = (("random", RandomKey), ("stochastic", ctypes.c_bool))


_NEAREST = _HalfKey(random=RandomKey.of(0), stochastic=False)
_OF_BOTH = (
    ("key", _HalfKey),
    ("parallel", ctypes.c_void_p),
    ("threads", ctypes.c_int32),
    ("level", ctypes.c_int32),
)


# The structures of csrc/cpu/api.hpp, which says what their fields mean.
class _HalfRoundCall(Call):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y")),
        *((name, ctypes.c_int64) for name in ("count", "place")),
        *_OF_BOTH,
    )


class _HalfProductsCall(Call):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "c", "a_base", "b_base", "first", "count")),
        *((name, ctypes.c_void_p) for name in ("a_step", "b_step")),
        *((name, ctypes.c_int64) for name in ("jobs", "rows", "columns", "a_row")),
        *_OF_BOTH,
        ("rounded", ctypes.c_bool),
    )


def round_to_half(x: Tensor, y: Tensor, key: int | None, place: int) -> Tensor:
    """See sparse_ops.half.round_to_half; x is contiguous, and so is y, which is written and may be x."""
    call = _new(_HalfRoundCall)
    call.x, call.y, call.count, call.place, call.key = x.data_ptr(), y.data_ptr(), x.numel(), place, _key(key)
    native.run("sparse_ops_half_round", call)
    return y


def products(
    a: Tensor,
    b: Tensor,
    jobs: tuple[Tensor, Tensor, Tensor, Tensor],
    steps: tuple[Tensor, Tensor],
    sizes: tuple[int, int, int],
    key: int | None,
    rounded: bool,
) -> Tensor:
    """See sparse_ops.half.Products; jobs, steps and sizes are its fields, all contiguous."""
    a_base, *_ = jobs
    rows, columns, a_row = sizes
    c = torch.empty(a_base.numel(), rows, columns)
    call = _new(_HalfProductsCall)
    call.a, call.b, call.c = a.data_ptr(), b.data_ptr(), c.data_ptr()
    call.a_base, call.b_base, call.first, call.count = (x.data_ptr() for x in jobs)
    call.a_step, call.b_step = (x.data_ptr() for x in steps)
    call.jobs, call.rows, call.columns, call.a_row = a_base.numel(), rows, columns, a_row
    call.key, call.rounded = _key(key), rounded
    native.run("sparse_ops_half_products", call)
    return c


def _new(kind: type[Call]) -> Any:
    return kind.from_buffer_copy(_ready(kind, *native.threads_and_level().values()))


@lru_cache(maxsize=None)
def _ready(kind: type[Call], parallel: int | None, threads: int | None, level: int | None) -> Any:
    """A structure to copy, with zeros but for how the call is carried out: calls are many and short."""
    zero = {name: _NEAREST if name == "key" else 0 for name in kind._names}
    return kind(**{**zero, "parallel": parallel, "threads": threads, "level": level})


def _key(key: int | None) -> _HalfKey:
    found = _HalfKey.from_buffer_copy(_NEAREST)
    if key is not None:
        found.random.low, found.random.high, found.stochastic = key & 0xFFFFFFFF, key >> 32, True
    return found
