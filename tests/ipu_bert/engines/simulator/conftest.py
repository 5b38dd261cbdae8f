"""Every test gives the simulated device back, and finds the helpers beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

import pytest

from ipu_bert.engines.simulator import executor

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _free_device() -> Iterator[None]:
    yield
    executor._attached.clear()
