"""The native CPU kernels: the same three products as sparse_ops.reference, compiled (sparse_ops.build) and fast.

Names: x [T, in], dy [T, out], values [nnz, b, b] in slot order, bias [out]; T tokens, b in {1, 4, 8, 16}; float32, or
bfloat16 with sums in float32. Inputs need not be contiguous (a copy is made then); outputs are. Every product raises
MemoryError when memory for its workspace runs out.

Determinism: equal inputs give bit-equal results for a given thread count and instruction level. `forward` and
`grad_input` are also equal across thread counts; `grad_values` is not, since each thread sums its own tokens.

Environment: SPARSE_OPS_LEVEL (avx512_bf16 | avx512 | avx2 | portable) names an instruction level; the default is the
best that the processor has, on Intel's at most avx512. Threads are torch's own (its OpenMP runtime,
torch.get_num_threads() of them).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from sparse_ops.openmp import parallel_address
from sparse_ops.pattern import BLOCK_SIZES, BlockIndex
from sparse_ops.processor import processor
from sparse_ops.saying import say
from sparse_ops.variants import Choices, Work

NAME = "native"
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")  # the last: AVX-512, and AVX512_BF16 for bfloat16 products
DTYPES = (torch.float32, torch.bfloat16)


@functools.lru_cache(maxsize=None)
def available() -> bool:
    """Whether the kernels can be used here; compiles them at the first call, where a wheel has not brought them.

    Warns once, with the reason, when not.
    """
    problem = why_not()
    if problem:
        warnings.warn(f"native kernels are not available, products run in plain torch: {problem}", stacklevel=2)
    return not problem


@functools.lru_cache(maxsize=None)
def why_not() -> str:
    """Why the kernels cannot be used here; empty where they can. Compiles them as `available`."""
    from sparse_ops.build import BuildError  # not at the top: `python -m sparse_ops.build` imports this package first

    try:
        _library()
    except (BuildError, OSError) as error:
        return str(error)
    return ""


def needed() -> bool:
    """Whether the kernels can be used by a program that has nothing to do without them; says why, when not."""
    problem = why_not()
    if problem:
        say(f"error: native kernels are not available: {' '.join(problem.split())}", sys.stderr)
    return not problem


def supports(x: Tensor, block_size: int) -> bool:
    """Whether the native kernels take this input (a CPU tensor of a supported dtype) and block size."""
    return x.device.type == "cpu" and x.dtype in DTYPES and block_size in BLOCK_SIZES


def level() -> str:
    """The instruction level in use: the processor's fastest, or the one named by SPARSE_OPS_LEVEL.

    Raises ValueError when the name is unknown or the processor does not have it.
    """
    return LEVELS[_level_now()]


def fingerprint() -> str:
    """The first digits of the digest in the loaded library's file name: of its sources, flags and compiler."""
    return os.path.splitext(os.path.basename(_library()._name))[0].rpartition("-")[2][:8]


def forward(x: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None) -> Tensor:
    """Y = X W^T + bias: [T, out]. Raises ValueError when a shape, dtype or device is wrong."""
    y = _new_output(x, values, index, bias)
    return _product(x, values, index, y, bias)


def forward_gelu(
    x: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """GELU(X W^T + bias) [T, out] and its derivative there [T, out] (empty unless wanted), made as they are written.

    Off by at most 7.5e-8 of |X W^T + bias| (the distribution function's approximation, Abramowitz and Stegun, 7.1.26)
    and rounding. Raises ValueError as `forward`.
    """
    y = _new_output(x, values, index, bias)
    slope = torch.empty_like(y) if with_slope else y.new_empty(0)
    return _product(x, values, index, y, bias, slope=slope, gelu=True), slope


def _new_output(x: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None) -> Tensor:
    block = _check_values(values, index)
    n_rows, n_cols = index.grid
    _check("x", x, (x.shape[0], n_cols * block), values)
    if bias is not None:
        _check("bias", bias, (n_rows * block,), values)
    return x.new_empty(x.shape[0], n_rows * block)


def grad_input(dy: Tensor, values: Tensor, index: BlockIndex, slope: Tensor | None = None) -> Tensor:
    """dX = dY W, times `slope` [T, in] where there is one: [T, in]. Raises ValueError as `forward`."""
    block = _check_values(values, index)
    n_rows, n_cols = index.grid
    _check("dy", dy, (dy.shape[0], n_rows * block), values)
    if slope is not None:
        _check("slope", slope, (dy.shape[0], n_cols * block), values)
        slope = contiguous(slope)
    return _product(dy, values, index, dy.new_empty(dy.shape[0], n_cols * block), slope=slope, transposed=True)


def grad_values(
    x: Tensor, dy: Tensor, index: BlockIndex, block_size: int, with_bias: bool = False
) -> tuple[Tensor, Tensor]:
    """dW = dY^T X at the existing blocks only, [nnz, b, b] in slot order, and the bias's gradient in the same pass.

    The latter is dY summed over tokens, [out], or empty unless wanted. Both of x's dtype. Raises ValueError when a
    shape, dtype or device is wrong or block_size is none of BLOCK_SIZES.
    """
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block size: expected one of {BLOCK_SIZES}, found {block_size}")
    n_rows, n_cols = index.grid
    _check("x", x, (x.shape[0], n_cols * block_size), x)
    _check("dy", dy, (x.shape[0], n_rows * block_size), x)
    _check_index(index)
    x, dy = contiguous(x), contiguous(dy)
    out = x.new_empty(index.rows.numel(), block_size, block_size)
    bias = x.new_empty(dy.shape[1] if with_bias else 0)
    call = _GradientCall(
        x=x.data_ptr(),
        dy=dy.data_ptr(),
        out=out.data_ptr(),
        bias=_address(bias),
        index=_addresses(index),
        blocks=index.rows.numel(),
        tokens=x.shape[0],
        n_in=x.shape[1],
        n_out=dy.shape[1],
        block=block_size,
        **threads_and_level(),
        variant=_variant("grad_values", (dy.shape[1], x.shape[1]), block_size, index, x),
        half=x.dtype == torch.bfloat16,
    )
    run("sparse_ops_gradient", call)
    return out, bias


def _product(
    x: Tensor,
    values: Tensor,
    index: BlockIndex,
    y: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    gelu: bool = False,
    transposed: bool = False,
) -> Tensor:
    x, values = contiguous(x), contiguous(values)
    bias = None if bias is None else contiguous(bias.float())
    call = _ProductCall(
        x=x.data_ptr(),
        y=y.data_ptr(),
        slope=_address(slope),
        bias=_address(bias),
        values=values.data_ptr(),
        index=_addresses(index),
        blocks=index.rows.numel(),
        tokens=x.shape[0],
        n_in=x.shape[1],
        n_out=y.shape[1],
        block=values.shape[-1],
        **threads_and_level(),
        variant=_variant("grad_input", (x.shape[1], y.shape[1]), values.shape[-1], index, x)
        if transposed
        else _variant("forward", (y.shape[1], x.shape[1]), values.shape[-1], index, x),
        half=x.dtype == torch.bfloat16,
        gelu=gelu,
        transposed=transposed,
    )
    run("sparse_ops_product", call)
    return y


def work(product: str, shape: tuple[int, int], block: int, blocks: int, tokens: int, dtype: torch.dtype) -> Work:
    """A product of a weight `shape` = (out, in) as it would be carried out now: with torch's threads, at this level."""
    return Work(product, *shape, block, blocks, tokens, dtype == torch.bfloat16, torch.get_num_threads(), _level_now())


def _variant(product: str, shape: tuple[int, int], block: int, index: BlockIndex, x: Tensor) -> int:
    return choices().number(work(product, shape, block, index.rows.numel(), x.shape[0], x.dtype))


@functools.lru_cache(maxsize=None)
def choices() -> Choices:
    """Which ways of the products have been chosen on this machine (sparse_ops.tune); read at the first product."""
    from sparse_ops.build import cache_folder

    return Choices(cache_folder(), _library(), processor())


def _addresses(index: BlockIndex) -> _BlockIndex:
    return _BlockIndex(*[tensor.data_ptr() for tensor in index])  # their names and order are BlockIndex's


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None or not tensor.numel() else tensor.data_ptr()


def threads_and_level() -> dict[str, int | None]:
    """The fields of every call that say how it is carried out: torch's threads, at the instruction level in use."""
    return {"parallel": parallel_address(), "threads": torch.get_num_threads(), "level": _level_now()}


def run(function: str, call: Call) -> None:
    """Call this function of the library. Raises ValueError for a wrong index and MemoryError without memory."""
    status = getattr(_library(), function)(ctypes.byref(call))
    if status == -2:
        raise ValueError("index: expected one made by BlockPattern.index(), found slots or positions that disagree")
    if status:
        raise MemoryError("native kernels: out of memory for a workspace")


def contiguous(tensor: Tensor) -> Tensor:
    """Its numbers one after another in memory, without a graph.

    Written out, too, where there are none: in a view that is negated when it is read, and in torch's zeros without
    memory. What goes through a torch operator has neither.
    """
    plain = tensor.detach().contiguous()
    return torch.empty_like(plain).copy_(plain) if plain.is_neg() or plain._is_zerotensor() else plain


def _check_values(values: Tensor, index: BlockIndex) -> int:
    nnz = index.rows.numel()
    block = values.shape[-1] if values.dim() == 3 else 0
    if block not in BLOCK_SIZES or values.shape != (nnz, block, block):
        raise ValueError(f"values: expected [{nnz}, b, b] with b in {BLOCK_SIZES}, found {list(values.shape)}")
    _check_index(index)
    return block


def _check_index(index: BlockIndex) -> None:
    """What the library cannot see; it checks the numbers themselves, at every call."""
    for name, tensor in zip(index._fields, index):
        if tensor.dim() != 1 or (not name.endswith("_ptr") and tensor.numel() != index.rows.numel()):
            raise ValueError(f"index {name}: expected [{index.rows.numel()}], found {list(tensor.shape)}")
        if tensor.dtype != torch.int32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(
                f"index {name}: expected contiguous int32 on the CPU, found {tensor.dtype} on {tensor.device}"
            )


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected {list(shape)}, found {list(tensor.shape)}")
    if tensor.device.type != "cpu" or like.device.type != "cpu":
        raise ValueError(f"{name}: expected a CPU tensor and CPU values, found {tensor.device} and {like.device}")
    if tensor.dtype not in DTYPES or tensor.dtype != like.dtype:
        raise ValueError(f"{name}: expected {like.dtype} as the values (one of {DTYPES}), found {tensor.dtype}")


class Call(ctypes.Structure):
    """A C structure that takes every one of its fields by name; ctypes alone lets them be left out or misspelt."""

    _names: frozenset[str]

    def __init_subclass__(cls) -> None:
        cls._names = frozenset(name for name, *_ in cls._fields_)

    def __init__(self, **fields: Any) -> None:
        if fields.keys() != self._names:
            raise TypeError(f"{type(self).__name__}: expected the fields {sorted(self._names)}, found {sorted(fields)}")
        super().__init__(**fields)


# The structures of csrc/cpu/api.hpp, which says what their fields mean.
class _BlockIndex(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in BlockIndex._fields)


_OF_BOTH = (
    ("index", _BlockIndex),
    ("blocks", ctypes.c_int64),
    ("tokens", ctypes.c_int64),
    ("n_in", ctypes.c_int64),
    ("n_out", ctypes.c_int64),
    ("block", ctypes.c_int64),
    ("parallel", ctypes.c_void_p),
    ("threads", ctypes.c_int32),
    ("level", ctypes.c_int32),
    ("variant", ctypes.c_int32),
    ("half", ctypes.c_bool),
)


class _ProductCall(Call):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "slope", "bias", "values")),
        *_OF_BOTH,
        ("gelu", ctypes.c_bool),
        ("transposed", ctypes.c_bool),
    )


class _GradientCall(Call):
    _fields_ = (*((name, ctypes.c_void_p) for name in ("x", "dy", "out", "bias")), *_OF_BOTH)


@functools.lru_cache(maxsize=None)
def _library() -> Any:
    from sparse_ops.build import build, is_whole, shipped_path

    shipped = shipped_path()
    if shipped.exists() and not is_whole(shipped):
        say(f"sparse_ops: {shipped} is damaged: install the package again; until then kernels are compiled", sys.stderr)
    elif shipped.exists():
        with contextlib.suppress(OSError):  # made for a newer C library than this system's: then compile
            return ctypes.CDLL(str(shipped))
    return ctypes.CDLL(str(build()))


@functools.lru_cache(maxsize=None)
def _level(named: str) -> int:
    if not named:
        return int(_library().sparse_ops_default_level())
    best = _library().sparse_ops_best_level()
    if named not in LEVELS or LEVELS.index(named) > best:
        raise ValueError(f"SPARSE_OPS_LEVEL: expected one of {LEVELS[: best + 1]} on this processor, found {named!r}")
    return LEVELS.index(named)


def _level_now() -> int:
    return _level(os.environ.get("SPARSE_OPS_LEVEL", ""))
