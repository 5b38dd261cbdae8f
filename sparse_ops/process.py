"""What a process that computes for minutes wants of the system, once, at its start."""

from __future__ import annotations

from sparse_ops.host_memory import keep_freed_memory
from sparse_ops.openmp import give_way


def make_ready() -> None:
    """Keep freed memory for the next step, and give way where other processes want the cores."""
    keep_freed_memory()
    give_way()
