"""A device layout of the simulator's own: buckets with padding, in an order that depends on the whole pattern.

It is not popsparse's layout and need not be. It differs from slot order in every way that a mistake could hide in:
blocks are hashed to buckets, buckets have empty places, places are shuffled by a permutation that follows from all
positions together, and a block's elements are column-major. Values laid out for one pattern do not fit another.
"""

from __future__ import annotations

import zlib
from typing import Sequence

import torch
from torch import Tensor

from sparse_ops.ipu.layout import Decoded, Encoded, LayerPlan

_MAGIC = 0x1DB5
_HEADER = 2  # magic, fingerprint of the plan
_EMPTY = 0xFFFF  # as a half: a NaN, which metaInfo must survive
_BUCKET = 8  # blocks
_SPARE = 3  # empty places of a bucket beside its oversize


class SimulatedEncoder:
    """Encoder of the simulated device."""

    def sizes(self, plan: LayerPlan) -> tuple[int, int]:
        """See Encoder."""
        places = _places(plan)
        return _HEADER + 2 * places, places * plan.block_size**2

    def encode(self, plan: LayerPlan, rows: Tensor, cols: Tensor, arrays: Sequence[Tensor]) -> Encoded:
        """See Encoder."""
        _check_positions(plan, rows, cols)
        total, buckets = _places(plan), _buckets(plan)
        capacity = total // buckets
        rank = torch.empty(plan.blocks, dtype=torch.int64)
        mixed = _mix(rows.long() * 65536 + cols.long())
        rank[mixed.argsort()] = torch.arange(plan.blocks)
        shuffle = torch.randperm(total, generator=torch.Generator().manual_seed(int(mixed.sum()) & 0xFFFFFFFF))
        place = shuffle[rank % buckets * capacity + rank // buckets]

        codes = torch.full((total, 2), _EMPTY, dtype=torch.int64)
        codes[place, 0], codes[place, 1] = rows.long(), cols.long()
        meta_info = torch.cat([torch.tensor([_MAGIC, _fingerprint(plan)]), codes.flatten()])
        laid_out = []
        for array in arrays:
            nz = torch.zeros(total, plan.block_size, plan.block_size)
            nz[place] = array.detach().float().transpose(1, 2)
            laid_out.append(nz.flatten())
        return Encoded(torch.where(meta_info > 0x7FFF, meta_info - 0x10000, meta_info).to(torch.int16), laid_out)

    def decode(self, plan: LayerPlan, meta_info: Tensor, arrays: Sequence[Tensor]) -> Decoded:
        """See Encoder."""
        rows, cols, place = self.places(plan, meta_info)
        return Decoded(rows, cols, self.blocks(plan, place, arrays))

    def blocks(self, plan: LayerPlan, place: Tensor, arrays: Sequence[Tensor]) -> list[Tensor]:
        """Blocks of each array, float32 [nnz, b, b], at places int64 [nnz]; refuses padding that is not zero."""
        total, b = _places(plan), plan.block_size
        filled = torch.zeros(total, dtype=torch.bool)
        filled[place] = True
        blocks = []
        for array in arrays:
            if array.numel() != total * b * b:
                raise ValueError(
                    f"sparse layer {plan.layer!r}: nz: expected {total * b * b} elements, found {array.numel()}"
                )
            laid_out = array.detach().float().reshape(total, b, b)
            if bool((laid_out[~filled] != 0).any()):
                raise ValueError(
                    f"sparse layer {plan.layer!r}: padding is not zero: metaInfo and values are of different patterns "
                    "(a layout mix-up, or moments left behind)"
                )
            blocks.append(laid_out[place].transpose(1, 2).contiguous())
        return blocks

    def places(self, plan: LayerPlan, meta_info: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rows, cols int32 [nnz] and the place of each block, int64 [nnz], from the bits alone."""
        codes = meta_info.long() & 0xFFFF
        if codes.numel() != self.sizes(plan)[0] or int(codes[0]) != _MAGIC or int(codes[1]) != _fingerprint(plan):
            raise ValueError(
                f"sparse layer {plan.layer!r}: metaInfo is not of this layer and plan, or its bits were changed on "
                "the way"
            )
        pairs = codes[_HEADER:].reshape(-1, 2)
        place = (pairs[:, 0] != _EMPTY).nonzero().flatten()
        if place.numel() != plan.blocks:
            raise ValueError(
                f"sparse layer {plan.layer!r}: metaInfo has {place.numel()} blocks, expected {plan.blocks}"
            )
        return pairs[place, 0].int(), pairs[place, 1].int(), place


def _buckets(plan: LayerPlan) -> int:
    return max(1, -(-plan.blocks // _BUCKET))


def _places(plan: LayerPlan) -> int:
    if max(plan.in_features, plan.out_features) // plan.block_size >= _EMPTY:
        raise ValueError(f"sparse layer {plan.layer!r}: block coordinates do not fit 16 bits: use larger blocks")
    oversize = float(plan.meta_info_bucket_oversize_proportion)
    buckets = _buckets(plan)
    return buckets * (int(-(-plan.blocks // buckets) * (1.0 + oversize)) + _SPARE)


def _fingerprint(plan: LayerPlan) -> int:
    """16 bits of everything in the plan but the name: layers of one shape share a layout, as on a device."""
    sizes = (plan.in_features, plan.out_features, plan.block_size, plan.blocks, plan.batch)
    return zlib.crc32(repr((sizes, plan.data_type, plan.partials)).encode()) & 0xFFFF


def _mix(keys: Tensor) -> Tensor:
    """A bijection of 32-bit numbers that scatters neighbours."""
    keys = (keys * 2654435761) & 0xFFFFFFFF
    keys = keys ^ (keys >> 15)
    return (keys * 2246822519) & 0xFFFFFFFF


def _check_positions(plan: LayerPlan, rows: Tensor, cols: Tensor) -> None:
    n_rows, n_cols = plan.out_features // plan.block_size, plan.in_features // plan.block_size
    if rows.numel() != plan.blocks or cols.numel() != plan.blocks:
        raise ValueError(f"sparse layer {plan.layer!r}: expected {plan.blocks} positions, found {rows.numel()}")
    inside = (rows >= 0) & (rows < n_rows) & (cols >= 0) & (cols < n_cols)
    if not bool(inside.all()) or torch.unique(rows.long() * n_cols + cols.long()).numel() != plan.blocks:
        raise ValueError(
            f"sparse layer {plan.layer!r}: expected distinct positions in a {n_rows}x{n_cols} grid of blocks"
        )
