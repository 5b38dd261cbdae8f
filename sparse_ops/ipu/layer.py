"""The sparse layer as PopTorch runs it: popsparse's product through `poptorch.custom_op`, patterns as data.

A pattern is streamed to a compiled executable as a buffer, so changing it never compiles anything. metaInfo's 16-bit
codes travel as a float16 buffer: PopTorch turns integer buffers into constants of the executable.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor, nn

from sparse_ops.functional import block_linear
from sparse_ops.ipu.layout import (
    DOMAIN,
    OPERATION,
    Encoder,
    LayerPlan,
    bits_from_half,
    half_from_bits,
    plain,
    to_slots,
)
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.pattern import BlockPattern


def import_poptorch() -> Any:
    """PopTorch, imported only when an IPU is asked for. Raises ValueError that says what to install."""
    try:
        import poptorch
    except ImportError as error:
        raise ValueError(
            f"poptorch cannot be imported ({error}): enable a Poplar SDK and install its poptorch wheel, or set "
            "engine.device: simulated"
        ) from None
    return poptorch


class IpuBlockSparseLinear(nn.Module):
    """y = x W^T + bias with W in device layout: Parameters `nz_values` [n] and `bias` [out], buffer `meta_info` [m].

    Parameters are of the plan's dtype, meta_info float16. Takes the pattern and the values of a BlockSparseLinear.
    `poptorch` is the module that gives PopTorch's interface: PopTorch itself or the simulator. plan.batch must be the
    rows of x in one micro-batch. Raises ValueError when plan and layer disagree.
    """

    meta_info: Tensor

    def __init__(self, layer: BlockSparseLinear, plan: LayerPlan, encoder: Encoder, poptorch: Any) -> None:
        super().__init__()
        expected = (layer.out_features, layer.in_features, layer.block_size, layer.values.shape[0])
        found = (plan.out_features, plan.in_features, plan.block_size, plan.blocks)
        if expected != found:
            raise ValueError(
                f"sparse layer {plan.layer!r}: expected a plan for (out, in, block size, blocks) {expected}, "
                f"found {found}"
            )
        self.plan, self._encoder, self._poptorch = plan, encoder, poptorch
        encoded = encoder.encode(plan, layer.rows.cpu(), layer.cols.cpu(), [layer.values])
        self.nz_values = nn.Parameter(encoded.arrays[0].to(plan.dtype))
        # It has no gradient. But without this flag PopTorch detaches it on IPU 0 before any block begins, and PopART
        # then sends it to its layer's IPU in every micro-batch (docs/ipu.md).
        self.register_buffer("meta_info", half_from_bits(encoded.meta_info.clone()).requires_grad_())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(plan.dtype).clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [*, in] -> [*, out], both of the plan's dtype; outside an IPU the same product in float32 on the host.

        Raises ValueError on an IPU when x has other than plan.batch rows.
        """
        rows = x.reshape(-1, self.plan.in_features)
        # Chosen here, because outside an IPU custom_op would silently return zeros.
        y = self._on_ipu(rows) if self._poptorch.isRunningOnIpu() else self._on_host(rows)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.plan.out_features)

    def _on_ipu(self, rows: Tensor) -> Tensor:
        plan = self.plan
        if rows.shape[0] != plan.batch:
            raise ValueError(f"sparse layer {plan.layer!r}: expected {plan.batch} rows of x, found {rows.shape[0]}")
        example = rows.new_zeros(plan.batch, plan.out_features)
        (y,) = self._poptorch.custom_op(
            (rows, self.meta_info, self.nz_values),  # x first: the output takes its type
            OPERATION,
            DOMAIN,
            1,
            example_outputs=(example,),
            attributes=plan.attributes(),
        )
        return y

    def _on_host(self, rows: Tensor) -> Tensor:
        plan = self.plan
        decoded = self._encoder.decode(plan, bits_from_half(self.meta_info), [self.nz_values])
        pattern = BlockPattern((plan.out_features, plan.in_features), plan.block_size, decoded.rows, decoded.cols)
        return block_linear(rows.float(), decoded.arrays[0], pattern).to(rows.dtype)

    def read_slots(self, rows: Tensor, cols: Tensor, moments: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Values, and moments given in device layout [n], as float32 [nnz, b, b] in the slot order of (rows, cols).

        rows, cols int32 [nnz]. Raises ValueError when the device's positions are others, or moments in another layout.
        """
        arrays = [plain(x) for x in (self.nz_values, *moments)]
        decoded = self._encoder.decode(self.plan, bits_from_half(self.meta_info), arrays)
        values, *rest = to_slots(self.plan, decoded, rows, cols)
        return values, rest

    @torch.no_grad()
    def write_slots(self, rows: Tensor, cols: Tensor, values: Tensor, moments: Sequence[Tensor] = ()) -> list[Tensor]:
        """Take new positions and values, in place; returns the moments [nnz, b, b] in device layout, float32 [n].

        rows, cols int32 [nnz], values [nnz, b, b]. Only the host's tensors change: the caller uploads weights and
        moments together. Raises ValueError for positions that a pattern cannot have.
        """
        encoded = self._encoder.encode(self.plan, rows, cols, [values, *moments])
        self.meta_info.copy_(half_from_bits(encoded.meta_info))
        self.nz_values.copy_(encoded.arrays[0])
        return encoded.arrays[1:]

    def _apply(self, fn: Any, *args: Any) -> IpuBlockSparseLinear:
        # .float(), .to(dtype) and the like must not turn codes into numbers.
        bits = self.meta_info
        super()._apply(fn, *args)
        if self.meta_info.dtype != torch.float16:
            self.meta_info = bits
        return self

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return (
            f"in_features={self.plan.in_features}, out_features={self.plan.out_features}, "
            f"block_size={self.plan.block_size}, blocks={self.plan.blocks}, nz={self.nz_values.numel()}, "
            f"meta_info={self.meta_info.numel()}"
        )
