"""block_linear: the product with a block-sparse weight as a torch operator with a fake and an autograd formula."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator, NamedTuple

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
    gelu: bool = False,
) -> Tensor:
    """Y = X W^T + bias, or GELU of it, where W [out, in] exists only at its blocks.

    x [*, in], values [nnz, b, b] in slot order, bias [out] -> [*, out], all of one floating dtype (under autocast: its
    dtype). `pattern` may be the index of a pattern, which saves building it again. kernel: one of KERNELS. gelu: apply
    GELU (the exact one, not the tanh form) as results are written; its derivative is kept for the backward pass in the
    place of its input. Differentiable in x, values and bias.
    Raises ValueError when a shape, a dtype, a device or the kernel's name is wrong.
    """
    index = pattern.index() if isinstance(pattern, BlockPattern) else pattern
    dtype = _autocast_dtype(x)
    if dtype is not None:
        x, values = x.to(dtype), values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check(x, values, index, bias, kernel)
    tokens = x.reshape(-1, x.shape[-1])
    if gelu:
        trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, values, bias))
        y, _ = _OPERATORS.forward_gelu(tokens, values, bias, list(index), kernel, trained)
    else:
        y = _OPERATORS.forward(tokens, values, bias, list(index), kernel)
    return y.reshape(*x.shape[:-1], y.shape[-1])


@contextmanager
def observe_gradients(observer: Callable[[BlockIndex, Tensor, Tensor], None]) -> Iterator[None]:
    """While inside, every product's backward pass calls observer(index, x, dy) before it computes its gradients.

    x [T, in] and dy [T, out], the gradient at X W^T + bias, of the product's dtype: what a dense gradient dY^T X can be
    computed from.
    """
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


_observers: list[Callable[[BlockIndex, Tensor, Tensor], None]] = []


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


def _forward_gelu(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str, with_slope: bool
) -> tuple[Tensor, Tensor]:
    return _select(kernel, x, values.shape[-1]).forward_gelu(x, values, BlockIndex(*index), bias, with_slope)


def _grad_input(dy: Tensor, values: Tensor, index: list[Tensor], kernel: str) -> Tensor:
    return _select(kernel, dy, values.shape[-1]).grad_input(dy, values, BlockIndex(*index))


def _grad_values(
    x: Tensor, dy: Tensor, index: list[Tensor], block_size: int, kernel: str, with_bias: bool
) -> tuple[Tensor, Tensor]:
    return _select(kernel, x, block_size).grad_values(x, dy, BlockIndex(*index), block_size, with_bias)


class _Operators(NamedTuple):
    """The products as autograd sees them."""

    forward: Callable[..., Tensor]
    forward_gelu: Callable[..., tuple[Tensor, Tensor]]
    grad_input: Callable[..., Tensor]
    grad_values: Callable[..., tuple[Tensor, Tensor]]
    index_gradient: Callable[[int], Any]  # what backward returns for the index


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, values, bias, index, kernel = inputs[:5]
    slope = output[1] if isinstance(output, tuple) else None
    if slope is not None:
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)
    ctx.save_for_backward(slope, x, values, *index)
    ctx.kernel, ctx.has_bias = kernel, bias is not None


def _backward(ctx: Any, dy: Tensor | None, _: Any = None) -> tuple[Any, ...]:
    slope, x, values, *index = ctx.saved_tensors
    rest = (None,) if slope is None else (None, None)
    if dy is None:  # nobody wants the gradient of a result that has a slope
        return (None, None, None, _OPERATORS.index_gradient(len(index)), *rest)
    needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
    dy = dy.contiguous() if slope is None else dy * slope
    for observer in _observers:
        observer(BlockIndex(*index), x, dy)
    dx = _OPERATORS.grad_input(dy, values, index, ctx.kernel) if needs_x else None
    dw = db = None
    needs_bias = ctx.has_bias and needs_bias
    if needs_values:
        dw, db = _OPERATORS.grad_values(x, dy, index, values.shape[-1], ctx.kernel, needs_bias)
    elif needs_bias:
        db = dy.sum(0)
    return (dx, dw, db if needs_bias else None, _OPERATORS.index_gradient(len(index)), *rest)


class _BlockLinear(torch.autograd.Function):
    """The operator for torch releases without torch.library.custom_op (torch 2.0, which PopTorch pins)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _forward(*inputs)
        _setup_context(ctx, inputs, y)
        return y

    backward = staticmethod(_backward)


class _BlockLinearGelu(torch.autograd.Function):
    """The same with GELU."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward_gelu(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


def _register() -> _Operators:
    """Register the products with torch, so that torch.compile, opcheck and the profiler know them."""

    def define(name: str, function: Callable[..., Any], schema: str) -> Any:
        return torch.library.custom_op(f"sparse_ops::{name}", function, mutates_args=(), schema=schema)

    product = "Tensor x, Tensor values, Tensor? bias, Tensor[] index, str kernel"
    forward = define("block_linear", _forward, f"({product}) -> Tensor")
    forward_gelu = define("block_linear_gelu", _forward_gelu, f"({product}, bool with_slope) -> (Tensor, Tensor)")
    grad_input = define(
        "block_linear_grad_input", _grad_input, "(Tensor dy, Tensor values, Tensor[] index, str kernel) -> Tensor"
    )
    grad_values = define(
        "block_linear_grad_values",
        _grad_values,
        "(Tensor x, Tensor dy, Tensor[] index, int block_size, str kernel, bool with_bias) -> (Tensor, Tensor)",
    )

    @forward.register_fake
    def fake_forward(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str) -> Tensor:
        return x.new_empty(x.shape[0], BlockIndex(*index).grid[0] * values.shape[-1])

    @forward_gelu.register_fake
    def fake_forward_gelu(
        x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str, with_slope: bool
    ) -> tuple[Tensor, Tensor]:
        y = fake_forward(x, values, bias, index, kernel)
        return y, torch.empty_like(y) if with_slope else y.new_empty(0)

    @grad_input.register_fake
    def fake_grad_input(dy: Tensor, values: Tensor, index: list[Tensor], kernel: str) -> Tensor:
        return dy.new_empty(dy.shape[0], BlockIndex(*index).grid[1] * values.shape[-1])

    @grad_values.register_fake
    def fake_grad_values(
        x: Tensor, dy: Tensor, index: list[Tensor], block_size: int, kernel: str, with_bias: bool
    ) -> tuple[Tensor, Tensor]:
        values = x.new_empty(index[0].shape[0], block_size, block_size)
        return values, x.new_empty(dy.shape[1] if with_bias else 0)

    forward.register_autograd(_backward, setup_context=_setup_context)
    forward_gelu.register_autograd(_backward, setup_context=_setup_context)
    return _Operators(forward, forward_gelu, grad_input, grad_values, lambda length: [None] * length)


def _plain() -> _Operators:
    """The products for torch releases without torch.library.custom_op."""
    return _Operators(_BlockLinear.apply, _BlockLinearGelu.apply, _grad_input, _grad_values, lambda length: None)


_OPERATORS = _register() if hasattr(torch.library, "custom_op") else _plain()
