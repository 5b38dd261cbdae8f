"""block_linear: the product with a block-sparse weight as a torch operator with a fake and an autograd formula."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from sparse_ops import native, reference
from sparse_ops.pattern import BlockIndex, BlockPattern

KERNELS = ("auto", "native", "torch")


def block_linear(
    x: Tensor,
    values: Tensor,
    pattern: BlockPattern | BlockIndex,
    bias: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Y = X W^T + bias, where W [out, in] exists only at its blocks. Differentiable in x, values and bias.

    x [*, in], values [nnz, b, b] in slot order, bias [out] -> [*, out], all of one floating dtype (under autocast: its
    dtype). `pattern` may be the index of a pattern, which saves building it again. kernel: one of KERNELS.
    Raises ValueError when a shape, a dtype, a device or the kernel's name is wrong.
    """
    index = pattern.index() if isinstance(pattern, BlockPattern) else pattern
    dtype = _autocast_dtype(x)
    if dtype is not None:
        x, values = x.to(dtype), values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check(x, values, index, bias, kernel)
    tokens = x.reshape(-1, x.shape[-1])
    y = _OPERATORS.forward(tokens, values, bias, list(index), kernel)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for, if it is on; torch 2.0, which has no name for it, only runs on the IPU."""
    if not hasattr(torch, "get_autocast_dtype") or not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)


def _check(x: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None, kernel: str) -> None:
    n_rows, n_cols = index.grid
    b = values.shape[-1] if values.dim() == 3 else 0
    nnz = index.rows.numel()
    if values.shape != (nnz, b, b) or b == 0:
        raise ValueError(f"values: expected [{nnz}, b, b], found {list(values.shape)}")
    if x.dim() == 0 or x.shape[-1] != n_cols * b:
        raise ValueError(f"x: expected [*, {n_cols * b}], found {list(x.shape)}")
    if bias is not None and bias.shape != (n_rows * b,):
        raise ValueError(f"bias: expected [{n_rows * b}], found {list(bias.shape)}")
    for name, tensor in (("values", values), ("bias", bias)):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            raise ValueError(f"{name}: expected {x.dtype} on {x.device} as x, found {tensor.dtype} on {tensor.device}")
    if not x.dtype.is_floating_point:
        raise ValueError(f"x: expected a floating dtype, found {x.dtype}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {KERNELS}, found {kernel!r}")


def _select(kernel: str, x: Tensor, block_size: int) -> Any:
    """The kernel module for this call: native code where it can be had and takes the input, else plain torch."""
    if kernel == "torch":
        return reference
    if native.supports(x, block_size) and native.available():
        return native
    if kernel == "native":
        wanted = "a C++ compiler and float32 or bfloat16 on the CPU"
        raise ValueError(f"kernel native: expected {wanted}, found {x.dtype} on {x.device}")
    return reference


def _forward(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str) -> Tensor:
    return _select(kernel, x, values.shape[-1]).forward(x, values, BlockIndex(*index), bias)


def _grad_input(dy: Tensor, values: Tensor, index: list[Tensor], kernel: str) -> Tensor:
    return _select(kernel, dy, values.shape[-1]).grad_input(dy, values, BlockIndex(*index))


def _grad_values(x: Tensor, dy: Tensor, index: list[Tensor], block_size: int, kernel: str) -> Tensor:
    return _select(kernel, x, block_size).grad_values(x, dy, BlockIndex(*index), block_size)


class _Operators(NamedTuple):
    """The three products as autograd sees them."""

    forward: Callable[..., Tensor]
    grad_input: Callable[..., Tensor]
    grad_values: Callable[..., Tensor]
    index_gradient: Callable[[int], Any]  # what backward returns for the index


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, index, kernel = inputs
    ctx.save_for_backward(x, values, *index)
    ctx.kernel, ctx.has_bias = kernel, bias is not None


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
    dy = dy.contiguous()
    return (
        _OPERATORS.grad_input(dy, values, index, ctx.kernel) if needs_x else None,
        _OPERATORS.grad_values(x, dy, index, values.shape[-1], ctx.kernel) if needs_values else None,
        dy.sum(0) if ctx.has_bias and needs_bias else None,
        _OPERATORS.index_gradient(len(index)),
        None,
    )


class _BlockLinear(torch.autograd.Function):
    """The operator for torch releases without torch.library.custom_op (torch 2.0, which PopTorch pins)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str) -> Tensor:
        y = _forward(x, values, bias, index, kernel)
        _setup_context(ctx, (x, values, bias, index, kernel), y)
        return y

    backward = staticmethod(_backward)


def _register() -> _Operators:
    """Register the products with torch, so that torch.compile, opcheck and the profiler know them."""
    namespace, define = "sparse_ops::", torch.library.custom_op
    forward = define(
        namespace + "block_linear",
        _forward,
        mutates_args=(),
        schema="(Tensor x, Tensor values, Tensor? bias, Tensor[] index, str kernel) -> Tensor",
    )
    grad_input = define(
        namespace + "block_linear_grad_input",
        _grad_input,
        mutates_args=(),
        schema="(Tensor dy, Tensor values, Tensor[] index, str kernel) -> Tensor",
    )
    grad_values = define(
        namespace + "block_linear_grad_values",
        _grad_values,
        mutates_args=(),
        schema="(Tensor x, Tensor dy, Tensor[] index, int block_size, str kernel) -> Tensor",
    )

    @forward.register_fake
    def _(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str) -> Tensor:
        return x.new_empty(x.shape[0], BlockIndex(*index).grid[0] * values.shape[-1])

    @grad_input.register_fake
    def _(dy: Tensor, values: Tensor, index: list[Tensor], kernel: str) -> Tensor:
        return dy.new_empty(dy.shape[0], BlockIndex(*index).grid[1] * values.shape[-1])

    @grad_values.register_fake
    def _(x: Tensor, dy: Tensor, index: list[Tensor], block_size: int, kernel: str) -> Tensor:
        return x.new_empty(index[0].shape[0], block_size, block_size)

    forward.register_autograd(_backward, setup_context=_setup_context)
    return _Operators(forward, grad_input, grad_values, lambda length: [None] * length)


if hasattr(torch.library, "custom_op"):
    _OPERATORS = _register()
else:
    _OPERATORS = _Operators(_BlockLinear.apply, _grad_input, _grad_values, lambda length: None)
