"""The native attention behind sparse_ops.attention; compiled with sparse_ops.native's and found as those are."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparse_ops import native
from sparse_ops.native import Call

WIDTH = 16  # a head's features are a multiple of this


def supports(qkv: Tensor, heads: int) -> bool:
    """Whether the kernel takes this input: float32 on the CPU, and heads of a multiple of WIDTH features."""
    return qkv.device.type == "cpu" and qkv.dtype == torch.float32 and qkv.shape[-1] % (3 * heads * WIDTH) == 0


# The structure of csrc/cpu/api.hpp, which says what its fields mean.
class _AttentionCall(Call):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "seen", "dout", "out", "rows")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "heads", "width", "key")),
        ("limit", ctypes.c_int32),
        ("kept", ctypes.c_float),
        ("parallel", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("level", ctypes.c_int32),
    )


def forward(qkv: Tensor, key_mask: Tensor, heads: int, dropout: float, key: int) -> tuple[Tensor, Tensor]:
    """The result [B, S, H], and two numbers of every row that the backward pass needs [B, heads, S, 2].

    Equal inputs give bit-equal results whatever the number of threads is. Raises MemoryError without memory for a
    workspace.
    """
    batch, length, size = qkv.shape
    out, rows = qkv.new_empty(batch, length, size // 3), qkv.new_empty(batch, heads, length, 2)
    _run(qkv, key_mask, None, out, rows, dropout, key)
    return out, rows


def backward(dout: Tensor, qkv: Tensor, key_mask: Tensor, rows: Tensor, dropout: float, key: int) -> Tensor:
    """The gradient of qkv [B, S, 3H] from that of the result; arguments and errors as of `forward`."""
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    _run(qkv, key_mask, dout, dqkv, rows, dropout, key)
    return dqkv


def drop_limit(dropout: float) -> int:
    """A probability is dropped where its random bits, as a signed number of 32 bits, are below this."""
    return min(round(dropout * 2.0**32), 2**32 - 1) - 2**31


def _run(
    qkv: Tensor, key_mask: Tensor, dout: Tensor | None, out: Tensor, rows: Tensor, dropout: float, key: int
) -> None:
    qkv, key_mask = qkv.detach().contiguous(), key_mask.contiguous()
    dout = None if dout is None else dout.detach().contiguous()
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
        key=key,
        limit=drop_limit(dropout),
        kept=1.0 / (1.0 - dropout),
        **native.threads_and_level(),
    )
    native.run("sparse_ops_attention", call)
