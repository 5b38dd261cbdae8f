"""X W^T and both of its gradients, each with its own gradients: for derivatives of any order, forward mode and vmap.

All three are linear in each of two tensors, and the derivatives of each are the other two. `block_linear` uses these
where torch.func or forward-mode differentiation is at work, and in a backward pass that is itself differentiated.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, ContextManager, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparse_ops.operators import OPERATORS
from sparse_ops.pattern import BlockIndex


def compiling() -> bool:
    """Whether torch.compile or torch.export is at work."""
    is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", None)  # not in older torch
    return is_compiling is not None and bool(is_compiling())


def wanted() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which registered operators do not know."""
    if compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a function of plain parts at its inputs, None where none is wanted, with a graph of their own.

    For a backward pass that is itself differentiated: `inputs` are then those of the forward pass, and dy is as its
    result. Autocast has had its say in the forward pass.
    """
    with torch.enable_grad(), without_autocast(dy.device.type):
        # One input may be made from another, as where a layer is used twice: what goes that way is not for us to add.
        parts = [None if t is None else t.view_as(t) for t in inputs]
        y = function(*parts)
        wanted = [t for t in parts if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in inputs)


def without_autocast(kind: str) -> ContextManager[Any]:
    """Where no product is cast, on a device of this kind: for a backward pass, as its forward pass has been cast."""
    return contextlib.nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


_NO_GRADIENT = (None, None, None)  # of index, kernel and block size


class _Bilinear(torch.autograd.Function):
    """A map of two tensors (and index, kernel, block size) that is linear in each."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        first, second, *ctx.rest = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)

    @classmethod
    def jvp_of(cls, ctx: Any, first_tangent: Tensor | None, second_tangent: Tensor | None) -> Tensor:
        """The product rule."""
        first, second = ctx.saved_tensors
        terms = []
        if first_tangent is not None:
            terms.append(cls.apply(first_tangent, second, *ctx.rest))
        if second_tangent is not None:
            terms.append(cls.apply(first, second_tangent, *ctx.rest))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    @classmethod
    def each(cls, info: Any, in_dims: Any, first: Tensor, second: Tensor, *rest: Any) -> tuple[Tensor, int]:
        """One product for each member of a batch, which may have positions of its own."""
        index, *others = rest

        def member(tensors: Sequence[Tensor], dims: Any, i: int) -> list[Tensor]:
            return [t if d is None else t.select(d, i) for t, d in zip(tensors, dims)]

        dims_of_index = in_dims[2] or [None] * len(index)
        members = [
            cls.apply(*member((first, second), in_dims, i), BlockIndex(*member(index, dims_of_index, i)), *others)
            for i in range(info.batch_size)
        ]
        return torch.stack(members), 0

    @classmethod
    def batched(cls, info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        """One product where all members of a batch have one weight, values and positions; else one for each."""
        one = in_dims[1] is None and all(d is None for d in in_dims[2] or ())
        return cls.as_tokens(in_dims, *inputs) if one else cls.each(info, in_dims, *inputs)

    @classmethod
    def as_tokens(cls, in_dims: Any, first: Tensor, second: Tensor, *rest: Any) -> tuple[Tensor, int]:
        """One product for a batch of activations and one weight."""
        batch = first.movedim(in_dims[0], 0)
        return cls.apply(batch.flatten(0, 1), second, *rest).unflatten(0, batch.shape[:2]), 0


class _Product(_Bilinear):
    """x [T, in], values [nnz, b, b] -> X W^T [T, out]."""

    @staticmethod
    def forward(x: Tensor, values: Tensor, index: BlockIndex, kernel: str, block_size: int) -> Tensor:
        return OPERATORS.forward(x, values, None, list(index), kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, values = ctx.saved_tensors
        return (
            grad_input(dy, values, *ctx.rest) if ctx.needs_input_grad[0] else None,
            grad_values(x, dy, *ctx.rest) if ctx.needs_input_grad[1] else None,
            *_NO_GRADIENT,
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dvalues: Tensor | None, *_: Any) -> Tensor:
        return _Product.jvp_of(ctx, dx, dvalues)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return _Product.batched(info, in_dims, *inputs)


class _GradInput(_Bilinear):
    """dy [T, out], values [nnz, b, b] -> dY W [T, in]."""

    @staticmethod
    def forward(dy: Tensor, values: Tensor, index: BlockIndex, kernel: str, block_size: int) -> Tensor:
        return OPERATORS.grad_input(dy, values, list(index), kernel)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Any, ...]:
        dy, values = ctx.saved_tensors
        return (
            product(dx, values, *ctx.rest) if ctx.needs_input_grad[0] else None,
            grad_values(dx, dy, *ctx.rest) if ctx.needs_input_grad[1] else None,
            *_NO_GRADIENT,
        )

    @staticmethod
    def jvp(ctx: Any, ddy: Tensor | None, dvalues: Tensor | None, *_: Any) -> Tensor:
        return _GradInput.jvp_of(ctx, ddy, dvalues)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return _GradInput.batched(info, in_dims, *inputs)


class _GradValues(_Bilinear):
    """x [T, in], dy [T, out] -> dY^T X at the blocks, [nnz, b, b]."""

    @staticmethod
    def forward(x: Tensor, dy: Tensor, index: BlockIndex, kernel: str, block_size: int) -> Tensor:
        return OPERATORS.grad_values(x, dy, list(index), block_size, kernel, False)[0]

    @staticmethod
    def backward(ctx: Any, dvalues: Tensor) -> tuple[Any, ...]:
        x, dy = ctx.saved_tensors
        return (
            grad_input(dy, dvalues, *ctx.rest) if ctx.needs_input_grad[0] else None,
            product(x, dvalues, *ctx.rest) if ctx.needs_input_grad[1] else None,
            *_NO_GRADIENT,
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, ddy: Tensor | None, *_: Any) -> Tensor:
        return _GradValues.jvp_of(ctx, dx, ddy)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return _GradValues.each(info, in_dims, *inputs)


product, grad_input, grad_values = _Product.apply, _GradInput.apply, _GradValues.apply
