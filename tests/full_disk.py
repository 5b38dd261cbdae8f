"""A disk that is always full, which Linux has; tests of it are left out where the system has none."""

from __future__ import annotations

from pathlib import Path

import pytest

FULL = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="the system has no device that is always full")
