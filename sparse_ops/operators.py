"""The products as torch operators that only multiply: which code runs, their fakes and how many FLOPs they execute."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from sparse_ops import native, reference
from sparse_ops.pattern import BlockIndex

KERNELS = ("auto", "native", "torch")


def select(kernel: str, x: Tensor, block_size: int) -> Any:
    """The kernel module for this call: native code where it can be had and takes the input, else plain torch."""
    if kernel == "torch":
        return reference
    if native.supports(x, block_size) and native.available():
        return native
    if kernel == "native":
        if native.supports(x, block_size):
            raise ValueError(f"kernel native: expected native kernels, found none: {native.why_not()}")
        raise ValueError(f"kernel native: expected float32 or bfloat16 on the CPU, found {x.dtype} on {x.device}")
    return reference


def has_native() -> bool:
    """Whether the native kernels can be had, for operators that fall back where they cannot."""
    return native.available()


if hasattr(torch, "compiler") and hasattr(torch.compiler, "assume_constant_result"):
    torch.compiler.assume_constant_result(has_native)  # marks it: not for torch.compile to trace


def _forward(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str) -> Tensor:
    return select(kernel, x, values.shape[-1]).forward(x, values, BlockIndex(*index), bias)


def _forward_gelu(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str, with_slope: bool
) -> tuple[Tensor, Tensor]:
    return select(kernel, x, values.shape[-1]).forward_gelu(x, values, BlockIndex(*index), bias, with_slope)


def _grad_input(dy: Tensor, values: Tensor, index: list[Tensor], kernel: str, slope: Tensor | None = None) -> Tensor:
    return select(kernel, dy, values.shape[-1]).grad_input(dy, values, BlockIndex(*index), slope)


def _grad_values(
    x: Tensor, dy: Tensor, index: list[Tensor], block_size: int, kernel: str, with_bias: bool
) -> tuple[Tensor, Tensor]:
    return select(kernel, x, block_size).grad_values(x, dy, BlockIndex(*index), block_size, with_bias)


class Operators(NamedTuple):
    """The products by name: registered with torch, or plain functions where torch cannot."""

    forward: Any
    forward_gelu: Any
    grad_input: Any
    grad_values: Any


def registered() -> Operators:
    """Register the products with torch, so that torch.compile, opcheck and the profiler know them."""

    def define(name: str, function: Callable[..., Any], schema: str) -> Any:
        return torch.library.custom_op(f"sparse_ops::{name}", function, mutates_args=(), schema=schema)

    product = "Tensor x, Tensor values, Tensor? bias, Tensor[] index, str kernel"
    forward = define("block_linear", _forward, f"({product}) -> Tensor")
    forward_gelu = define("block_linear_gelu", _forward_gelu, f"({product}, bool with_slope) -> (Tensor, Tensor)")
    grad_input = define(
        "block_linear_grad_input",
        _grad_input,
        "(Tensor dy, Tensor values, Tensor[] index, str kernel, Tensor? slope=None) -> Tensor",
    )
    grad_values = define(
        "block_linear_grad_values",
        _grad_values,
        "(Tensor x, Tensor dy, Tensor[] index, int block_size, str kernel, bool with_bias) -> (Tensor, Tensor)",
    )

    @forward.register_fake
    def fake_forward(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str) -> Tensor:
        return x.new_empty(x.shape[0], BlockIndex(*index).grid[0] * values.shape[-1])

    @forward_gelu.register_fake
    def fake_forward_gelu(
        x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], kernel: str, with_slope: bool
    ) -> tuple[Tensor, Tensor]:
        y = fake_forward(x, values, bias, index, kernel)
        return y, torch.empty_like(y) if with_slope else y.new_empty(0)

    @grad_input.register_fake
    def fake_grad_input(
        dy: Tensor, values: Tensor, index: list[Tensor], kernel: str, slope: Tensor | None = None
    ) -> Tensor:
        return dy.new_empty(dy.shape[0], BlockIndex(*index).grid[1] * values.shape[-1])

    @grad_values.register_fake
    def fake_grad_values(
        x: Tensor, dy: Tensor, index: list[Tensor], block_size: int, kernel: str, with_bias: bool
    ) -> tuple[Tensor, Tensor]:
        values = x.new_empty(index[0].shape[0], block_size, block_size)
        return values, x.new_empty(dy.shape[1] if with_bias else 0)

    _register_flops()
    return Operators(forward, forward_gelu, grad_input, grad_values)


def plain() -> Operators:
    """The products for torch releases without torch.library.custom_op."""
    return Operators(_forward, _forward_gelu, _grad_input, _grad_values)


def _register_flops() -> None:
    """Tell torch's FlopCounterMode what each product executes."""
    from torch.utils.flop_counter import register_flop_formula

    def product(x: Tensor, values: Tensor, bias: Any, index: list[Tensor], kernel: str, *_: Any, out_val: Any) -> int:
        return product_flops(x, BlockIndex(*index), values.shape[-1], kernel)

    def grad_input(dy: Tensor, values: Tensor, index: list[Tensor], kernel: str, *_: Any, out_val: Any) -> int:
        return product_flops(dy, BlockIndex(*index), values.shape[-1], kernel)

    def grad_values(x: Tensor, dy: Tensor, index: list[Tensor], b: int, kernel: str, _: bool, out_val: Any) -> int:
        return product_flops(x, BlockIndex(*index), b, kernel)

    known = torch.ops.sparse_ops
    register_flop_formula([known.block_linear, known.block_linear_gelu], get_raw=True)(product)
    register_flop_formula(known.block_linear_grad_input, get_raw=True)(grad_input)
    register_flop_formula(known.block_linear_grad_values, get_raw=True)(grad_values)


def product_flops(x: Tensor, index: BlockIndex, block_size: int, kernel: str) -> int:
    """Two for each multiply-add of a token and a weight that exists; plain torch multiplies with the others, too."""
    blocks = index.rows.numel()
    if not x.is_meta and select(kernel, x, block_size) is reference:
        blocks = index.grid[0] * index.grid[1]
    return 2 * x.shape[0] * blocks * block_size**2


OPERATORS = registered() if hasattr(torch.library, "custom_op") else plain()
