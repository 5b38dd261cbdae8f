"""The sparse operation as the simulated device computes it: positions from metaInfo, values from nz."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ipu_bert.engines.simulator.arithmetic import PARTIAL_WIDTH, Rounding, partial_sums
from ipu_bert.engines.simulator.layout import SimulatedEncoder
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
    def forward(ctx: Any, x: Tensor, meta_info: Tensor, nz: Tensor, plan: LayerPlan, rounding: Rounding) -> Tensor:
        with _disable_current_modes():  # it rounds by itself
            return BlockLinear._forward(ctx, x, meta_info, nz, plan, rounding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        with _disable_current_modes():
            return BlockLinear._backward(ctx, dy)

    @staticmethod
    def _forward(ctx: Any, x: Tensor, meta_info: Tensor, nz: Tensor, plan: LayerPlan, rounding: Rounding) -> Tensor:
        encoder = SimulatedEncoder()
        rows, cols, place = encoder.places(plan, bits_from_half(meta_info))
        (values,) = encoder.decode(plan, bits_from_half(meta_info), [nz]).arrays
        ctx.plan, ctx.rounding = plan, rounding
        ctx.save_for_backward(x, rows.long(), cols.long(), place, values)
        y = _multiply(x, values.transpose(1, 2), rows.long(), cols.long(), plan.out_features, plan, rounding)
        return _as(x, y, rounding)

    @staticmethod
    def _backward(ctx: Any, dy: Tensor) -> Any:
        x, rows, cols, place, values = ctx.saved_tensors
        plan, rounding = ctx.plan, ctx.rounding
        dx = _multiply(dy, values, cols, rows, plan.in_features, plan, rounding)
        b = plan.block_size
        x_blocks = x.float().reshape(x.shape[0], -1, b)
        dy_blocks = dy.float().reshape(dy.shape[0], -1, b)

        def part(i: int) -> Tensor:
            cut = slice(i * PARTIAL_WIDTH, (i + 1) * PARTIAL_WIDTH)
            # [16, nnz, b] each -> [nnz, b, b]
            return torch.einsum("tkr,tkc->krc", dy_blocks[cut][:, rows], x_blocks[cut][:, cols])

        dvalues = partial_sums(part, -(-x.shape[0] // PARTIAL_WIDTH), rounding, _half_partials(plan))
        laid_out = torch.zeros(SimulatedEncoder().sizes(plan)[1] // (b * b), b, b)
        laid_out[place] = dvalues.transpose(1, 2)
        return _as(x, dx, rounding), None, _as(x, laid_out.flatten(), rounding), None, None


def _half_partials(plan: LayerPlan) -> bool:
    return plan.partials == "half" and plan.data_type == "half"


def _as(like: Tensor, x: Tensor, rounding: Rounding) -> Tensor:
    return rounding(x) if like.dtype == torch.float16 else x


def _multiply(
    x: Tensor, blocks: Tensor, to: Tensor, source: Tensor, size: int, plan: LayerPlan, rounding: Rounding
) -> Tensor:
    """out[:, to] += x[:, source] @ blocks, block by block in float32; a partial sum is rounded every 16 products."""
    b = plan.block_size
    inputs = x.float().reshape(x.shape[0], -1, b).transpose(0, 1)  # [source grid, T, b]
    out = torch.zeros(size // b, x.shape[0], b)
    per_partial = max(1, PARTIAL_WIDTH // b)
    for step, group in enumerate(_groups(to)):
        if step and step % per_partial == 0 and _half_partials(plan):
            out = rounding.keep_float(out)
        out[to[group]] += torch.bmm(inputs[source[group]], blocks[group])
    return out.transpose(0, 1).reshape(x.shape[0], size)


def _groups(to: Tensor) -> list[Tensor]:
    """Numbers of blocks, int64, grouped so that no group holds two blocks of one row (or column) `to`."""
    order = to.argsort(stable=True)
    counts = torch.bincount(to)
    first = torch.cumsum(counts, 0) - counts
    depth = torch.empty_like(order)
    depth[order] = torch.arange(order.numel()) - first[to[order]]
    return [(depth == d).nonzero().flatten() for d in range(int(counts.max()))]
