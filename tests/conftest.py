"""Fresh random inputs in every run; the seed is printed when a test fails, and TEST_SEED repeats it."""

from __future__ import annotations

import os
import secrets

import pytest


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A new seed for this test; pytest shows the line below with a failure."""
    value = int(os.environ.get("TEST_SEED") or secrets.randbelow(2**31))
    print(f"seed of {request.node.name}: TEST_SEED={value}")
    return value
