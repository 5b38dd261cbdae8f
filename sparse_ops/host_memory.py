"""Memory: what this process may have, its peak, and keeping what is freed so that a step does not fault it in again."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


# Where Linux says how much the control group of this process may have: version 2, version 1.
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def keep_freed_memory() -> bool:
    """Tell malloc to serve large tensors from the heap and to give nothing back; whether it could be told.

    glibc maps each allocation above 32 MB anew and unmaps it when freed (not every glibc lets a higher threshold be
    set), so every activation of that size costs a page fault per 4 KB, each step. It takes some steps to settle, since
    glibc finds an aligned block again only where there is a little more room than it asks for. The process stays as
    large as its peak was. A thread that was once refused memory and goes on has another heap, where this does not hold.
    Called once is enough; other C libraries (musl, macOS) are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def peak_memory_bytes() -> int:
    """Largest resident memory that this process has had, in bytes."""
    try:
        # VmHWM belongs to this program alone; getrusage keeps the parent's peak across fork and exec.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024  # macOS counts bytes, others KiB


def total_memory_bytes() -> int:
    """Memory that this process can have at most, in bytes: the machine's, or the limit of its container."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows
        import psutil

        total = int(psutil.virtual_memory().total)
    for path in _GROUP_LIMITS:
        try:
            total = min(total, int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or `max`
            continue
    return total
