"""Freed memory stays in the process, seen in its page faults; the peak counts what was freed."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sparse_ops import host_memory
from sparse_ops.host_memory import keep_freed_memory, peak_memory_bytes

# In a process of its own: a thread that was once refused memory, as in tests of that, has a heap of small pieces.
TEMPORARIES = """
import resource, torch
from sparse_ops.host_memory import keep_freed_memory
assert keep_freed_memory()
for _ in range(16):  # a freed aligned block is only found again once its neighbours are free too
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(SIZE).fill_(1.0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_temporaries_are_kept_and_not_faulted_in_again():
    if not keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    size = 24 << 20  # float32 elements: 96 MB, above what malloc would take from its heap by default
    script = TEMPORARIES.replace("SIZE", str(size))
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, text=True)
    faults = [int(line) for line in done.stdout.split()]
    assert max(faults[-3:]) < (size * 4 // 4096) // 10, faults


FREED_AT_THE_TOP = """
import ctypes
from sparse_ops.host_memory import keep_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
block = libc.malloc(5 << 30)  # never touched
top = libc.sbrk(0)
libc.free(block)
print(-1 if block is None else top - libc.sbrk(0))
"""


def test_more_than_two_gigabytes_are_kept_too():
    if not keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    done = subprocess.run([sys.executable, "-c", FREED_AT_THE_TOP], stdout=subprocess.PIPE, check=True, text=True)
    given_back = int(done.stdout)
    if given_back < 0:
        pytest.skip("this system promises no 5 GB that are not used")
    assert given_back == 0


def test_peak_memory_sees_what_was_allocated_and_freed():
    before = peak_memory_bytes()
    assert 1e7 < before < 1e12
    block = np.ones(before, dtype=np.uint8)  # as much again as ever before, beside what Python and torch keep
    del block
    assert before + 1e7 < peak_memory_bytes() < 3 * before


@pytest.mark.parametrize(("platform", "expected"), [("linux", 3000 * 1024), ("darwin", 3000)])
def test_peak_memory_without_proc_is_in_bytes_too(monkeypatch, platform, expected):
    def no_proc(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_proc)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3000))
    monkeypatch.setattr(host_memory.sys, "platform", platform)
    assert peak_memory_bytes() == expected
