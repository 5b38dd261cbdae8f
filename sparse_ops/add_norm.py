"""add_norm: LayerNorm(residual + dropout(x)), the end of each half of a transformer's layer, as one operator.

On the CPU in float32 one pass over memory forward and one backward; no mask is kept, since what is dropped follows from
a key (random_bits.py). Elsewhere the same in plain torch.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ops import differentiable, native
from sparse_ops.native import Call
from sparse_ops.operators import KERNELS, has_native
from sparse_ops.random_bits import Dropout, kept

MULTIPLE = 16  # of which the native kernel's features must be


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, key: int, kernel: str
) -> Tensor:
    """LayerNorm(residual + dropout(x)) over the last axis: x and residual [*, H], weight and bias [H] -> [*, H].

    dropout: the probability that a feature of x becomes 0; others are divided by 1 - dropout. Which ones follows from
    `key`, a whole number below random_bits.KEYS. kernel: one of operators.KERNELS; all but "torch" take the native one
    for what it supports (float32 on the CPU, H a multiple of 16). Differentiable.
    Raises ValueError when a shape, the probability or the kernel's name is wrong.
    """
    _check(x, residual, weight, bias, kernel)
    if _is_native(x, residual, weight, bias, kernel):
        n = x.shape[-1]
        y, _, _ = _ADD_NORM(x.reshape(-1, n), residual.reshape(-1, n), weight, bias, eps, dropout, key)
        return y.view(x.shape)
    dropped = x * kept(tuple(x.shape), dropout, key).to(x.dtype) if dropout else x
    return F.layer_norm(dropped + residual, weight.shape, weight, bias, eps)


def _check(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, kernel: str) -> None:
    if residual.shape != x.shape:
        raise ValueError(f"residual: expected {list(x.shape)} as x, found {list(residual.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != x.shape[-1:]:
            raise ValueError(f"{name}: expected {list(x.shape[-1:])}, found {list(tensor.shape)}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {KERNELS}, found {kernel!r}")


def _is_native(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, kernel: str) -> bool:
    """Whether the native kernel takes them: float32 on the CPU, and so many features that vectors are full.

    Never in torch.func or forward mode, which its operator does not know.
    """
    tensors = (x, residual, weight, bias)
    fits = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and x.shape[-1] % MULTIPLE == 0
    known = _ADD_NORM is not None and not differentiable.wanted()
    return kernel != "torch" and fits and x.numel() > 0 and known and has_native()


# The structures of csrc/cpu/api.hpp, which says what their fields mean.
_OF_BOTH = (
    ("tokens", ctypes.c_int64),
    ("features", ctypes.c_int64),
    ("dropout", Dropout),
)
_LAST = (("parallel", ctypes.c_void_p), ("threads", ctypes.c_int32), ("level", ctypes.c_int32))


class _AddNormCall(Call):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "residual", "weight", "bias", "y", "sum", "statistics")),
        *_OF_BOTH,
        ("eps", ctypes.c_float),
        *_LAST,
    )


class _AddNormGradientCall(Call):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("dy", "sum", "statistics", "weight")),
        *((name, ctypes.c_void_p) for name in ("dx", "dresidual", "dweight", "dbias")),
        *_OF_BOTH,
        *_LAST,
    )


def _forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, key: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and what the backward pass needs: the sum that was normed, and its mean and scale by token."""
    x, residual, weight, bias = (t.detach().contiguous() for t in (x, residual, weight, bias))
    y, total, statistics = torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[0], 2)
    call = _AddNormCall(
        x=x.data_ptr(),
        residual=residual.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        y=y.data_ptr(),
        sum=total.data_ptr(),
        statistics=statistics.data_ptr(),
        tokens=x.shape[0],
        features=x.shape[1],
        dropout=Dropout.of(dropout, key),
        eps=eps,
        **native.threads_and_level(),
    )
    native.run("sparse_ops_add_norm", call)
    return y, total, statistics


def _gradient(
    dy: Tensor, total: Tensor, statistics: Tensor, weight: Tensor, dropout: float, key: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx (empty without dropout: it is dresidual), dresidual, dweight and dbias."""
    dy, weight = dy.detach().contiguous(), weight.detach().contiguous()
    dresidual, dweight, dbias = torch.empty_like(dy), torch.empty_like(weight), torch.empty_like(weight)
    dx = torch.empty_like(dy) if dropout else dy.new_empty(0)
    call = _AddNormGradientCall(
        dy=dy.data_ptr(),
        sum=total.data_ptr(),
        statistics=statistics.data_ptr(),
        weight=weight.data_ptr(),
        dx=dx.data_ptr() or None,
        dresidual=dresidual.data_ptr(),
        dweight=dweight.data_ptr(),
        dbias=dbias.data_ptr(),
        tokens=dy.shape[0],
        features=dy.shape[1],
        dropout=Dropout.of(dropout, key),
        **native.threads_and_level(),
    )
    native.run("sparse_ops_add_norm_gradient", call)
    return dx, dresidual, dweight, dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, weight, _, ctx.eps, ctx.dropout, ctx.key = inputs
    _, total, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, statistics, weight)


def _gradient_with_graph(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """dresidual, dweight and dbias as they follow from dy, the sum that was normed, and weight, again differentiable.

    The sum is an output of the operator, whose gradient goes on to x and residual: they need not be kept.
    """
    total, _, weight = ctx.saved_tensors
    norm = partial(F.layer_norm, normalized_shape=weight.shape, eps=ctx.eps)
    dtotal, dweight = differentiable.gradients(lambda t, w: norm(t, weight=w), (total, weight), dy)
    return dtotal, dweight, dy.sum(0)


def _registered() -> Any:
    """The operator with its backward pass, so that torch.compile, opcheck and the profiler know both."""
    forward = torch.library.custom_op(
        "sparse_ops::add_norm",
        _forward,
        mutates_args=(),
        schema="(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float dropout, int key) "
        "-> (Tensor, Tensor, Tensor)",
    )
    gradient = torch.library.custom_op(
        "sparse_ops::add_norm_gradient",
        _gradient,
        mutates_args=(),
        schema="(Tensor dy, Tensor total, Tensor statistics, Tensor weight, float dropout, int key) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
    )

    @forward.register_fake
    def fake_forward(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[0], 2)  # contiguous, whatever x is

    @gradient.register_fake
    def fake_gradient(
        dy: Tensor, total: Tensor, statistics: Tensor, weight: Tensor, dropout: float, key: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dx = dy.new_empty(dy.shape if dropout else 0)
        return dx, dy.new_empty(dy.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)

    def backward(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, _: Any) -> tuple[Any, ...]:
        dx = dresidual = dweight = dbias = None
        if dy is not None and torch.is_grad_enabled():  # create_graph: the gradients are to be differentiated
            dresidual, dweight, dbias = _gradient_with_graph(ctx, dy)
        elif dy is not None:
            dx, dresidual, dweight, dbias = gradient(dy, *ctx.saved_tensors, ctx.dropout, ctx.key)
        if dtotal is not None:  # of a gradient that was differentiated
            dx, dresidual = None, dtotal if dresidual is None else dresidual + dtotal
        if not ctx.dropout:
            dx = dresidual
        elif dx is None and dresidual is not None:
            dx = dresidual * kept(tuple(dresidual.shape), ctx.dropout, ctx.key)
        return dx, dresidual, dweight, dbias, None, None, None

    forward.register_autograd(backward, setup_context=_setup_context)
    return forward


# None in torch releases without torch.library.custom_op (torch 2.0, which PopTorch pins): plain torch runs there.
_ADD_NORM: Any = _registered() if hasattr(torch.library, "custom_op") else None
