"""Finds the device that the config names and builds the IPU engine on it."""

from __future__ import annotations

from typing import Any

from ipu_bert.engines import simulator
from ipu_bert.engines.ipu.engine import IpuEngine
from ipu_bert.engines.ipu.options import IpuRun
from ipu_bert.model import BertForPreTraining
from ipu_bert.optim import Optimization
from ipu_bert.ranks import Ranks
from ipu_bert.settings import Config
from ipu_bert.sizes.stages import written_layers
from ipu_bert.stopwatch import Stopwatch
from sparse_ops.ipu.build import library_path
from sparse_ops.ipu.host import PopsparseEncoder
from sparse_ops.ipu.layer import import_poptorch
from sparse_ops.ipu.layout import Encoder


def build_ipu_engine(
    config: Config, model: BertForPreTraining, optimization: Optimization, timer: Stopwatch, ranks: Ranks
) -> IpuEngine:
    """The engine for `engine.device`. Raises ValueError that says what to install or which settings do not fit."""
    run = make_run(config, ranks)
    backend, encoder = find_backend(run.device)
    return IpuEngine(model, run, backend, encoder, ranks, optimization, timer)


def find_backend(device: str) -> tuple[Any, Encoder]:
    """The module with PopTorch's interface and the encoder of its layout."""
    if device == "simulated":
        return simulator, simulator.SimulatedEncoder()
    # Loading the library also registers the operation with PopART, so it must happen before anything is compiled.
    return import_poptorch(), PopsparseEncoder(library_path())


def make_run(config: Config, ranks: Ranks) -> IpuRun:
    """One instance's share of a checked config. Raises ValueError where the replicas cannot be shared out."""
    ipu = config.ipu
    if ipu.replicas % ranks.count:
        raise ValueError(
            f"ipu.replicas: expected a multiple of the {ranks.count} instances that poprun started, found "
            f"{ipu.replicas}"
        )
    assert config.train.micro_batch_size is not None
    return IpuRun(
        device=config.engine.device,
        layers_per_ipu=tuple(written_layers(ipu)),
        replicas=ipu.replicas // ranks.count,
        gradient_accumulation=ipu.gradient_accumulation,
        micro_batch_size=config.train.micro_batch_size,
        sequence_length=config.data.sequence_length,
        available_memory=tuple(ipu.available_memory),
        # Text, because host and device must pass popsparse the very same characters.
        sparse_available_memory=repr(ipu.sparse_available_memory),
        sparse_oversize=repr(ipu.sparse_oversize),
        half=config.precision.half,
        loss_scale=config.precision.loss_scale,
        automatic_loss_scale=ipu.automatic_loss_scale,
        half_partials=ipu.half_partials,
        stochastic_rounding=ipu.stochastic_rounding,
        optimizer_off_chip=ipu.optimizer_off_chip,
        optimizer_sharded=ipu.optimizer_sharded,
        recompute=ipu.recompute,
        vocabulary_parts=ipu.vocabulary_parts,
        executable_cache=ipu.executable_cache,
        profile_dir=ipu.profile_dir,
        seed=config.run.seed % 2**32,
    )
