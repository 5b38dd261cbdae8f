"""feed_forward: two block-sparse layers with GELU between them, trained with less memory traffic than one by one.

The gradient at GELU's result is multiplied by GELU's derivative as the product that makes it writes it. By itself that
is a pass over two large arrays and a third that it writes: of a step of BERT-Base in 16x16 blocks a twentieth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_ops import differentiable
from sparse_ops.functional import autocast_dtype, check, from_parts, observed, weight_gradients
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.operators import OPERATORS, product_flops
from sparse_ops.pattern import BlockIndex
from sparse_ops.sparsify import hooked


def feed_forward(x: Tensor, first: BlockSparseLinear, second: BlockSparseLinear) -> Tensor:
    """second(GELU(first(x))), the exact GELU: x [*, in] -> [*, out], with the same results and gradients.

    Bit for bit in float32; in bfloat16 the gradient at GELU's input is rounded once in place of twice. Where only those
    two calls will do they are made: in layers with hooks or of a derived class, under autocast, in torch.compile and
    torch.func, and where nothing is trained. Errors of `block_linear`.
    """
    if not _together(x, first, second):
        result: Tensor = second(first(x, gelu=True))
        return result
    check(x, first.values, first.index, first.bias, first.kernel)
    check(x.new_empty(0, first.out_features), second.values, second.index, second.bias, second.kernel)
    parts = [(layer.values, layer.bias, list(layer.index)) for layer in (first, second)]
    y = torch.ops.sparse_ops.block_linear_feed_forward(x.reshape(-1, x.shape[-1]), *parts[0], *parts[1], first.kernel)
    return y[0].reshape(*x.shape[:-1], second.out_features)


def _together(x: Tensor, first: BlockSparseLinear, second: BlockSparseLinear) -> bool:
    layers = (first, second)
    if not (hasattr(torch.library, "custom_op") and torch.is_grad_enabled()):
        return False
    if any(type(layer) is not BlockSparseLinear or hooked(layer) or not layer._placed for layer in layers):
        return False
    if differentiable.compiling() or differentiable.wanted() or autocast_dtype(x) is not None:
        return False
    parts = [x, *(part for layer in layers for part in (layer.values, layer.bias) if part is not None)]
    trained = any(part.requires_grad for part in parts) and not any(part.is_meta for part in parts)
    return trained and first.kernel == second.kernel


def _forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    out_values: Tensor,
    out_bias: Tensor | None,
    out_index: list[Tensor],
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    inner, slope = OPERATORS.forward_gelu(x, values, bias, index, kernel, True)
    return OPERATORS.forward(inner, out_values, out_bias, out_index, kernel), inner, slope


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, values, bias, index, out_values, out_bias, out_index, ctx.kernel = inputs
    _, inner, slope = output
    ctx.mark_non_differentiable(inner, slope)
    ctx.set_materialize_grads(False)
    ctx.indices = len(index)
    ctx.save_for_backward(x, values, bias, out_values, out_bias, inner, slope, *index, *out_index)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    x, values, bias, out_values, out_bias, inner, slope, *indices = ctx.saved_tensors
    index, out_index = indices[: ctx.indices], indices[ctx.indices :]
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 2, 4, 5)]
    if dy is None:
        found: tuple[Tensor | None, ...] = (None,) * len(needs)
    elif torch.is_grad_enabled():  # create_graph: the gradients are to be differentiated

        def plain(
            x: Tensor, values: Tensor, bias: Tensor | None, out_values: Tensor, out_bias: Tensor | None
        ) -> Tensor:
            inner = from_parts(x, values, bias, BlockIndex(*index), ctx.kernel, True)
            return from_parts(inner, out_values, out_bias, BlockIndex(*out_index), ctx.kernel, False)

        found = differentiable.gradients(plain, (x, values, bias, out_values, out_bias), dy)
    else:
        dy = dy.contiguous()
        observed(out_index, inner, dy)
        of_out = weight_gradients(inner, dy, out_index, out_values, ctx.kernel, *needs[3:])
        dx: Tensor | None = None
        of_first: tuple[Tensor | None, Tensor | None] = (None, None)
        if any(needs[:3]):
            dinner = OPERATORS.grad_input(dy, out_values, out_index, ctx.kernel, slope)
            observed(index, x, dinner)
            dx = OPERATORS.grad_input(dinner, values, index, ctx.kernel) if needs[0] else None
            of_first = weight_gradients(x, dinner, index, values, ctx.kernel, *needs[1:3])
        found = (dx, *of_first, *of_out)
    return (*found[:3], [None] * len(index), *found[3:], [None] * len(out_index), None)


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    weight = "Tensor {0}values, Tensor? {0}bias, Tensor[] {0}index"
    schema = f"(Tensor x, {weight.format('')}, {weight.format('out_')}, str kernel) -> (Tensor, Tensor, Tensor)"
    name = "sparse_ops::block_linear_feed_forward"
    operator: Any = torch.library.custom_op(name, _forward, mutates_args=(), schema=schema)
    operator.register_autograd(_backward, setup_context=_setup_context)
    operator.register_fake(_forward)  # made of operators that have fakes

    def executed(
        x: Tensor, values: Tensor, _: Any, index: Any, out_values: Tensor, __: Any, out: Any, kernel: str, out_val: Any
    ) -> int:
        of_first = product_flops(x, BlockIndex(*index), values.shape[-1], kernel)
        return of_first + product_flops(out_val[1], BlockIndex(*out), out_values.shape[-1], kernel)

    register_flop_formula(torch.ops.sparse_ops.block_linear_feed_forward, get_raw=True)(executed)


if hasattr(torch.library, "custom_op"):
    _register()
