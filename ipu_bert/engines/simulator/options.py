"""The part of poptorch.Options that the IPU engine sets: the same names, the same freezing, wrong values refused."""

from __future__ import annotations

import enum
from typing import Any, Iterable, Mapping

import torch

from ipu_bert.engines.simulator.errors import SimulatorError


class OutputMode(enum.IntEnum):
    """Which micro-batches' outputs come back; the simulator knows All."""

    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4


class ReductionType(enum.IntEnum):
    """How gradients of micro-batches and replicas come together; the simulator knows Sum and Mean."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class RecomputationType(enum.IntEnum):
    """What PopART computes again in the backward pass: popart/sessionoptions.hpp 139-155 (3.4)."""

    NoRecomputation = 0
    Standard = 1
    NormOnly = 2
    Pipeline = 3
    RecomputeAll = 4


class AutoStage(enum.Enum):
    """How blocks become pipeline stages; the simulator knows AutoIncrement."""

    SameAsIpu = "SameAsIpu"
    AutoIncrement = "AutoIncrement"


class MatMulSerializationMode(enum.Enum):
    """Dimension that a serialised product is cut in; the simulator knows OutputChannels."""

    InputChannels = "input_channels"
    ReducingDim = "reducing_dim"
    OutputChannels = "output_channels"
    Disabled = "none"


class PipelinedExecution:
    """Blocks become the stages of a pipeline. Raises SimulatorError for another AutoStage than AutoIncrement."""

    def __init__(self, auto_stage: AutoStage) -> None:
        if auto_stage is not AutoStage.AutoIncrement:
            raise SimulatorError(f"PipelinedExecution: expected AutoStage.AutoIncrement, found {auto_stage}")
        self.auto_stage = auto_stage


class TensorLocationSettings:
    """Where a kind of tensor lives; no effect on numbers."""

    def __init__(self) -> None:
        self.on_chip, self.sharded = True, False

    def useOnChipStorage(self, use: bool = True) -> TensorLocationSettings:  # noqa: N802
        """Keep it in the IPU's own memory."""
        self.on_chip = use
        return self

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:  # noqa: N802
        """Give each replica a share."""
        self.sharded = use
        return self


class Attribute:
    """Context manager: operations made inside carry attributes, here for outlining alone; no effect on numbers."""

    def __init__(self, **attributes: Mapping[str, str]) -> None:
        if set(attributes) - {"__outline"}:
            raise SimulatorError(f"Attribute: expected __outline, found {sorted(attributes)}")

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None: ...


class _Freezable:
    _frozen = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self._frozen:
            raise AttributeError("Can't modify frozen Options")
        object.__setattr__(self, name, value)


class _Training(_Freezable):
    def __init__(self) -> None:
        self.gradient_accumulation = 1
        self.reduction = ReductionType.Mean
        self.automatic_loss_scaling = False

    def gradientAccumulation(self, gradient_accumulation: int) -> _Training:  # noqa: N802
        """Micro-batches of a replica per optimizer step."""
        self.gradient_accumulation = gradient_accumulation
        return self

    def accumulationAndReplicationReductionType(self, reduction_type: ReductionType) -> _Training:  # noqa: N802
        """How gradients come together. Raises ValueError for NoReduction, as PopTorch does."""
        if reduction_type not in (ReductionType.Sum, ReductionType.Mean):
            raise ValueError("accumulationAndReplicationReductionType must be set to ReductionType.Mean or Sum")
        self.reduction = ReductionType(reduction_type)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> _Training:  # noqa: N802
        """Halve and double the loss scale as gradients ask for (loss_scale.py)."""
        self.automatic_loss_scaling = enabled
        return self


class _Precision(_Freezable):
    def __init__(self) -> None:
        self.stochastic_rounding = False
        self.partials = torch.float32

    def enableStochasticRounding(self, enabled: bool) -> _Precision:  # noqa: N802
        """Round to halves stochastically, or to nearest."""
        self.stochastic_rounding = enabled
        return self

    def setPartialsType(self, dtype: torch.dtype) -> _Precision:  # noqa: N802
        """Of products of halves: float16 or float32. Raises ValueError for another."""
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"partials: expected float16 or float32, found {dtype}")
        self.partials = dtype
        return self


class _TensorLocations(_Freezable):
    def __init__(self) -> None:
        self.optimizer = TensorLocationSettings()

    def setOptimizerLocation(self, location: TensorLocationSettings) -> _TensorLocations:  # noqa: N802
        """Where moments live; no effect on numbers."""
        self.optimizer = location
        return self


# Session options that PopTorch hands on to PopART (popart_compiler/source/SessionOptions.cpp 3.4), as far as used here.
_SESSION_OPTIONS = frozenset(
    {
        "accumulateOuterFragmentSettings.excludedVirtualGraphs",
        "accumulateOuterFragmentSettings.schedule",
        "autoRecomputation",
        "disableGradAccumulationTensorStreams",
        "disableOptimizerStateTensorStreams",
        "engineOptions",
        "patterns",
        "patterns_level",
        "scheduleNonWeightUpdateGradientConsumersEarly",
        "subgraphCopyingStrategy",
        "syntheticDataMode",
    }
)
_PATTERNS = frozenset({"TiedGather", "TiedGatherAccumulate", "UpdateInplacePrioritiesForIpu"})
_ENGINE_OPTIONS = frozenset({"opt.useAutoloader", "target.syncReplicasIndependently"})


class _Popart(_Freezable):
    """PopART's session options by name, those that the simulator knows of."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def set(self, key: str, value: Any) -> _Popart:
        """Raises SimulatorError for unknown names, and for options that would keep patterns from being updated."""
        if self._frozen:
            raise AttributeError("Can't modify frozen Options")
        _refuse_unknown("_Popart", {key}, _SESSION_OPTIONS)
        if key == "engineOptions":
            _refuse_unknown(key, value, _ENGINE_OPTIONS)
        if key == "disableOptimizerStateTensorStreams" and value:
            raise SimulatorError("disableOptimizerStateTensorStreams: moments could not be re-laid at a pattern update")
        if key == "syntheticDataMode" and value:
            raise SimulatorError("synthetic data switches off all transfers of weights: patterns would be frozen")
        self.options[key] = value
        return self

    def setPatterns(self, patterns: dict[str, bool], level: int = 2) -> _Popart:  # noqa: N802
        """PopART's rewriting patterns; what TiedGather changes is in lowering.py, the others change no numbers."""
        _refuse_unknown("setPatterns", patterns, _PATTERNS)
        return self.set("patterns", dict(patterns)).set("patterns_level", level)


def _refuse_unknown(where: str, names: Iterable[str], known: frozenset[str]) -> None:
    unknown = sorted(set(names) - known)
    if unknown:
        raise SimulatorError(f"{where}: expected one of {', '.join(sorted(known))}, found {unknown[0]}")


def recomputation(options: Options, ipus: int) -> RecomputationType:
    """What is computed again in training over so many IPUs.

    Where nothing is set, PopTorch sets Pipeline on several IPUs (Compiler.cpp 571-579) and PopART has none on one.
    """
    chosen = options._Popart.options.get("autoRecomputation")
    if chosen is not None:
        return RecomputationType(chosen)
    return RecomputationType.Pipeline if ipus > 1 else RecomputationType.NoRecomputation


class Options(_Freezable):
    """poptorch.Options, as far as it is used here. Raises AttributeError when set after a model was built with it."""

    def __init__(self) -> None:
        self.Training, self.Precision = _Training(), _Precision()
        self.TensorLocations, self._Popart = _TensorLocations(), _Popart()
        self.replication_factor = self.device_iterations = 1
        self.output_mode = OutputMode.Default
        self.random_seed = 0
        self.strategy: PipelinedExecution | None = None
        self.available_memory: dict[str, float] = {}
        self.executable_cache = self.profile_dir = ""
        self.offline = False

    def _freeze(self) -> None:
        for part in (self.Training, self.Precision, self.TensorLocations, self._Popart, self):
            object.__setattr__(part, "_frozen", True)

    def replicationFactor(self, replication_factor: int) -> Options:  # noqa: N802
        """Number of replicas of the whole pipeline."""
        self.replication_factor = replication_factor
        return self

    def deviceIterations(self, device_iterations: int) -> Options:  # noqa: N802
        """Optimizer steps of one call."""
        self.device_iterations = device_iterations
        return self

    def outputMode(self, output_mode: OutputMode, output_return_period: int | None = None) -> Options:  # noqa: N802
        """Which outputs come back."""
        self.output_mode = OutputMode(output_mode)
        return self

    def randomSeed(self, random_seed: int) -> Options:  # noqa: N802
        """Seed of dropout and of stochastic rounding."""
        self.random_seed = random_seed
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:  # noqa: N802
        """No effect here."""
        return self

    def setExecutionStrategy(self, strategy: PipelinedExecution) -> Options:  # noqa: N802
        """How blocks run."""
        self.strategy = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: dict[str, float]) -> Options:  # noqa: N802
        """Working memory of each IPU's products, a share of the IPU's; no effect on numbers.

        Raises ValueError for a key other than IPU<n> or a share outside (0, 1].
        """
        for key, value in available_memory_proportion.items():
            if not key.startswith("IPU") or not 0.0 < value <= 1.0:
                raise ValueError(f"available memory: expected 'IPU<n>' with a share in (0, 1], found {key!r}: {value}")
        self.available_memory = dict(available_memory_proportion)
        return self

    def enableExecutableCaching(self, path: str) -> Options:  # noqa: N802
        """No effect here: there is no executable to keep."""
        self.executable_cache = path
        return self

    def enableProfiling(self, profile_dir: str | None = None) -> Options:  # noqa: N802
        """No effect here."""
        self.profile_dir = profile_dir or "."
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:  # noqa: N802
        """Compile only."""
        self.offline = True
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:  # noqa: N802
        """Raises SimulatorError if enabled: patterns would be frozen."""
        self._Popart.set("syntheticDataMode", 2 if enabled else 0)
        return self
