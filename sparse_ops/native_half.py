"""The native kernels behind sparse_ops.half; compiled with sparse_ops.native's and found as those are."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparse_ops import native
from sparse_ops.native import Call
from sparse_ops.random_bits import RandomKey


class _HalfKey(Call):
    _fields_ = (("random", RandomKey), ("stochastic", ctypes.c_bool))


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


def round_to_half(x: Tensor, key: int | None, place: int) -> Tensor:
    """See sparse_ops.half.round_to_half; x is contiguous."""
    y = torch.empty_like(x)
    call = _HalfRoundCall(
        x=x.data_ptr(), y=y.data_ptr(), count=x.numel(), place=place, key=_key(key), **native.threads_and_level()
    )
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
    a_base, b_base, first, count = jobs
    rows, columns, a_row = sizes
    c = torch.empty(a_base.numel(), rows, columns)
    call = _HalfProductsCall(
        a=a.data_ptr(),
        b=b.data_ptr(),
        c=c.data_ptr(),
        a_base=a_base.data_ptr(),
        b_base=b_base.data_ptr(),
        first=first.data_ptr(),
        count=count.data_ptr(),
        a_step=steps[0].data_ptr(),
        b_step=steps[1].data_ptr(),
        jobs=a_base.numel(),
        rows=rows,
        columns=columns,
        a_row=a_row,
        key=_key(key),
        **native.threads_and_level(),
        rounded=rounded,
    )
    native.run("sparse_ops_half_products", call)
    return c


def _key(key: int | None) -> _HalfKey:
    return _HalfKey(random=RandomKey.of(key or 0), stochastic=key is not None)
