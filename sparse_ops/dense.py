"""linear: torch's own, by oneDNN where that multiplies float32 with wider vectors than MKL does.

MKL takes AVX-512 on Intel's processors alone; on AMD's it leaves half of each vector unused, and of a Zen 5 half of its
speed (docs/kernels.md). torch asks oneDNN for a float32 product in convolutions only, and a linear map is one of 1x1.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_ops import differentiable
from sparse_ops.functional import autocast_dtype
from sparse_ops.operators import KERNELS
from sparse_ops.processor import vendor

# torch gives convolutions of fewer inputs, and on one thread those of 1x1 that are not dilated, to MKL all the same. At
# 1x1 a dilation changes nothing.
_INPUTS, _DILATION = 20480, 2
# Below so many multiply-adds what a convolution costs once is more than it saves; with a weight that no cache holds,
# which oneDNN puts into another order at every call, below so many tokens, too.
_WORTH_IT, _LARGE, _TOKENS_OF_LARGE = 1 << 25, 1 << 22, 512
TORCH = "torch's"  # of `library`
_TOKENS = 16  # a vector: of 30,522 tokens, no multiple of it, the gradient of a weight took four times as long


class DenseLinear(nn.Linear):
    """nn.Linear by `linear`. kernel: one of operators.KERNELS; "torch" is nn.Linear itself."""

    def __init__(self, in_features: int, out_features: int, *, kernel: str = "auto") -> None:
        super().__init__(in_features, out_features)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.kernel)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: str = "auto") -> Tensor:
    """x W^T + bias: [*, in] -> [*, out], as F.linear in all but speed and rounding. kernel: one of operators.KERNELS.

    oneDNN keeps what it has made for the last 1,024 sizes: with hundreds of token counts some 300 MB. Raises ValueError
    for another kernel's name; other errors are F.linear's.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {KERNELS}, found {kernel!r}")
    plain = kernel == "torch" or differentiable.compiling() or differentiable.wanted() or torch.jit.is_tracing()
    if plain or x.shape[-1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        return F.linear(x, weight, bias)
    if not _fits(len(weight), *(t for t in (x, weight, bias) if t is not None)):
        return F.linear(x, weight, bias)
    y = _convolved(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T without a gradient: [n, k], [m, k] -> [n, m], float32."""
    return _convolved(a, b, None) if _fits(len(b), a, b) else a @ b.t()


def gradient(dy: Tensor, x: Tensor) -> Tensor:
    """dy^T x without a gradient, the sum over tokens: [T, out], [T, in] -> [out, in], float32."""
    whole = len(dy) - len(dy) % _TOKENS
    if not _fits(dy.shape[1], x[:whole], dy):
        return dy.t() @ x
    weight = x.new_empty(dy.shape[1], x.shape[1], 1, 1)
    same, none = [1, 1], [0, 0]
    arguments = (None, same, none, [_DILATION] * 2, False, none, 1, [False, True, False])
    _, found, _ = torch.ops.aten.convolution_backward(_image(dy[:whole]), _image(x[:whole]), weight, *arguments)
    summed: Tensor = found.reshape(weight.shape[:2])
    return summed.addmm_(dy[whole:].t(), x[whole:]) if whole < len(dy) else summed


def library() -> str:
    """Which library multiplies large dense matrices of float32 here, as a checkpoint records it."""
    return "oneDNN" if _mkl_is_narrow() else TORCH


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = F.conv2d(_image(x), weight[:, :, None, None], bias, dilation=_DILATION)
    return y.permute(0, 2, 3, 1).reshape(len(x), len(weight))


def _image(x: Tensor) -> Tensor:
    """[T, n] -> one image of n channels, T pixels high, channels last: the same memory."""
    return x.contiguous().view(1, len(x), 1, -1).permute(0, 3, 1, 2)


def _fits(outputs: int, x: Tensor, *others: Tensor) -> bool:
    """Whether x [*, in], which makes so many outputs a row, goes to oneDNN."""
    if not (_mkl_is_narrow() and torch.backends.mkldnn.enabled) or x.numel() <= _INPUTS:
        return False
    features = x.shape[-1]
    large = outputs * features > _LARGE
    if x.numel() * outputs < _WORTH_IT or (large and x.numel() < _TOKENS_OF_LARGE * features):
        return False
    usual = all(t.layout == torch.strided and not t.is_nested for t in (x, *others))
    fit = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, *others))
    return usual and fit and autocast_dtype(x) is None


@functools.lru_cache(maxsize=None)
def _mkl_is_narrow() -> bool:
    known = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return known and torch.backends.cpu.get_cpu_capability() == "AVX512" and vendor() == "AuthenticAMD"
