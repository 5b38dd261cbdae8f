"""DistributedDataParallel on two processes: one weight on both, or the difference is noticed."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import torch
import torch.distributed as dist
from small_models import make_plan
from torch import nn

from sparse_ops import BlockSparseLinear
from sparse_ops.distributed import check_same_on_every_rank, digests
from sparse_ops.dynsparse.moments import moments_of
from sparse_ops.dynsparse.updater import PatternUpdater


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)  # ranks start with other patterns and values, and see other data
    layer = BlockSparseLinear(32, 32, 8, 0.5, kernel="torch")
    layers = {"layer": layer}
    try:
        check_same_on_every_rank(layers)
    except ValueError as error:
        Path(folder, f"start{rank}").write_text(str(error))
    bare = nn.parallel.DistributedDataParallel(layer, broadcast_buffers=False)
    try:  # values of rank 0, and positions of its own
        check_same_on_every_rank(layers)
    except ValueError as error:
        Path(folder, f"bare{rank}").write_text(str(error))
    Path(folder, f"values{rank}").write_text(digests(layers)["layer values"])
    del bare
    model = nn.parallel.DistributedDataParallel(nn.Sequential(layer, nn.GELU()))
    check_same_on_every_rank(layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    updater = PatternUpdater(make_plan())
    updater.track(layers)
    for step in (10, 20):
        model(torch.randn(4, 32)).square().sum().backward()
        optimizer.step()
        updater.update(layers, moments_of(optimizer, layers), step)
        check_same_on_every_rank(layers)
    torch.save(layer.state_dict(), f"{folder}/state{rank}")
    if rank == 1:  # alone
        layer.reallocate(torch.tensor([0, 1]), layer.rows[[1, 0]], layer.cols[[1, 0]])
    try:
        check_same_on_every_rank(layers)
    except ValueError as error:
        Path(folder, f"end{rank}").write_text(str(error))
    # Before the group: a reducer that is the last to hold one joins gloo's threads with the GIL, which they may want.
    del model
    gc.collect()
    dist.destroy_process_group()


def test_two_ranks_hold_one_weight_or_hear_of_it(tmp_path):
    # spawn: a fork of a process whose torch has threads may wait for ever for one that it does not have
    ranks = torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, join=False, start_method="spawn")
    try:
        end = time.monotonic() + 120
        while not ranks.join(timeout=1):
            assert time.monotonic() < end, "a rank does not come to its end"
    finally:
        for process in ranks.processes:
            process.kill()
    expected = "layer positions: expected the same on every rank, found others than rank 0's on [1]"
    for name in ("start", "bare", "end"):
        assert [(tmp_path / f"{name}{rank}").read_text() for rank in (0, 1)] == [expected] * 2
    assert (tmp_path / "values0").read_text() == (tmp_path / "values1").read_text()
    first, second = (torch.load(tmp_path / f"state{rank}", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
