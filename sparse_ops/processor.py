"""The processor's name and maker."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The CPU's name where the system tells it."""
    return _told("model name") or platform.processor() or platform.machine()


def vendor() -> str:
    """Who made the CPU, as it says itself ("AuthenticAMD"); empty where the system does not tell it."""
    return _told("vendor_id")


def _told(name: str) -> str:
    """What /proc/cpuinfo says of the first CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
