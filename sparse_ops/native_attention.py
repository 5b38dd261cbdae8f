"""The native attention behind sparse_ops.attention; compiled with sparse_ops.native's and found as those are."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparse_ops import native
from sparse_ops.native import Call
from sparse_ops.random_bits import Dropout

MULTIPLE = 16  # of which a head's features must be


def supports(qkv: Tensor, heads: int) -> bool:
    """Whether the kernel takes this input: float32 on the CPU, and heads of a multiple of MULTIPLE features."""
    return qkv.device.type == "cpu" and qkv.dtype == torch.float32 and qkv.shape[-1] % (3 * heads * MULTIPLE) == 0


# The structure of csrc/cpu/api.hpp, which says what its fields mean.
class _AttentionCall(Call):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "seen", "dout", "out", "rows")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "heads", "width")),
        ("dropout", Dropout),
        ("parallel", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("level", ctypes.c_int32),
    )


def forward(qkv: Tensor, key_mask: Tensor, heads: int, dropout: float, key: int) -> tuple[Tensor, Tensor]:
    """The result [B, S, H], and two numbers of each row that the backward pass needs [B, heads, S, 2].

    Equal inputs give bit-equal results for a given instruction level, whatever the number of threads is. Raises
    MemoryError when memory for a workspace runs out.
    """
    batch, length, size = qkv.shape
    out, rows = qkv.new_empty(batch, length, size // 3), qkv.new_empty(batch, heads, length, 2)
    _run(qkv, key_mask, None, out, rows, Dropout.of(dropout, key))
    return out, rows


def gradient(dout: Tensor, qkv: Tensor, key_mask: Tensor, rows: Tensor, dropout: float, key: int) -> Tensor:
    """The gradient of qkv [B, S, 3H] from that of the result; the rest as `forward` had and gave it."""
    dqkv = qkv.new_empty(qkv.shape)
    _run(qkv, key_mask, dout.detach().contiguous(), dqkv, rows, Dropout.of(dropout, key))
    return dqkv


def _run(qkv: Tensor, key_mask: Tensor, dout: Tensor | None, out: Tensor, rows: Tensor, dropout: Dropout) -> None:
    qkv, key_mask = qkv.detach().contiguous(), key_mask.contiguous()
    batch, heads, length, _ = rows.shape
    call = _AttentionCall(
        qkv=qkv.data_ptr(),
        seen=key_mask.data_ptr(),
        dout=None if dout is None else dout.data_ptr(),
        out=out.data_ptr(),
        rows=rows.data_ptr(),
        batch=batch,
        length=length,
        heads=heads,
        width=qkv.shape[-1] // 3 // heads,
        dropout=dropout,
        **native.threads_and_level(),
    )
    native.run("sparse_ops_attention", call)
