"""attention: that of a BERT layer, from the joined projection of its queries, keys and values, as one operator.

On the CPU in float32 a native kernel; no mask is kept, since what is dropped follows from a key (random_bits.py).
Elsewhere torch's scaled_dot_product_attention. B sequences, S tokens each, H hidden, N heads.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ops import differentiable, native_attention
from sparse_ops.operators import KERNELS, has_native
from sparse_ops.random_bits import kept, threshold


def attention(qkv: Tensor, key_mask: Tensor, heads: int, dropout: float, key: int, kernel: str) -> Tensor:
    """softmax(Q K^T / sqrt(H / N)) V of each head, with dropout of the probabilities: [B, S, H].

    qkv [B, S, 3H]: queries, keys and values, the heads of each one after another. key_mask [B, S] bool is True where a
    token may be seen; a sequence in which none may gives zeros. kernel: one of operators.KERNELS; all but "torch" take
    the native one for what it supports (float32 on the CPU, heads of a multiple of 16 features). There
    random_bits.kept((B, N, S, S), dropout, key) is what probabilities are multiplied by; torch's own attention draws
    from torch's generator instead. Differentiable; torch's own, as torch has it, twice with dropout only.
    Raises ValueError when a shape, the mask's dtype or device, the probability or the kernel's name is wrong.
    """
    _check(qkv, key_mask, heads, kernel)
    threshold(dropout)  # refuses what is no probability
    if _is_native(qkv, heads, kernel):
        out: Tensor = torch.ops.sparse_ops.attention(qkv, key_mask, heads, dropout, key)[0]
        return out
    mask = key_mask[:, None, None, :]
    return _joined(F.scaled_dot_product_attention(*_parts(qkv, heads), attn_mask=mask, dropout_p=dropout))


def _parts(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, N, S, H / N]."""
    batch, length, size = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    # Cut along the last axis, not by a permuted view: its gradient is written once, already contiguous.
    parts = (part.view(batch, length, heads, size // heads).transpose(1, 2) for part in qkv.split(size, dim=-1))
    query, keys, value = parts
    return query, keys, value


def _joined(context: Tensor) -> Tensor:
    """[B, N, S, H / N] -> [B, S, H]."""
    return context.transpose(1, 2).flatten(2)


def _from_parts(qkv: Tensor, key_mask: Tensor, heads: int, dropout: float, key: int) -> Tensor:
    """What the native kernel gives, from parts that can be differentiated any number of times; makes [B, N, S, S]."""
    query, keys, value = _parts(qkv, heads)
    nothing_seen = ~key_mask.any(1)[:, None, None, None]
    scores = (query @ keys.transpose(2, 3)) / math.sqrt(query.shape[-1])
    probabilities = scores.masked_fill(~(key_mask[:, None, None, :] | nothing_seen), -math.inf).softmax(-1)
    if dropout:
        probabilities = probabilities * kept(tuple(probabilities.shape), dropout, key)
    return _joined((probabilities @ value).masked_fill(nothing_seen, 0.0))


def _check(qkv: Tensor, key_mask: Tensor, heads: int, kernel: str) -> None:
    if heads < 1 or qkv.dim() != 3 or qkv.shape[-1] % (3 * heads):
        raise ValueError(f"qkv: expected [B, S, 3H] with H a multiple of {heads} heads, found {list(qkv.shape)}")
    if key_mask.shape != qkv.shape[:2] or key_mask.dtype != torch.bool or key_mask.device != qkv.device:
        found = f"{key_mask.dtype} {list(key_mask.shape)} on {key_mask.device}"
        raise ValueError(f"key_mask: expected {torch.bool} {list(qkv.shape[:2])} on {qkv.device}, found {found}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {KERNELS}, found {kernel!r}")


def _is_native(qkv: Tensor, heads: int, kernel: str) -> bool:
    """Whether the native kernel takes it; never in torch.func or forward mode, which its operator does not know."""
    fits = native_attention.supports(qkv, heads) and qkv.numel() > 0
    return kernel != "torch" and fits and _REGISTERED and not differentiable.wanted() and has_native()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, key_mask, ctx.heads, ctx.dropout, ctx.key = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, key_mask, output[1])


def _backward(ctx: Any, dout: Tensor | None, _: Any) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 5
    if torch.is_grad_enabled():  # create_graph: the gradient is to be differentiated
        qkv, key_mask, _ = ctx.saved_tensors
        of = {"key_mask": key_mask, "heads": ctx.heads, "dropout": ctx.dropout, "key": ctx.key}
        return (*differentiable.gradients(partial(_from_parts, **of), (qkv,), dout), None, None, None, None)
    dqkv = torch.ops.sparse_ops.attention_gradient(dout, *ctx.saved_tensors, ctx.dropout, ctx.key)
    return dqkv, None, None, None, None


def _register() -> None:
    """As operators, so that torch.compile, opcheck and the profiler know them, and FlopCounterMode what they cost."""
    from torch.utils.flop_counter import register_flop_formula

    forward = torch.library.custom_op(
        "sparse_ops::attention",
        native_attention.forward,
        mutates_args=(),
        schema="(Tensor qkv, Tensor key_mask, int heads, float dropout, int key) -> (Tensor, Tensor)",
    )
    gradient = torch.library.custom_op(
        "sparse_ops::attention_gradient",
        native_attention.gradient,
        mutates_args=(),
        schema="(Tensor dout, Tensor qkv, Tensor key_mask, Tensor rows, float dropout, int key) -> Tensor",
    )

    @forward.register_fake
    def fake_forward(qkv: Tensor, key_mask: Tensor, heads: int, *_: Any) -> tuple[Tensor, Tensor]:
        batch, length, size = qkv.shape
        return qkv.new_empty(batch, length, size // 3), qkv.new_empty(batch, heads, length, 2)

    @gradient.register_fake
    def fake_gradient(dout: Tensor, qkv: Tensor, *_: Any) -> Tensor:
        return qkv.new_empty(qkv.shape)

    def flops_forward(qkv: Tensor, *_: Any, out_val: Any) -> int:
        return _flops(2, qkv)

    def flops_gradient(dout: Tensor, qkv: Tensor, *_: Any, out_val: Any) -> int:
        return _flops(5, qkv)

    forward.register_autograd(_backward, setup_context=_setup_context)
    register_flop_formula(torch.ops.sparse_ops.attention, get_raw=True)(flops_forward)
    register_flop_formula(torch.ops.sparse_ops.attention_gradient, get_raw=True)(flops_gradient)


def _flops(products: int, qkv: Tensor) -> int:
    """Two for each multiply-add of a feature of a query and a key."""
    batch, length, size = qkv.shape
    return products * 2 * batch * length**2 * (size // 3)


_REGISTERED = hasattr(torch.library, "custom_op")  # not in torch 2.0, which PopTorch pins: torch's attention runs there
if _REGISTERED:
    _register()
