"""What a run is computed with: on the same, a resumed run equals the unbroken one bit for bit."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Mapping

import torch

from ipu_bert.config import Config
from sparse_ops import native


def conditions(config: Config) -> dict[str, str | int | float]:
    """All that rounding depends on and a resume may change: processor, torch, threads, kernels, precision."""
    return {
        **_precision(config),
        "processor": processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernel": _kernel(config),
    }


def _precision(config: Config) -> dict[str, str | float]:
    return {f"precision.{key}": value for key, value in vars(config.precision).items()}


def _kernel(config: Config) -> str:
    """What multiplies sparse weights."""
    if config.engine.name == "ipu":
        return f"ipu {config.engine.device}"
    if config.sparsity.method == "dense":
        return "none"
    if config.engine.kernel == "torch" or not native.available():
        return "torch"
    return f"native {native.level()}"


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name: now, before it was ...` for each condition that both know and that is not as it was."""
    return [f"{name}: {now[name]}, before {before[name]}" for name in now if before.get(name, now[name]) != now[name]]


def processor() -> str:
    """The CPU's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
