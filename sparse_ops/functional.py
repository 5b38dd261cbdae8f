"""block_linear: the product with a block-sparse weight as a torch operator with a fake and an autograd formula."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_ops import differentiable
from sparse_ops.operators import KERNELS, OPERATORS
from sparse_ops.pattern import BlockIndex, BlockPattern


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
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, values = _cast(x, dtype), _cast(values, dtype)
        bias = None if bias is None else _cast(bias, dtype)
    check(x, values, index, bias, kernel)
    tokens = x.reshape(-1, x.shape[-1])
    if differentiable.wanted():
        y = from_parts(tokens, values, bias, index, kernel, gelu)
    elif gelu:
        trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, values, bias))
        y, _ = _PRODUCTS.forward_gelu(tokens, values, bias, list(index), kernel, trained)
    else:
        y = _PRODUCTS.forward(tokens, values, bias, list(index), kernel)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def from_parts(x: Tensor, values: Tensor, bias: Tensor | None, index: BlockIndex, kernel: str, gelu: bool) -> Tensor:
    """x [T, in] -> [T, out] from parts that can be differentiated in every way, any number of times."""
    y = differentiable.product(x, values, index, kernel, values.shape[-1])
    y = y if bias is None else y + bias
    return F.gelu(y) if gelu else y


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


def observed(index: list[Tensor], x: Tensor, dy: Tensor) -> None:
    """What a backward pass calls before it computes a product's gradients: x [T, in], dy [T, out]."""
    for observer in _observers:
        observer(BlockIndex(*index), x, dy)


def weight_gradients(
    x: Tensor, dy: Tensor, index: list[Tensor], values: Tensor, kernel: str, needs_values: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """From x [T, in] and dy [T, out] the gradients of values [nnz, b, b] and bias [out], None where none is needed."""
    if not needs_values:
        return None, dy.sum(0) if needs_bias else None
    dw, db = OPERATORS.grad_values(x, dy, index, values.shape[-1], kernel, needs_bias)
    return dw, db if needs_bias else None


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for, if it is on; torch 2.0, which has no name for it, only runs on the IPU."""
    kind = x.device.type
    if not hasattr(torch, "get_autocast_dtype") or kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Autocast leaves float64 as it is."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def check(x: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None, kernel: str) -> None:
    """Raise block_linear's errors for x [*, in], values [nnz, b, b] and bias [out]."""
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
    if index.rows.device != x.device:
        raise ValueError(f"index: expected it on {x.device} as x, found it on {index.rows.device}")
    if not x.dtype.is_floating_point:
        raise ValueError(f"x: expected a floating dtype, found {x.dtype}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {KERNELS}, found {kernel!r}")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, values, bias, index, kernel = inputs[:5]
    slope = output[1] if isinstance(output, tuple) else None
    if slope is not None:
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)
    ctx.save_for_backward(slope, x, values, bias, *index)
    ctx.kernel, ctx.has_bias = kernel, bias is not None


def _backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
    dy: Tensor | None = grad_outputs[0]
    slope, x, values, bias, *index = ctx.saved_tensors
    rest = (None,) if slope is None else (None, None)
    if dy is None:  # nobody wants the gradient of a result that has a slope
        return (None, None, None, _PRODUCTS.index_gradient(len(index)), *rest)
    if torch.is_grad_enabled():  # create_graph: the gradients are to be differentiated
        plain = partial(from_parts, index=BlockIndex(*index), kernel=ctx.kernel, gelu=slope is not None)
        found = differentiable.gradients(plain, (x, values, bias), dy)
        return (*found, _PRODUCTS.index_gradient(len(index)), *rest)
    needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
    dy = dy.contiguous() if slope is None else dy * slope
    observed(index, x, dy)
    dx = OPERATORS.grad_input(dy, values, index, ctx.kernel) if needs_x else None
    dw, db = weight_gradients(x, dy, index, values, ctx.kernel, needs_values, ctx.has_bias and needs_bias)
    return (dx, dw, db, _PRODUCTS.index_gradient(len(index)), *rest)


class _BlockLinear(torch.autograd.Function):
    """The operator for torch releases without torch.library.custom_op (torch 2.0, which PopTorch pins)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = OPERATORS.forward(*inputs)
        _setup_context(ctx, inputs, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        return _backward(ctx, *grad_outputs)


class _BlockLinearGelu(torch.autograd.Function):
    """The same with GELU."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = OPERATORS.forward_gelu(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        return _backward(ctx, *grad_outputs)


class _Products(NamedTuple):
    """The products that autograd knows, and the gradient of an index in its backward pass."""

    forward: Callable[..., Tensor]
    forward_gelu: Callable[..., tuple[Tensor, Tensor]]
    index_gradient: Callable[[int], Any]


def _registered() -> _Products:
    """As operators, so that torch.compile, opcheck and the profiler know them."""
    for operator in (OPERATORS.forward, OPERATORS.forward_gelu):
        operator.register_autograd(_backward, setup_context=_setup_context)
    return _Products(OPERATORS.forward, OPERATORS.forward_gelu, lambda length: [None] * length)


def _plain() -> _Products:
    """For torch releases without torch.library.custom_op."""
    return _Products(_BlockLinear.apply, _BlockLinearGelu.apply, lambda length: None)


_PRODUCTS = _registered() if hasattr(torch.library, "custom_op") else _plain()
