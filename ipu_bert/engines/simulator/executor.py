"""PopTorch's interface to a model on the simulated device: compiled once, attached, called, weights moved when told."""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import Tensor, nn

from ipu_bert.engines.simulator.compilation import Executable, check_options, compile_model
from ipu_bert.engines.simulator.device import DeviceMemory, DeviceRandom
from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.memory import HostTensors, Transfers, intercept
from ipu_bert.engines.simulator.optim import AdamW
from ipu_bert.engines.simulator.options import Options, RecomputationType
from ipu_bert.engines.simulator.steps import StepRunner
from ipu_bert.engines.simulator.streams import WeightStreams

_attached: list[PoplarExecutor] = []  # the one executable that holds the simulated IPUs


def trainingModel(model: nn.Module, options: Options, optimizer: AdamW) -> PoplarExecutor:  # noqa: N802
    """A model that trains on the simulated device; called with inputs [global batch, ...]."""
    return PoplarExecutor(model, options, optimizer)


def inferenceModel(model: nn.Module, options: Options) -> PoplarExecutor:  # noqa: N802
    """A model that only runs forward there."""
    return PoplarExecutor(model, options, None)


class _Compiled(NamedTuple):
    """What there is once the model is compiled."""

    executable: Executable
    device: DeviceMemory
    streams: WeightStreams
    runner: StepRunner


class PoplarExecutor:
    """See trainingModel and inferenceModel. Every refusal is a SimulatorError.

    transfers: bytes and counts so far. compilations: 0 or 1.
    """

    def __init__(self, model: nn.Module, options: Options, optimizer: AdamW | None) -> None:
        options._freeze()
        check_options(options, training=optimizer is not None)
        # A shallow copy, as PopTorch makes: parameters and submodules are shared, the flag `training` stays as it is.
        self._model, self._options, self._optimizer = copy.copy(model), options, optimizer
        self._random = DeviceRandom(options.random_seed, options.Precision.stochastic_rounding)
        self._compiled: _Compiled | None = None
        self.transfers, self.compilations = Transfers(), 0
        if optimizer is not None:
            intercept(model, self.copyWeightsToHostIfNeeded)

    # --- compilation and attachment

    def isCompiled(self) -> bool:  # noqa: N802
        """Whether there is an executable."""
        return self._compiled is not None

    def compile(self, *inputs: Tensor) -> None:
        """Fix shapes, dtypes and integer buffers, and check the pipeline. Once."""
        if self.isCompiled():
            raise SimulatorError("second compilation: an executable is compiled once and patterns are streamed to it")
        host, device = HostTensors(self._model), DeviceMemory(self._model, self._optimizer)
        executable = compile_model(self._model, self._options, device, self._random, inputs)
        streams = WeightStreams(host, device, executable.sparse, self._optimizer, self.transfers)
        runner = StepRunner(device, executable, self._options, self._random)
        self._compiled = _Compiled(executable, device, streams, runner)
        self.compilations += 1
        if self._optimizer is not None:
            self._optimizer.read_device = streams.read_optimizer_state
            self._optimizer.host_state_is_dirty = self._optimizer.cached_state is None
            self._optimizer.ipu_state_is_dirty = self._optimizer.cached_state is not None

    def isAttachedToDevice(self) -> bool:  # noqa: N802
        """Whether this executable holds the device."""
        return self in _attached

    def attachToDevice(self) -> None:  # noqa: N802
        """Take the device, and load weights and optimizer state."""
        if self._options.offline:
            raise SimulatorError("the device is offline: compile only")
        if _attached:
            raise SimulatorError("the simulated IPUs are held by another executable: detachFromDevice() it first")
        streams = self._ready.streams
        _attached.append(self)
        streams.load()
        streams.write_optimizer_state()

    def detachFromDevice(self) -> None:  # noqa: N802
        """Read back everything and give the device up."""
        if self not in _attached:
            raise SimulatorError("Device is not attached")
        self.copyWeightsToHostIfNeeded()
        if self._optimizer is not None:
            self._optimizer.state_dict()
            self._optimizer.ipu_state_is_dirty = True
        _attached.remove(self)

    def destroy(self) -> None:
        """Give the device up, if held."""
        if self in _attached:
            _attached.remove(self)

    # --- transfers

    def copyWeightsToHostIfNeeded(self) -> bool:  # noqa: N802
        """Download when the device has stepped since the last transfer; called when the model's weights are touched."""
        return self._compiled is not None and self._compiled.streams.download_if_newer()

    def copyWeightsToHost(self) -> None:  # noqa: N802
        """Weights and buffers, device to host, in place."""
        self._ready.streams.download()

    def copyWeightsToDevice(self) -> None:  # noqa: N802
        """Weights and buffers, host to device."""
        self._ready.streams.upload()

    def setOptimizer(self, optimizer: AdamW) -> None:  # noqa: N802
        """Take over changed settings such as the learning rate."""
        if optimizer is not self._optimizer:
            raise SimulatorError("setOptimizer: expected the optimizer that the model was built with")
        if self._compiled is not None and self._compiled.device.optimizer is not None:
            self._compiled.device.optimizer.configure(optimizer)

    @property
    def rng_state(self) -> list[int]:
        """State of the device's random numbers: bytes of dropout's, then of stochastic rounding's.

        Neither read nor set before there is an executable, as in PopTorch: SimulatorError.
        """
        self._check_compiled()
        return self._random.state

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        self._check_compiled()
        self._random.state = state

    # --- running

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run device iterations x gradient accumulation x replicas micro-batches; outputs [micro-batches, ...]."""
        if self._options.offline:
            raise SimulatorError("the device is offline: compile only")
        if not self.isCompiled():
            self.compile(*inputs)
        if not self.isAttachedToDevice():
            self.attachToDevice()
        executable, _, streams, runner = self._ready
        found = [(x.shape, x.dtype) for x in inputs]
        if found != executable.input_types:
            raise SimulatorError(
                f"inputs: compiled for {executable.input_types}, found {found}: an executable's shapes are fixed"
            )
        streams.prepare_call()
        outputs = runner.run(inputs)
        streams.finish_call()
        return outputs

    @property
    def stages(self) -> list[tuple[str, int]]:
        """(block, IPU) of each stage of the pipeline, in order."""
        return self._ready.executable.stages

    @property
    def recomputation(self) -> RecomputationType:
        """What is computed again in the backward pass; no effect on numbers."""
        return self._ready.executable.recomputation

    @property
    def travelling(self) -> dict[str, int]:
        """Variables that go from IPU 0 to another in every micro-batch of training, and their bytes."""
        return self._ready.executable.travelling

    @property
    def log(self) -> list[tuple[int, int, int]]:
        """(iteration, micro-batch, replica) of every micro-batch so far, in the order they ran."""
        return self._ready.runner.log

    def _check_compiled(self) -> None:
        self._ready  # noqa: B018 - raises where there is no executable

    @property
    def _ready(self) -> _Compiled:
        if self._compiled is None:
            raise SimulatorError("Model has not been compiled: call it, or compile(), first")
        return self._compiled
