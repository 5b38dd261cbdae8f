"""Processes that are ranks of one run, as torchrun would start them, each with a time limit."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Collection

import torch
import torch.distributed as dist

Work = Callable[..., None]  # (index, ...) -> None, a function of a module; its status is 0 unless it exits with another


def start(work: Work, count: int, *arguments: Any, **environment: str) -> Any:
    """Start `count` ranks; spawned, as a fork of a process whose torch has threads may wait for one that it lacks."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    given = (work, count, {**meeting, **environment}, arguments)
    started = torch.multiprocessing.start_processes(_rank, given, nprocs=count, join=False, start_method="spawn")
    started.store = store  # lives as long as they do
    return started


def _rank(index: int, work: Work, count: int, environment: dict[str, str], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment, RANK=str(index), WORLD_SIZE=str(count), LOCAL_RANK=str(index))
    os.environ["LOCAL_WORLD_SIZE"] = str(count)
    torch.set_num_threads(1)
    work(index, *arguments)


def statuses(started: Any, seconds: float, hanging: Collection[int] = ()) -> list[int | None]:
    """The exit status of each rank, minus the signal that ended it; None where it had not ended in time.

    hanging: ranks that are not waited for, and then killed as all that are left.
    """
    processes, end = started.processes, time.monotonic() + seconds
    try:
        for rank, process in enumerate(processes):
            process.join(0.0 if rank in hanging else max(0.0, end - time.monotonic()))
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
