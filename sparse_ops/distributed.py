"""One weight on every rank: notice where ranks hold other positions or values."""

from __future__ import annotations

import hashlib
from typing import Any, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sparse_ops.linear import BlockSparseLinear

_BYTES = 8  # of a digest that goes from rank to rank


def digest(tensors: Sequence[Tensor]) -> str:
    """A checksum of the tensors' bits, hexadecimal."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[: 2 * _BYTES]


def digests(layers: Mapping[str, BlockSparseLinear]) -> dict[str, str]:
    """A checksum of each layer's positions and one of its values, by `<layer> positions` and `<layer> values`."""
    found = {}
    for name, layer in layers.items():
        found[f"{name} positions"] = digest([layer.rows, layer.cols])
        found[f"{name} values"] = digest([layer.values])
    return found


def check_same_on_every_rank(layers: Mapping[str, BlockSparseLinear], group: Any = None) -> None:
    """To be called on every rank of `group` (default: all), best right after wrapping and each change of patterns.

    Raises ValueError, on all of them, when positions or values are not bit-equal on all; it names the first layer that
    differs. DistributedDataParallel hands out rank 0's positions with its values when it is made, with
    broadcast_buffers=False the values alone, and afterwards never compares anything.
    """
    found = digests(layers)
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    letters = list(bytes.fromhex("".join(found.values())))
    mine = torch.tensor(letters, dtype=torch.uint8, device=device).view(len(found), _BYTES)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group)
    for number, name in enumerate(found):
        others = [rank for rank, theirs in enumerate(every) if not torch.equal(theirs[number], every[0][number])]
        if others:
            raise ValueError(f"{name}: expected the same on every rank, found others than rank 0's on {others}")
