"""linear_cross_entropy: the loss of a masked-language-model head, from hidden states to the sum over labels.

On the CPU in float32 scores are made once, word by word, read once for their softmax, and overwritten by their
gradient. Elsewhere, and where there is nothing to gain, torch's linear and cross_entropy. N tokens, H hidden, V words.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_ops import differentiable, native
from sparse_ops.dense import gradient, product
from sparse_ops.functional import autocast_dtype
from sparse_ops.native import Call
from sparse_ops.operators import KERNELS, has_native

MULTIPLE = 16  # of which the native kernel's tokens are made by tokens of zeros


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, ignored: int, kernel: str
) -> Tensor:
    """Sum over tokens of -log softmax(hidden weight^T + bias)[label], in nats: 0-d.

    hidden [N, H], weight [V, H], bias [V]; labels [N] int64 in [0, V), or `ignored`: no loss and no gradient. kernel:
    one of operators.KERNELS; all but "torch" take the native one for what it supports (float32 on the CPU, outside
    autocast). 16-bit scores are summed in float32. Differentiable any number of times.
    Raises ValueError when a shape, a label, their dtype or the kernel's name is wrong.
    """
    _check(hidden, weight, bias, labels, kernel)
    if not _is_native(hidden, weight, bias, kernel):
        return _plain(hidden, weight, bias, labels, ignored)
    labelled = (labels != ignored).nonzero()[:, 0]
    if not labelled.numel():
        return _plain(hidden, weight, bias, labels, ignored)
    wanted = labels[labelled]
    if wanted.min() < 0 or wanted.max() >= weight.shape[0]:
        found = [int(wanted.min()), int(wanted.max())]
        raise ValueError(f"labels: expected {ignored} or words in [0, {weight.shape[0]}), found numbers in {found}")
    loss: Tensor = _LinearCrossEntropy.apply(hidden.index_select(0, labelled), weight, bias, wanted)
    return loss


def _check(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, kernel: str) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        found = f"{list(hidden.shape)} and {list(weight.shape)}"
        raise ValueError(f"hidden and weight: expected [N, H] and [V, H], found {found}")
    for name, tensor, of in (("bias", bias, weight), ("labels", labels, hidden)):
        if tensor.shape != of.shape[:1]:
            raise ValueError(f"{name}: expected {[len(of)]}, found {list(tensor.shape)}")
    if labels.dtype != torch.int64:  # bytes would choose as a mask does
        raise ValueError(f"labels: expected torch.int64, found {labels.dtype}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {KERNELS}, found {kernel!r}")


def _is_native(hidden: Tensor, weight: Tensor, bias: Tensor, kernel: str) -> bool:
    """Whether the native kernel takes them; never in torch.func, forward mode or torch.compile."""
    fits = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (hidden, weight, bias))
    known = not differentiable.wanted() and not differentiable.compiling() and autocast_dtype(hidden) is None
    return kernel != "torch" and fits and known and has_native()


def _plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, ignored: int) -> Tensor:
    scores = F.linear(hidden, weight, bias)
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    return F.cross_entropy(scores, labels, ignore_index=ignored, reduction="sum")


# The structure of csrc/cpu/api.hpp, which says what its fields mean.
class _CrossEntropyCall(Call):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scores", "bias", "share", "largest", "sums", "dbias")),
        ("words", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("parallel", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("level", ctypes.c_int32),
    )


def _run(
    scores: Tensor, bias: Tensor, share: Tensor | None, largest: Tensor, sums: Tensor, dbias: Tensor | None
) -> None:
    bias = native.contiguous(bias)
    call = _CrossEntropyCall(
        scores=scores.data_ptr(),
        bias=bias.data_ptr(),
        share=None if share is None else share.data_ptr(),
        largest=largest.data_ptr(),
        sums=sums.data_ptr(),
        dbias=None if dbias is None else dbias.data_ptr(),
        words=scores.shape[0],
        tokens=scores.shape[1],
        **native.threads_and_level(),
    )
    native.run("sparse_ops_cross_entropy", call)


class _LinearCrossEntropy(torch.autograd.Function):
    """Of tokens that all have a label. Scores lie [V, N]: so BLAS makes them fastest, and threads share out words."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        padded = F.pad(native.contiguous(hidden), (0, 0, 0, -len(hidden) % MULTIPLE))
        scores = product(native.contiguous(weight), padded)
        largest, sums = scores.new_empty(2, len(padded))
        _run(scores, bias, None, largest, sums, None)
        own = scores[labels, torch.arange(len(labels))] + bias.detach()[labels]
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.padded, ctx.scores, ctx.largest, ctx.sums = padded, scores, largest, sums
        n = len(labels)
        return (largest[:n] - own + sums[:n].log()).sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels = ctx.saved_tensors
        # create_graph: the gradients are to be differentiated; or several are asked for at once (vmap).
        if torch.is_grad_enabled() or differentiable.wanted():

            def plain(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
                return _plain(h, w, b, labels, -1)

            return (*differentiable.gradients(plain, (hidden, weight, bias), dloss), None)
        with differentiable.without_autocast(dloss.device.type):  # it had its say in the forward pass
            return (*_gradients(ctx, hidden, weight, bias, labels, dloss), None)


def _gradients(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, dloss: Tensor
) -> tuple[Tensor | None, ...]:
    # The gradient takes the scores' place: a second pass through a graph that was kept makes them anew.
    scores = product(weight, ctx.padded) if ctx.scores is None else ctx.scores
    ctx.scores = None
    n, dbias = len(labels), torch.empty_like(bias)
    share = F.pad(dloss / ctx.sums[:n], (0, len(ctx.padded) - n))
    _run(scores, bias, share, ctx.largest, ctx.sums, dbias)
    scores[labels, torch.arange(n)] -= dloss
    dbias.index_add_(0, labels, -dloss.expand(n))
    wanted = ctx.needs_input_grad
    dhidden = gradient(scores, weight)[:n] if wanted[0] else None
    return dhidden, product(scores, ctx.padded.t()) if wanted[1] else None, dbias if wanted[2] else None
