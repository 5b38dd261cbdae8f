"""One weight on every rank: notice where ranks hold other positions or values."""

from __future__ import annotations

import hashlib
from typing import Any, Mapping

import torch
import torch.distributed as dist

from sparse_ops.linear import BlockSparseLinear


def check_same_on_every_rank(layers: Mapping[str, BlockSparseLinear], group: Any = None) -> None:
    """To be called on every rank of `group` (default: all), best after each change of patterns.

    Raises ValueError, on all of them, when positions or values are not bit-equal on all. DistributedDataParallel hands
    out rank 0's positions with its values when it is made, and afterwards never compares anything.
    """
    digest = hashlib.sha256()
    for name, layer in layers.items():
        digest.update(f"{name} {layer.pattern.checksum()}".encode())
        digest.update(layer.values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    mine = torch.tensor(list(digest.digest()), dtype=torch.uint8, device=device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group)
    others = [rank for rank, theirs in enumerate(every) if not torch.equal(theirs, every[0])]
    if others:
        raise ValueError(
            f"sparse layers: expected the same positions and values on every rank, found others on {others}"
        )
