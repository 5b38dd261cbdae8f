"""The processor's name."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The CPU's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
