"""Freed memory stays in the process, seen in its page faults."""

from __future__ import annotations

import resource

import pytest
import torch

from sparse_ops.host_memory import keep_freed_memory


def test_large_temporaries_are_kept_and_not_faulted_in_again():
    if not keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    size = 24 << 20  # float32 elements: 96 MB, above what malloc would take from its heap by default
    faults = []
    for _ in range(16):  # a freed aligned block is only found again once its neighbours are free too
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(size).fill_(1.0)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(faults[-3:]) < (size * 4 // 4096) // 10, faults
