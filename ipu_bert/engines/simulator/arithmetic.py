"""FP16.16 on a CPU: 16-bit tensors, every operation rounded once, products with 16-bit partial sums 16 wide.

An IPU's matrix unit adds up 16 products exactly enough, then rounds the running sum to the partials' type. This mode
does the same below autograd, so forward and backward of any model round as they would there.
"""

from __future__ import annotations

import zlib
from functools import lru_cache, partial
from typing import Any, Callable, Iterator, Literal, NamedTuple, Protocol, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_ops.half import dense, round_in_place, round_to_half

_WORD = (1 << 64) - 1
_aten = torch.ops.aten

MATRIX_PRODUCTS = {_aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default}
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
# Of results rounded before: rounding them again, which counts, changes no bit.
_MOVES = {_aten._unsafe_view.default, _aten.select_backward.default, _aten.slice_backward.default}


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

    def in_place(self, x: Tensor) -> Tensor:
        """As keep_float; where float32 `x` is contiguous, written over it."""
        return round_in_place(x, self.key())

    def key(self) -> int | None:
        """64 bits that the next rounding's random bits follow from; None where it is to nearest."""
        self._count += 1
        return None if self._seed is None else _mixed(_seeded(self._seed) + self._count)

    @property
    def count(self) -> int:
        """Number of roundings so far, on which the next one's random bits depend."""
        return self._count

    @count.setter
    def count(self, count: int) -> None:
        self._count = count

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


@lru_cache(maxsize=64)
def _seeded(seed: int) -> int:
    return _mixed(seed)


class Operation(NamedTuple):
    """What the device computes for one of torch's: on float32 tensors that hold the values of halves.

    run: where `rounds`, its first argument is a Rounding. narrowed: which of its float32 results are halves.
    """

    run: Callable[..., Any]
    rounds: bool
    narrowed: Literal["none", "first", "all"]


class Recorder(Protocol):
    """Takes down each operation, so that it can be run again: see tape.py."""

    def note(self, operation: Operation, args: Any, kwargs: Any, result: Any, roundings: range, func: Any) -> None:
        """One operation: its arguments and results as the model has them, and the numbers of its roundings."""

    def note_held(self, run: Callable[..., Any], args: Any, result: Any) -> None:
        """`run` of tensors as they are, whose result is no tensor."""


class HalfArithmetic(TorchDispatchMode):
    """While entered, rounds what float16 tensors go through; leaves float32 alone.

    half_partials: also round the partial sums of products.
    """

    def __init__(self, rounding: Rounding, half_partials: bool, recorder: Recorder | None) -> None:
        super().__init__()
        self._rounding, self._half_partials, self._recorder = rounding, half_partials, recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, before = kwargs or {}, self._rounding.count
        operation = self._operation(func, args, kwargs)
        if operation.rounds:
            result = _narrow(operation, operation.run(self._rounding, *_widen(args), **_widen(kwargs)))
        elif _has_half(args):
            result = _native(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        self._note(operation, args, kwargs, result, before, func)
        return result

    def compute(self, run: Callable[..., Any], args: Sequence[Any], half: bool) -> Any:
        """run(rounding, *args) with float32 tensors; `half`: its results, which it has rounded, are halves."""
        operation, before = Operation(run, True, "all" if half else "none"), self._rounding.count
        result = _narrow(operation, run(self._rounding, *_widen(tuple(args))))
        self._note(operation, args, {}, result, before, None)
        return result

    def hold(self, run: Callable[..., Any], args: Sequence[Tensor]) -> Any:
        """run(*args) of tensors as they are; the result, no tensor, may be an argument of `compute`."""
        result = run(*args)
        if self._recorder is not None:
            self._recorder.note_held(run, args, result)
        return result

    def _note(self, operation: Operation, args: Any, kwargs: Any, result: Any, before: int, func: Any) -> None:
        if self._recorder is not None:
            self._recorder.note(operation, args, kwargs, result, range(before, self._rounding.count), func)

    def _operation(self, func: Any, args: Any, kwargs: Any) -> Operation:
        tensors = [x for x in _leaves(args) if isinstance(x, Tensor)]
        if not any(x.dtype == torch.float16 for x in tensors):
            if kwargs.get("dtype") != torch.float16:
                return Operation(func, False, "none")
            if func is _aten._to_copy.default and tensors[0].is_floating_point():
                return Operation(_rounded_copy, True, "all")
            return Operation(partial(_to_nearest, func), False, "all")
        if func in MATRIX_PRODUCTS and all(x.dtype == torch.float16 for x in tensors):
            return Operation(partial(_product, self._half_partials), True, "all")
        if writes(func):
            run = partial(_to_nearest, func) if args[0].dtype == torch.float16 else func
            return Operation(run, False, "all")
        if func in _EXACT or _aliases(func):
            return Operation(func, False, "all")
        if kwargs.get("dtype") is not None and kwargs["dtype"] != torch.float16:
            return Operation(partial(_unrounded, func), True, "none")
        if func in _MOVES:
            return Operation(partial(_moved, func), True, "all")
        if func is _aten.native_layer_norm.default:  # mean and 1 / std stay float32 inside the operation
            return Operation(partial(_rounded, func, True), True, "first")
        stays_float = any(x.dtype == torch.float32 and x.dim() > 0 for x in tensors)
        if stays_float and func is not _aten.native_layer_norm_backward.default:
            return Operation(partial(_unrounded, func), True, "none")
        return Operation(partial(_rounded, func, False), True, "all")


def _rounded(func: Any, first_only: bool, rounding: Rounding, *args: Any, **kwargs: Any) -> Any:
    result = func(*args, **kwargs)
    if isinstance(result, Tensor):
        return _rounded_result(rounding, result)
    kept = 1 if first_only else len(result)
    return tuple(_rounded_result(rounding, x) if i < kept else x for i, x in enumerate(result))


def _rounded_result(rounding: Rounding, x: Any) -> Any:
    return rounding.in_place(x) if isinstance(x, Tensor) and x.dtype == torch.float32 else x


def _unrounded(func: Any, rounding: Rounding, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _moved(func: Any, rounding: Rounding, *args: Any) -> Tensor:
    rounding.count += 1
    return func(*args)


def _rounded_copy(rounding: Rounding, x: Tensor, **kwargs: Any) -> Tensor:
    return rounding.in_place(x.to(torch.float32, copy=True))


def _to_nearest(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What torch itself writes as halves."""
    result = func(*args, **kwargs)
    return result.copy_(result.half()) if isinstance(result, Tensor) and result.dtype == torch.float32 else result


def _product(half_partials: bool, rounding: Rounding, *args: Tensor, alpha: float = 1, beta: float = 1) -> Tensor:
    bias, (a, b) = (args[0], args[1:3]) if len(args) == 3 else (None, args)
    whole = a.dim() == 3
    total = dense(*((a, b) if whole else (a[None], b[None])), rounding.key(), half_partials)
    total = total if whole else total[0]
    if alpha != 1:
        total *= alpha
    if bias is not None:
        total = rounding.in_place(total) + beta * bias
    return rounding.in_place(total)


def _narrow(operation: Operation, result: Any) -> Any:
    """The results as the model has them: halves in 16 bits."""
    if isinstance(result, Tensor):
        return result.half() if operation.narrowed != "none" and result.dtype == torch.float32 else result
    if not isinstance(result, (tuple, list)) or operation.narrowed == "none":
        return result
    kept = 1 if operation.narrowed == "first" else len(result)
    return type(result)(_narrow(operation, x) if i < kept else x for i, x in enumerate(result))


def _has_half(args: Any) -> bool:
    return any(isinstance(x, Tensor) and x.dtype == torch.float16 for x in _leaves(args))


@lru_cache(maxsize=None)
def writes(func: Any) -> bool:
    """Whether an argument is written."""
    return any(x.alias_info is not None and x.alias_info.is_write for x in func._schema.arguments)


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
