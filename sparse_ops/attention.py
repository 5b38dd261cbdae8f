"""Attention of a BERT layer from the joined projection of its queries, keys and values.

The native kernel where it takes the input, else torch's scaled_dot_product_attention. B sequences, S tokens each, H
hidden, N heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ops import differentiable, native, native_attention


def attention(qkv: Tensor, key_mask: Tensor, heads: int, dropout: float, kernel: str) -> Tensor:
    """softmax(Q K^T / sqrt(H / N)) V of each head, with dropout of the probabilities: [B, S, H].

    qkv [B, S, 3H]: queries, keys and values, of each the heads one after another. key_mask [B, S] bool is True where a
    token may be seen; a sequence without any gives zeros. dropout in [0, 1). kernel: one of
    sparse_ops.functional.KERNELS; "torch" is torch's attention, which the others use too where the native kernel does
    not take the input (it takes float32 on a CPU, and heads of a multiple of 16 features).
    Both draw dropout from torch's default generator: torch's a number for each probability, ours one key for a call.
    Differentiable, by the native kernel once. Raises ValueError when a shape or a dtype is wrong.
    """
    if qkv.dim() != 3 or qkv.shape[-1] % (3 * heads):
        raise ValueError(f"qkv: expected [B, S, 3H] with H a multiple of {heads} heads, found {list(qkv.shape)}")
    if key_mask.shape != qkv.shape[:2] or key_mask.dtype != torch.bool:
        found = f"{key_mask.dtype} {list(key_mask.shape)}"
        raise ValueError(f"key_mask: expected bool {list(qkv.shape[:2])}, found {found}")
    if not _native_takes(qkv, heads, kernel):
        return _torch_attention(qkv, key_mask, heads, dropout)
    key = torch.empty((), dtype=torch.int64).random_() if dropout else None
    out: Tensor = torch.ops.sparse_ops.attention(qkv, key_mask, heads, dropout, key)[0]
    return out


def dropout_mask(key: Tensor, batch: int, heads: int, length: int, dropout: float) -> Tensor:
    """Which probabilities the native kernel keeps with this key (int64, 0-d): bool [B, N, S, S].

    For tests and for those who want to see it; the kernel makes it as it goes (csrc/cpu/random.hpp).
    """
    halves = _split_mix(key + (torch.arange(batch * heads * length)[:, None] + 1) * -0x61C8864680B583EB)
    x = (torch.arange(length) + (halves & 0xFFFFFFFF)) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ _shifted(halves, 32)
    bits = ((x ^ (x >> 15)) * 0x846CA68B).to(torch.int32)  # the lower 32, signed
    return (bits >= native_attention.drop_limit(dropout)).view(batch, heads, length, length)


def _split_mix(z: Tensor) -> Tensor:
    """The last steps of splitmix64 (Steele, Lea and Flood 2014) in int64, which wraps around."""
    z = (z ^ _shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """z >> by without copies of the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _native_takes(qkv: Tensor, heads: int, kernel: str) -> bool:
    if kernel == "torch" or not _REGISTERED or differentiable.wanted():
        return False
    return native_attention.supports(qkv, heads) and native.available()


def _torch_attention(qkv: Tensor, key_mask: Tensor, heads: int, dropout: float) -> Tensor:
    batch, length, size = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    # Cut along the last axis, not by a permuted view: its gradient is written once, already contiguous.
    query, key, value = (
        part.view(batch, length, heads, size // heads).transpose(1, 2)  # [B, N, S, H / N]
        for part in qkv.split(size, dim=-1)
    )
    mask = key_mask[:, None, None, :]
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return context.transpose(1, 2).reshape(batch, length, size)


def _forward(
    qkv: Tensor, key_mask: Tensor, heads: int, dropout: float, key: Tensor | None
) -> tuple[Tensor, Tensor]:
    return native_attention.forward(qkv, key_mask, heads, dropout, _number(key))


def _grad(
    dout: Tensor, qkv: Tensor, key_mask: Tensor, rows: Tensor, dropout: float, key: Tensor | None
) -> Tensor:
    return native_attention.backward(dout, qkv, key_mask, rows, dropout, _number(key))


def _number(key: Tensor | None) -> int:
    return 0 if key is None else int(key)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, key_mask, _, ctx.dropout, key = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, key_mask, output[1], key)


def _backward(ctx: Any, dout: Tensor | None, _: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph: the gradient is to be differentiated
        raise NotImplementedError('attention: the native kernel has no second derivative, use kernel="torch"')
    qkv, key_mask, rows, key = ctx.saved_tensors
    if dout is not None:
        dout = torch.ops.sparse_ops.attention_grad(dout, qkv, key_mask, rows, ctx.dropout, key)
    return dout, None, None, None, None


def _register() -> None:
    """As operators, so that torch.compile, opcheck and the profiler know them."""
    from torch.utils.flop_counter import register_flop_formula

    schema = "(Tensor qkv, Tensor key_mask, int heads, float dropout, Tensor? key) -> (Tensor, Tensor)"
    forward = torch.library.custom_op("sparse_ops::attention", _forward, mutates_args=(), schema=schema)
    schema = "(Tensor dout, Tensor qkv, Tensor key_mask, Tensor rows, float dropout, Tensor? key) -> Tensor"
    grad = torch.library.custom_op("sparse_ops::attention_grad", _grad, mutates_args=(), schema=schema)

    @forward.register_fake
    def fake_forward(qkv: Tensor, key_mask: Tensor, heads: int, *_: Any) -> tuple[Tensor, Tensor]:
        batch, length, size = qkv.shape
        return qkv.new_empty(batch, length, size // 3), qkv.new_empty(batch, heads, length, 2)

    @grad.register_fake
    def fake_grad(dout: Tensor, qkv: Tensor, *_: Any) -> Tensor:
        return qkv.new_empty(qkv.shape)

    def flops(products: int, qkv: Tensor) -> int:
        """Two for each multiply-add of queries, keys and their features."""
        batch, length, size = qkv.shape
        return products * 2 * batch * length**2 * (size // 3)

    def flops_forward(qkv: Tensor, *_: Any, out_val: Any) -> int:
        return flops(2, qkv)

    def flops_grad(dout: Tensor, qkv: Tensor, *_: Any, out_val: Any) -> int:
        return flops(5, qkv)

    forward.register_autograd(_backward, setup_context=_setup_context)
    register_flop_formula(torch.ops.sparse_ops.attention, get_raw=True)(flops_forward)
    register_flop_formula(torch.ops.sparse_ops.attention_grad, get_raw=True)(flops_grad)


_REGISTERED = hasattr(torch.library, "custom_op")  # not so in the torch that PopTorch pins: there it is torch's attention
if _REGISTERED:
    _register()
