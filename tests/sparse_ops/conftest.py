"""What tests of several operators share: every way to carry one out here, and two threads."""

from __future__ import annotations

from typing import Iterator

import pytest
import torch
from compiler import LEVELS

from sparse_ops import native


@pytest.fixture(params=["torch", *LEVELS])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plain torch, as where there is no compiler, or native kernels of an instruction level."""
    if request.param == "torch":
        monkeypatch.setattr(native, "available", lambda: False)
    else:
        monkeypatch.setenv("SPARSE_OPS_LEVEL", request.param)
    return request.param


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
