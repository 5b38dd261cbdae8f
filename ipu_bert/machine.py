"""What a run is computed with: on the same, a resumed run equals the unbroken one bit for bit."""

from __future__ import annotations

import os
from typing import Any, Mapping

import torch

from ipu_bert.config import Config, as_dict
from sparse_ops import native
from sparse_ops.dense import TORCH, library
from sparse_ops.processor import processor

PRODUCTS = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # variables

_DENSE = "dense products"
_ONE_RESULT = ("ipus", "optimizer_off_chip", "executable_cache", "profile_dir")  # of ipu.*: no sum depends on them
_OF_HALF = ("automatic_loss_scale", "half_partials", "stochastic_rounding")  # of ipu.*: nothing with float32


def conditions(config: Config) -> dict[str, str | int | float]:
    """All that the rounding of a step depends on and a resume may change: precision, and how IPUs compute, among it.

    instructions: those that torch's own kernels use. environment: variables that choose torch's products. threads: as
    many as there are (openmp.use_threads). library: the native kernels' sources, flags and compiler.
    """
    return {
        **_precision(config),
        **_ipu(config),
        "processor": processor(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "environment": " ".join(f"{name}={os.environ[name]}" for name in PRODUCTS if name in os.environ) or "none",
        "threads": torch.get_num_threads(),
        "kernel": _kernel(config),
        "library": native.fingerprint() if _kernel(config).startswith("native") else "none",
        _DENSE: _dense(config),
    }


def common(config: Config) -> dict[str, str]:
    """What all ranks of a run must share, by name: settings, but for those of one machine, and how AdamW is rounded.

    Gradients come to every rank as the same bits, and each makes its step of them.
    """
    own = {"run.dir", "data.dir", "data.path", "data.workers", "engine.kernel", "engine.threads"}
    settings = {
        f"{s}.{k}": repr(value)
        for s, keys in as_dict(config).items()
        if isinstance(keys, dict)
        for k, value in keys.items()
    }
    return {
        **{name: value for name, value in settings.items() if name not in own},
        "torch version": torch.__version__,
        "instruction level of torch (see ATEN_CPU_CAPABILITY)": torch.backends.cpu.get_cpu_capability(),
    }


def _precision(config: Config) -> dict[str, str | float]:
    return {f"precision.{key}": value for key, value in vars(config.precision).items()}


def _ipu(config: Config) -> dict[str, str | int | float]:
    """How sums are cut, rounded and drawn for on IPUs: recomputation too rounds again, stochastically."""
    left_out = {*_ONE_RESULT, *(() if config.precision.half else _OF_HALF)}
    found = vars(config.ipu).items() if config.engine.name == "ipu" else ()
    return {
        f"ipu.{key}": str(value) if isinstance(value, list) else value for key, value in found if key not in left_out
    }


def _kernel(config: Config) -> str:
    """What multiplies sparse weights and attends, in dense models too."""
    if config.engine.name == "ipu":
        return f"ipu {config.engine.device}"
    if config.engine.kernel == "torch" or not native.available():
        return "torch"
    return f"native {native.level()}"


def _dense(config: Config) -> str:
    """What multiplies dense weights of float32."""
    plain = config.engine.name == "ipu" or config.engine.kernel == "torch" or config.precision.compute != "float32"
    return TORCH if plain else library()


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name: now, before it was ...` for each condition that both know and that is not as it was."""
    before = {_DENSE: TORCH, **before}  # of older checkpoints, which do not say it
    return [f"{name}: {now[name]}, before {before[name]}" for name in now if before.get(name, now[name]) != now[name]]
