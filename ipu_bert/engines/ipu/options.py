"""PopTorch's options from plain values; the same calls for PopTorch and for the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch

# PopART enumerations that PopTorch takes as numbers (popart/sessionoptions.hpp, 3.4).
_OVERLAP_MEMORY_OPTIMIZED = 3  # AccumulateOuterFragmentSchedule
_JUST_IN_TIME = 1  # SubgraphCopyingStrategy
_NO_RECOMPUTATION, _PIPELINE, _RECOMPUTE_ALL = 0, 3, 4  # RecomputationType


@dataclass(frozen=True)
class IpuRun:
    """How a step is laid over IPUs. One instance's figures: poprun starts several, each with `replicas` of its own.

    layers_per_ipu: encoder layers of each IPU of a replica. gradient_accumulation: micro-batches of a replica in a
    step. available_memory: share of each IPU's memory for the working space of dense products (one for all, or one
    each). sparse_available_memory, sparse_oversize: popsparse's own proportions, decimal text, the same for every
    layer. half: FP16.16 with float32 moments; otherwise all is float32. half_partials: 16-bit partial sums of products.
    The others as in IpuSettings; seed: 32 bits.
    """

    device: str
    layers_per_ipu: tuple[int, ...]
    replicas: int
    gradient_accumulation: int
    micro_batch_size: int
    sequence_length: int
    available_memory: tuple[float, ...]
    sparse_available_memory: str
    sparse_oversize: str
    half: bool
    loss_scale: float
    automatic_loss_scale: bool
    half_partials: bool
    stochastic_rounding: bool
    optimizer_off_chip: bool
    optimizer_sharded: bool
    recompute: bool
    vocabulary_parts: int
    executable_cache: str
    profile_dir: str
    seed: int

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.float16 if self.half else torch.float32

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this instance in a step."""
        return self.replicas * self.gradient_accumulation

    @property
    def sequences(self) -> int:
        """Sequences of this instance in a step."""
        return self.micro_batches * self.micro_batch_size


def training_options(poptorch: Any, run: IpuRun, base: Any) -> Any:
    """Options of the executable that trains; `base` are popdist's where it starts the instances, else None."""
    options = _common(poptorch, run, base)
    options.Precision.enableStochasticRounding(run.stochastic_rounding and run.half)
    options.Training.gradientAccumulation(run.gradient_accumulation)
    # A sum would outgrow half precision, or need a loss too small for it; with 16-bit accumulators PopTorch keeps the
    # running mean (docs/ipu.md).
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    location = poptorch.TensorLocationSettings().useOnChipStorage(not run.optimizer_off_chip)
    options.TensorLocations.setOptimizerLocation(location.useReplicatedTensorSharding(run.optimizer_sharded))
    options.Training.setAutomaticLossScaling(run.automatic_loss_scale)
    options._Popart.set("autoRecomputation", _recomputation(run))
    options._Popart.set("disableGradAccumulationTensorStreams", True)
    if len(run.layers_per_ipu) > 1:
        options._Popart.set("accumulateOuterFragmentSettings.schedule", _OVERLAP_MEMORY_OPTIMIZED)
        options._Popart.set("accumulateOuterFragmentSettings.excludedVirtualGraphs", ["0"])
    options._Popart.set("scheduleNonWeightUpdateGradientConsumersEarly", True)
    options._Popart.setPatterns(
        {"TiedGather": True, "TiedGatherAccumulate": True, "UpdateInplacePrioritiesForIpu": True}
    )
    return options


def _recomputation(run: IpuRun) -> int:
    """RecomputationType, always said: PopTorch's own choice is Pipeline on several IPUs, and none on one.

    Both kinds keep what recomputationCheckpoint marks, the layers' outputs.
    """
    if not run.recompute:
        return _NO_RECOMPUTATION
    return _PIPELINE if len(run.layers_per_ipu) > 1 else _RECOMPUTE_ALL


def inference_options(poptorch: Any, run: IpuRun, base: Any) -> Any:
    """Options of the executable that evaluates a whole batch in one call.

    It rounds to nearest: its generator is not in checkpoints, and losses of the same weights are to be the same.
    """
    options = _common(poptorch, run, base)
    options.Precision.enableStochasticRounding(False)
    return options.deviceIterations(run.gradient_accumulation)


def _common(poptorch: Any, run: IpuRun, base: Any) -> Any:
    options = poptorch.Options() if base is None else base
    if base is None:
        options.replicationFactor(run.replicas)
    options.autoRoundNumIPUs(True)
    options.outputMode(poptorch.OutputMode.All)
    options.randomSeed(run.seed)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    options.setAvailableMemoryProportion(_per_ipu(run.available_memory, len(run.layers_per_ipu)))
    options.Precision.setPartialsType(torch.float16 if run.half and run.half_partials else torch.float32)
    options._Popart.set("subgraphCopyingStrategy", _JUST_IN_TIME)
    # Before enableProfiling, which adds to them.
    engine = {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"}
    options._Popart.set("engineOptions", engine)
    if run.device == "ipu_model":
        options.useIpuModel(True)
    if run.device == "offline":
        options.useOfflineIpuTarget(2)
    if run.executable_cache:
        options.enableExecutableCaching(run.executable_cache)
    if run.profile_dir:
        options.enableProfiling(run.profile_dir)
    return options


def _per_ipu(shares: Sequence[float], ipus: int) -> dict[str, float]:
    each = list(shares) * ipus if len(shares) == 1 else list(shares)
    return {f"IPU{i}": share for i, share in enumerate(each)}
