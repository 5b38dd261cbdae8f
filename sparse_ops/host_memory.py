"""Keep large freed memory in the process, so that a step does not fault its activations in again and again."""

from __future__ import annotations

import ctypes

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell malloc to serve large tensors from the heap and to give nothing back; whether it could be told.

    glibc maps each allocation above 32 MB anew and unmaps it when freed (not every glibc lets a higher threshold be
    set), so every activation of that size costs a page fault per 4 KB, each step. It takes some steps to settle, since
    glibc finds an aligned block again only where there is a little more room than it asks for. The process stays as
    large as its peak was. Called once is enough; other C libraries (musl, macOS) are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
