"""Finds the device that the config names and builds the IPU engine on it."""

from __future__ import annotations

from typing import Any

from ipu_bert.engines import simulator
from ipu_bert.engines.ipu.engine import IpuEngine
from ipu_bert.engines.ipu.instances import Instances, find_instances
from ipu_bert.engines.ipu.options import IpuRun
from ipu_bert.model import BertForPreTraining
from ipu_bert.settings import IpuSettings
from sparse_ops.ipu.build import library_path
from sparse_ops.ipu.host import PopsparseEncoder
from sparse_ops.ipu.layer import import_poptorch
from sparse_ops.ipu.layout import Encoder


def build_ipu_engine(
    model: BertForPreTraining,
    device: str,
    settings: IpuSettings,
    *,
    micro_batch_size: int,
    half: bool,
    seed: int,
    **optimization: Any,
) -> IpuEngine:
    """The engine for `device`. Raises ValueError that says what to install or which settings do not fit."""
    instances = find_instances(device)
    run = make_run(settings, device, instances, micro_batch_size, half, seed)
    backend, encoder = find_backend(device)
    return IpuEngine(model, run, backend, encoder, instances=instances, **optimization)


def find_backend(device: str) -> tuple[Any, Encoder]:
    """The module with PopTorch's interface and the encoder of its layout."""
    if device == "simulated":
        return simulator, simulator.SimulatedEncoder()
    # Loading the library also registers the operation with PopART, so it must happen before anything is compiled.
    return import_poptorch(), PopsparseEncoder(library_path())


def make_run(
    settings: IpuSettings, device: str, instances: Instances, micro_batch_size: int, half: bool, seed: int
) -> IpuRun:
    """One instance's share of the settings."""
    if settings.replicas % instances.count:
        raise ValueError(
            f"ipu.replicas: expected a multiple of the {instances.count} instances that poprun started, found "
            f"{settings.replicas}"
        )
    return IpuRun(
        device=device,
        layers_per_ipu=tuple(settings.layers_per_ipu),
        replicas=settings.replicas // instances.count,
        gradient_accumulation=settings.gradient_accumulation,
        micro_batch_size=micro_batch_size,
        available_memory=tuple(settings.available_memory),
        # Text, because host and device must pass popsparse the very same characters.
        sparse_available_memory=repr(settings.sparse_available_memory),
        sparse_oversize=repr(settings.sparse_oversize),
        half=half,
        half_partials=settings.half_partials,
        stochastic_rounding=settings.stochastic_rounding,
        optimizer_off_chip=settings.optimizer_off_chip,
        optimizer_sharded=settings.optimizer_sharded,
        recompute=settings.recompute,
        vocabulary_parts=settings.vocabulary_parts,
        executable_cache=settings.executable_cache,
        profile_dir=settings.profile_dir,
        seed=seed % 2**32,
    )
