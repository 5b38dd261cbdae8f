"""FP16.16 on a CPU: 16-bit tensors, every operation rounded once, products with 16-bit partial sums 16 wide.

An IPU's matrix unit adds up 16 products exactly enough, then rounds the running sum to the partials' type. This mode
does the same below autograd, so forward and backward of any model round as they would there.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_ops.half import dense, round_to_half

_WORD = (1 << 64) - 1
_aten = torch.ops.aten

_MATRIX_PRODUCTS = {_aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default}
# These move or reinterpret values, or make tensors of a dtype that was asked for: nothing to round.
_EXACT = {
    _aten._to_copy.default,
    _aten.detach.default,
    _aten.clone.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.empty_like.default,
    _aten.full_like.default,
    _aten.new_zeros.default,
    _aten.new_empty.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.embedding.default,
    _aten.index_select.default,
    _aten.gather.default,
    _aten.cat.default,
    _aten.stack.default,
    _aten.where.self,
    _aten._local_scalar_dense.default,
}


class Rounding:
    """float32 -> float16 of any shape: to nearest, or stochastic where a seed is given.

    Each rounding has random bits of its own, which follow from the seed and the number of roundings before it.
    """

    def __init__(self, stochastic_seed: int | None = None) -> None:
        self._seed, self._count = stochastic_seed, 0

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(torch.float16) if self._seed is None else self.keep_float(x).to(torch.float16)

    def keep_float(self, x: Tensor) -> Tensor:
        """The rounded values, still stored as float32."""
        return round_to_half(x, self.key(), place=0)

    def key(self) -> int | None:
        """64 bits that the next rounding's random bits follow from; None where it is to nearest."""
        if self._seed is None:
            return None
        self._count += 1
        return _mixed(_mixed(self._seed) + self._count)

    @property
    def state(self) -> list[int]:
        """Seed, and number of roundings so far; empty where none is stochastic."""
        return [] if self._seed is None else [self._seed, self._count]

    @state.setter
    def state(self, state: list[int]) -> None:
        if self._seed is None or not state:
            return
        if len(state) == 2:
            self._seed, self._count = state
        else:  # before 0.2 the bytes of a torch.Generator
            self._seed, self._count = zlib.crc32(bytes(state)), 0


def _mixed(bits: int) -> int:
    """splitmix64's next number after the state `bits`."""
    bits = (bits + 0x9E3779B97F4A7C15) & _WORD
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _WORD
    return bits ^ (bits >> 31)


class HalfArithmetic(TorchDispatchMode):
    """While entered, rounds what float16 tensors go through; leaves float32 alone.

    half_partials: also round the partial sums of products.
    """

    def __init__(self, rounding: Rounding, half_partials: bool) -> None:
        super().__init__()
        self._round, self._half_partials = rounding, half_partials

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in _leaves(args) if isinstance(x, Tensor)]
        if not any(x.dtype == torch.float16 for x in tensors):
            to_half = func is _aten._to_copy.default and kwargs.get("dtype") == torch.float16
            if to_half and tensors[0].is_floating_point():
                return self._round(tensors[0].float())
            return func(*args, **kwargs)
        if func in _MATRIX_PRODUCTS and all(x.dtype == torch.float16 for x in tensors):
            return self._product(func, args, kwargs)
        if func in _EXACT or _aliases(func):
            return _native(func, args, kwargs)
        result = func(*_widen(args), **_widen(kwargs))
        if kwargs.get("dtype") is not None and kwargs["dtype"] != torch.float16:
            return result
        if func is _aten.native_layer_norm.default:  # mean and 1 / std stay float32 inside the operation
            return self._narrow(result[0]), result[1], result[2]
        stays_float = any(x.dtype == torch.float32 and x.dim() > 0 for x in tensors)
        if stays_float and func is not _aten.native_layer_norm_backward.default:
            return result
        return type(result)(map(self._narrow, result)) if isinstance(result, (tuple, list)) else self._narrow(result)

    def _narrow(self, x: Any) -> Any:
        return self._round(x) if isinstance(x, Tensor) and x.dtype == torch.float32 else x

    def _product(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        bias, (a, b) = (args[0], args[1:3]) if len(args) == 3 else (None, args)
        whole = a.dim() == 3
        total = dense(*((a, b) if whole else (a[None], b[None])), self._round.key(), self._half_partials)
        total = total if whole else total[0]
        if "alpha" in kwargs:
            total *= kwargs["alpha"]
        if bias is not None:
            total = self._round.keep_float(total) + kwargs.get("beta", 1) * bias.float()
        return self._round(total)


def _leaves(args: Any) -> Iterator[Any]:
    """Positional arguments, lists of tensors opened; operations take no tensors by keyword."""
    for x in args:
        if isinstance(x, (list, tuple)):
            yield from x
        else:
            yield x


def _widen(x: Any) -> Any:
    """float32 in place of float16, for tensors and dtypes, also within lists, tuples and keyword arguments."""
    if isinstance(x, Tensor):
        return x.float() if x.dtype == torch.float16 else x
    if isinstance(x, (list, tuple)):
        return type(x)(map(_widen, x))
    if isinstance(x, dict):
        return {key: _widen(value) for key, value in x.items()}
    return torch.float32 if x is torch.float16 else x


@lru_cache(maxsize=None)
def _aliases(func: Any) -> bool:
    """Whether the result is a view, or an argument is written: those must get the very tensors."""
    schema = func._schema
    return any(x.alias_info is not None for x in [*schema.arguments, *schema.returns])


def _native(func: Any, args: Any, kwargs: Any) -> Any:
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        if "Half" not in str(error):
            raise
    wide_args = _widen(args)
    result = func(*wide_args, **_widen(kwargs))
    if _aliases(func):  # an in-place operation that this torch has no 16-bit version of
        args[0].copy_(wide_args[0])
        return args[0]
    return result.half() if isinstance(result, Tensor) and result.dtype == torch.float32 else result
