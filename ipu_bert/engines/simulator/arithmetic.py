"""FP16.16 on a CPU: 16-bit tensors, every operation rounded once, products with 16-bit partial sums 16 wide.

An IPU's matrix unit adds up 16 products exactly enough, then rounds the running sum to the partials' type. This mode
does the same below autograd, so forward and backward of any model round as they would there.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

PARTIAL_WIDTH = 16
_CUT_OFF = 1 << 13
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
    """float32 -> float16 of any shape: to nearest, or stochastic with a generator of its own where a seed is given."""

    def __init__(self, stochastic_seed: int | None = None) -> None:
        self._generator = None if stochastic_seed is None else torch.Generator().manual_seed(stochastic_seed)

    def __call__(self, x: Tensor) -> Tensor:
        if self._generator is None:
            return x.to(torch.float16)
        # A half has 13 bits of mantissa fewer: add a random part of what is cut off, then cut. Below 2^-14 halves have
        # a fixed step of 2^-24 instead.
        draw = torch.randint(_CUT_OFF, x.shape, dtype=torch.int32, generator=self._generator)
        rounded = ((x.contiguous().view(torch.int32) + draw) & -_CUT_OFF).view(torch.float32)
        small = torch.floor(x * 2.0**24 + draw / _CUT_OFF) * 2.0**-24
        rounded = torch.where(x.abs() < 2.0**-14, small, rounded)
        return torch.where(torch.isfinite(x), rounded, x).to(torch.float16)

    @property
    def state(self) -> list[int]:
        """Bytes of the generator's state; empty where there is none."""
        return [] if self._generator is None else self._generator.get_state().tolist()

    @state.setter
    def state(self, state: list[int]) -> None:
        if self._generator is not None:
            self._generator.set_state(torch.tensor(state, dtype=torch.uint8))

    def keep_float(self, x: Tensor) -> Tensor:
        """The rounded values, still stored as float32."""
        return self(x).float()


def partial_sums(products: Callable[[int], Tensor], count: int, rounding: Rounding, half_partials: bool) -> Tensor:
    """Sum of products(0) ... products(count - 1), each a 16-wide partial sum in float32, all of one shape; float32.

    half_partials: round the running sum before each is added.
    """
    total = products(0)
    for i in range(1, count):
        total = (rounding.keep_float(total) if half_partials else total) + products(i)
    return total


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
        wide_args, wide_kwargs = tree_map(_widen, (args, kwargs))
        result = func(*wide_args, **wide_kwargs)
        if kwargs.get("dtype") is not None and kwargs["dtype"] != torch.float16:
            return result
        if func is _aten.native_layer_norm.default:  # mean and 1 / std stay float32 inside the operation
            return self._narrow(result[0]), result[1], result[2]
        stays_float = any(x.dtype == torch.float32 and x.dim() > 0 for x in tensors)
        if stays_float and func is not _aten.native_layer_norm_backward.default:
            return result
        return tree_map(self._narrow, result)

    def _narrow(self, x: Any) -> Any:
        return self._round(x) if isinstance(x, Tensor) and x.dtype == torch.float32 else x

    def _product(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        bias, (a, b) = (args[0], args[1:3]) if len(args) == 3 else (None, args)
        a, b = a.float(), b.float()
        width = a.shape[-1]

        def part(i: int) -> Tensor:
            cut = slice(i * PARTIAL_WIDTH, (i + 1) * PARTIAL_WIDTH)
            return a[..., cut] @ b[..., cut, :]

        total = partial_sums(part, max(1, -(-width // PARTIAL_WIDTH)), self._round, self._half_partials)
        total = kwargs.get("alpha", 1) * total
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
    if isinstance(x, Tensor) and x.dtype == torch.float16:
        return x.float()
    return torch.float32 if x is torch.float16 else x


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
    wide_args, wide_kwargs = tree_map(_widen, (args, kwargs))
    result = func(*wide_args, **wide_kwargs)
    if _aliases(func):  # an in-place operation that this torch has no 16-bit version of
        args[0].copy_(wide_args[0])
        return args[0]
    return tree_map(lambda x: x.half() if isinstance(x, Tensor) and x.dtype == torch.float32 else x, result)
