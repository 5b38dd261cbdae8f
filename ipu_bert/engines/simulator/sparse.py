"""The sparse operation as the simulated device computes it: positions from metaInfo, values from nz."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ipu_bert.engines.simulator.arithmetic import HalfArithmetic, Rounding
from ipu_bert.engines.simulator.layout import SimulatedEncoder
from sparse_ops.half import Products
from sparse_ops.ipu.layout import LayerPlan, bits_from_half


def plan_of(attributes: dict[str, Any], data_type: str) -> LayerPlan:
    """The LayerPlan that custom-op attributes came from; data_type, "half" or "float", is not among them."""
    values = dict(attributes)
    values.pop("abi")
    blocks = values.pop("nonzeros") // values["block_size"] ** 2
    return LayerPlan(blocks=blocks, partials=values.pop("partials_type"), data_type=data_type, **values)


class BlockLinear(torch.autograd.Function):
    """y = x W^T [T, out] from x [T, in], metaInfo float16 [m] and nz [n], y and nz of x's dtype.

    Differentiable in x and nz. Raises ValueError when metaInfo and nz are not of `plan` or not of one pattern.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, meta_info: Tensor, nz: Tensor, plan: LayerPlan, arithmetic: HalfArithmetic
    ) -> Tensor:
        half = x.dtype == torch.float16
        with _disable_current_modes():  # it rounds by itself
            weight = arithmetic.hold(partial(_weight, plan), [meta_info, nz])
            ctx.plan, ctx.arithmetic, ctx.weight, ctx.half = plan, arithmetic, weight, half
            ctx.save_for_backward(x)
            return arithmetic.compute(partial(_output, plan, half), [weight, x], half)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with _disable_current_modes():
            dx, dnz = ctx.arithmetic.compute(partial(_gradients, ctx.plan, ctx.half), [ctx.weight, dy, x], ctx.half)
        return dx, None, dnz, None, None


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight as the device holds it: its pattern, and values float32 [nnz, b, b]."""

    pattern: _Pattern
    values: Tensor


def _weight(plan: LayerPlan, meta_info: Tensor, nz: Tensor) -> _Weight:
    pattern = _pattern(plan, bits_from_half(meta_info).numpy().tobytes())
    (values,) = SimulatedEncoder().blocks(plan, pattern.place, [nz])
    return _Weight(pattern, values)


def _output(plan: LayerPlan, half: bool, rounding: Rounding, weight: _Weight, x: Tensor) -> Tensor:
    y = _transposed(weight.pattern.output, weight.values, x, plan, rounding)
    return rounding.in_place(y) if half else y


def _gradients(
    plan: LayerPlan, half: bool, rounding: Rounding, weight: _Weight, dy: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    pattern, b = weight.pattern, plan.block_size
    dx = _transposed(pattern.grad_input, weight.values, dy, plan, rounding)
    dvalues = pattern.grad_values.of(dy, x, rounding.key(), _half_partials(plan))
    laid_out = torch.zeros(SimulatedEncoder().sizes(plan)[1] // (b * b), b, b)
    laid_out[pattern.place] = dvalues.transpose(1, 2)
    dnz = laid_out.flatten()
    return (rounding.in_place(dx), rounding.in_place(dnz)) if half else (dx, dnz)


class _Pattern(NamedTuple):
    """What the device makes of a metaInfo: each block's place, int64 [nnz], and the three products."""

    place: Tensor
    output: Products
    grad_input: Products
    grad_values: Products


@lru_cache(maxsize=256)
def _pattern(plan: LayerPlan, meta_info: bytes) -> _Pattern:
    rows, cols, place = SimulatedEncoder().places(plan, torch.frombuffer(bytearray(meta_info), dtype=torch.int16))
    rows, cols, b = rows.long(), cols.long(), plan.block_size
    output = _by_row(rows, cols, plan.out_features // b, plan, row_step=b, term_step=1)
    grad_input = _by_row(cols, rows, plan.in_features // b, plan, row_step=1, term_step=b)
    return _Pattern(place, output, grad_input, _at_blocks(rows, cols, plan))


def _half_partials(plan: LayerPlan) -> bool:
    return plan.partials == "half" and plan.data_type == "half"


def _transposed(products: Products, values: Tensor, x: Tensor, plan: LayerPlan, rounding: Rounding) -> Tensor:
    """values [nnz, b, b] times x [T, in], tokens along the columns of each product; float32 [T, out]."""
    return products.of(values, x.t(), rounding.key(), _half_partials(plan)).flatten(0, 1).t()


def _by_row(to: Tensor, source: Tensor, count: int, plan: LayerPlan, row_step: int, term_step: int) -> Products:
    """A product for each of `count` rows (or columns) `to` of blocks: all its blocks with their `source` of x^T.

    row_step, term_step: from one row of a product, and from one term, to the next within a block of values.
    """
    b, order = plan.block_size, to.argsort(stable=True)
    within = torch.arange(b)
    a_step = (order * b * b)[:, None] + within * term_step
    b_step = ((source[order] * b)[:, None] + within) * plan.batch
    counts = torch.bincount(to, minlength=count) * b
    none = torch.zeros_like(counts)
    return Products(
        none, none, counts.cumsum(0) - counts, counts, a_step.flatten(), b_step.flatten(), b, plan.batch, row_step
    )


def _at_blocks(rows: Tensor, cols: Tensor, plan: LayerPlan) -> Products:
    """The gradient of each block from dy and x, summed over tokens."""
    b, token, first = plan.block_size, torch.arange(plan.batch), torch.zeros_like(rows)
    count = torch.full_like(rows, plan.batch)
    steps = token * plan.out_features, token * plan.in_features
    return Products(rows * b, cols * b, first, count, *steps, b, b, 1)
