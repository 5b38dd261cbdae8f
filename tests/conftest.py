"""One thread for a test; fresh random inputs in every run: a failure shows their seed, and TEST_SEED repeats it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Iterator

import pytest

# Before torch is imported, and for programs that tests start: tests run side by side, and OpenMP's threads wait for
# each other where cores are taken. Tests about threads call torch.set_num_threads themselves.
os.environ["OMP_NUM_THREADS"] = "1"

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _checkout_as_it_was() -> Iterator[None]:
    """A test writes into folders of its own: a relative path that came from nowhere is not committed by mistake."""
    before = set(os.listdir(CHECKOUT))
    yield
    made = sorted(name for name in set(os.listdir(CHECKOUT)) - before if not name.endswith("cache"))
    assert made == [], f"this test, or one beside it, wrote into {CHECKOUT}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for what all processes of `pytest -n` use: the first that needs it makes it, under a lock."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A new seed for this test; pytest shows the line below with a failure."""
    value = int(os.environ.get("TEST_SEED") or secrets.randbelow(2**31))
    print(f"seed of {request.node.name}: TEST_SEED={value}")
    return value
