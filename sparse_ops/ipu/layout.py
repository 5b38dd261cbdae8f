"""What a sparse layer is to popsparse, and translation between slots and the layout of a device.

Slots are canonical: positions and values [nnz, b, b] in an order of their own, the same on every engine. A device holds
the same layer as metaInfo (16-bit codes of positions) and nz (values, one-dimensional, padded, in the plan's order).
An `Encoder` translates; popsparse's own is in `host.py`, the simulator brings another.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol, Sequence

import torch
from torch import Tensor

ABI_VERSION = 1  # of the native op; csrc/ipu/layer_spec.hpp has the same number
OPERATION = "BlockSparseLinear"
DOMAIN = "ai.graphcore"


@dataclass(frozen=True)
class LayerPlan:
    """All that decides a layer's layout on a device; equal plans give equal layouts.

    in_features, out_features, block_size: in elements. blocks: number of non-zero blocks. batch: rows of x in one
    micro-batch (sequences x tokens). Proportions are decimal text, because host and device must pass the very same
    characters to popsparse. partials, data_type: "half" or "float".
    """

    layer: str
    in_features: int
    out_features: int
    block_size: int
    blocks: int
    batch: int
    available_memory_proportion: str
    meta_info_bucket_oversize_proportion: str
    partials: str
    data_type: str

    @property
    def dtype(self) -> torch.dtype:
        """torch's name of the data type: float16 or float32."""
        return torch.float16 if self.data_type == "half" else torch.float32

    def attributes(self) -> dict[str, int | str]:
        """The custom op's attributes by name; the data type is not among them: the op takes it from x."""
        values = asdict(self)
        blocks, partials, _ = values.pop("blocks"), values.pop("partials"), values.pop("data_type")
        values.update(nonzeros=blocks * self.block_size**2, partials_type=partials, abi=ABI_VERSION)
        return values


class Encoded(NamedTuple):
    """A layer in device layout."""

    meta_info: Tensor  # int16 [m], the bits of uint16 codes
    arrays: list[Tensor]  # float32 [n] each


class Decoded(NamedTuple):
    """A layer by blocks, in any order."""

    rows: Tensor  # int32 [nnz]
    cols: Tensor  # int32 [nnz]
    arrays: list[Tensor]  # float32 [nnz, b, b] each


class Encoder(Protocol):
    """Translation between slots and one device's layout. Every method raises ValueError that names the layer."""

    def sizes(self, plan: LayerPlan) -> tuple[int, int]:
        """Elements (m, n) of metaInfo and of nz. Refuses a plan that the device cannot have."""

    def encode(self, plan: LayerPlan, rows: Tensor, cols: Tensor, arrays: Sequence[Tensor]) -> Encoded:
        """Slots to device layout, for weights and whatever moves with them.

        rows, cols int32 [nnz]; arrays of any floating dtype [nnz, b, b], in slot order. Refuses positions that lie
        outside the grid or are taken twice.
        """

    def decode(self, plan: LayerPlan, meta_info: Tensor, arrays: Sequence[Tensor]) -> Decoded:
        """Device layout to blocks; meta_info int16 [m], arrays of any floating dtype [n].

        Refuses metaInfo of another plan, and padding that is not zero, because it means mixed layouts.
        """


def half_from_bits(bits: Tensor) -> Tensor:
    """int16 [m] as float16 [m], bit for bit: how metaInfo travels (PopTorch freezes integer buffers)."""
    return bits.contiguous().view(torch.float16)


def bits_from_half(carrier: Tensor) -> Tensor:
    """float16 [m] back to int16 [m]. Never compare or cast the float16 itself: many codes are NaN patterns."""
    return plain(carrier).contiguous().view(torch.int16)


def plain(tensor: Tensor) -> Tensor:
    """The tensor without PopTorch's wrapper, which would watch every use of what is made from it."""
    return tensor.detach().as_subclass(Tensor)


def to_slots(plan: LayerPlan, decoded: Decoded, rows: Tensor, cols: Tensor) -> list[Tensor]:
    """The arrays of `decoded`, float32 [nnz, b, b], in the slot order of (rows, cols), int32 [nnz] each.

    Raises ValueError when the device's positions are not the ones the host expects.
    """
    n_cols = plan.in_features // plan.block_size
    wanted = rows.long() * n_cols + cols.long()
    found = decoded.rows.long() * n_cols + decoded.cols.long()
    wanted_order, found_order = wanted.argsort(), found.argsort()
    if not torch.equal(wanted[wanted_order], found[found_order]):
        missing = int((~torch.isin(wanted, found)).sum())
        raise ValueError(
            f"sparse layer {plan.layer!r}: the device's metaInfo lacks {missing} of the {wanted.numel()} expected "
            "block positions: a pattern was changed on one side only (was it uploaded?)"
        )
    place = torch.empty_like(wanted_order)
    place[wanted_order] = found_order
    return [array[place] for array in decoded.arrays]
