"""PoplarExecutor of the simulator: device copies, explicit transfers, one compilation, steps in the device's order."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, ContextManager, Iterator

import torch
from torch import Tensor, nn

from ipu_bert.engines.simulator.arithmetic import HalfArithmetic, Rounding
from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.layout import SimulatedEncoder
from ipu_bert.engines.simulator.memory import HostTensors, Transfers, intercept, same_bits
from ipu_bert.engines.simulator.optim import AdamW, DeviceAdamW
from ipu_bert.engines.simulator.options import Options, OutputMode, ReductionType
from ipu_bert.engines.simulator.trace import Trace
from ipu_bert.engines.simulator.variables import VariablePlacement
from sparse_ops.ipu.layout import LayerPlan, bits_from_half

_attached: list[PoplarExecutor] = []  # the one executable that holds the simulated IPUs


def trainingModel(model: nn.Module, options: Options, optimizer: AdamW) -> PoplarExecutor:  # noqa: N802
    """A model that trains on the simulated device; called with inputs [global batch, ...]."""
    return PoplarExecutor(model, options, optimizer)


def inferenceModel(model: nn.Module, options: Options) -> PoplarExecutor:  # noqa: N802
    """A model that only runs forward there."""
    return PoplarExecutor(model, options, None)


class PoplarExecutor:
    """See trainingModel and inferenceModel.

    Errors where hardware would lose data silently: weights edited on the host and never uploaded, or edited through an
    old alias while the device had newer ones; an integer buffer changed after compilation; metaInfo uploaded without
    moments; values in another layout than metaInfo; anything whose shape changed; a second compilation.
    """

    def __init__(self, model: nn.Module, options: Options, optimizer: AdamW | None) -> None:
        options._freeze()
        if options.Training.reduction is not ReductionType.Sum and optimizer is not None:
            raise SimulatorError("options: expected accumulationAndReplicationReductionType(ReductionType.Sum)")
        if options.output_mode is not OutputMode.All:
            raise SimulatorError("options: expected outputMode(OutputMode.All)")
        if optimizer is None and options.Training.gradient_accumulation != 1:
            raise SimulatorError("options: inference has no gradient accumulation")
        # A shallow copy, as PopTorch makes: parameters and submodules are shared, the flag `training` stays as it is.
        self._model, self._options, self._optimizer = copy.copy(model), options, optimizer
        self._busy = self._dirty_host = False
        self.transfers, self.compilations = Transfers(), 0
        self.stages: list[tuple[str, int]] = []
        self.log: list[tuple[int, int, int]] = []  # (iteration, micro-batch, replica) in the order they ran
        self._relaid: set[str] = set()  # metaInfo buffers uploaded since the moments were last written
        self._rounding = Rounding(options.random_seed if options.Precision.stochastic_rounding else None)
        self._rng = torch.Generator().manual_seed(options.random_seed).get_state()
        if optimizer is not None:
            intercept(model, self.copyWeightsToHostIfNeeded)
            optimizer.read_device = self._read_optimizer_state

    # --- compilation and attachment

    def isCompiled(self) -> bool:  # noqa: N802
        """Whether there is an executable."""
        return self.compilations > 0

    def compile(self, *inputs: Tensor) -> None:
        """Fix shapes, dtypes and integer buffers, and check the pipeline. Once."""
        if self.isCompiled():
            raise SimulatorError("second compilation: an executable is compiled once and patterns are streamed to it")
        factors = self._options.device_iterations * self._options.Training.gradient_accumulation
        factors *= self._options.replication_factor
        for x in inputs:
            if x.shape[0] % factors:
                raise SimulatorError(
                    "inputs: expected a first dimension that is a multiple of device iterations x gradient "
                    "accumulation x "
                    f"replicas = {factors}, found {list(x.shape)}"
                )
        self._factors = factors
        self._input_types = [(x.shape, x.dtype) for x in inputs]
        with self._host_access():
            self._host = HostTensors(self._model)
            self._parameters = {n: p.detach().clone() for n, p in self._model.named_parameters()}
            self._buffers = {n: b.detach().clone() for n, b in self._model.named_buffers()}
            names = {id(p): n for n, p in self._model.named_parameters()}
        if self._optimizer is not None:
            self._device_optimizer = DeviceAdamW(names, self._optimizer, self._parameters)
            self._optimizer.host_state_is_dirty = self._optimizer.cached_state is None
            self._optimizer.ipu_state_is_dirty = self._optimizer.cached_state is not None
        trace = self._trace_once([x[: x.shape[0] // factors] for x in inputs])
        self.stages = trace.visited
        pipeline = 2 * len(self.stages) - 1
        accumulation = self._options.Training.gradient_accumulation
        if self._optimizer is not None and len(self.stages) > 1 and accumulation < pipeline:
            raise SimulatorError(
                f"pipeline: {len(self.stages)} stages forward and back make {pipeline}; gradient accumulation must "
                "be at least "
                f"that, found {accumulation}"
            )
        self._sparse = self._names_of(trace)
        self.compilations += 1

    def isAttachedToDevice(self) -> bool:  # noqa: N802
        """Whether this executable holds the device."""
        return self in _attached

    def attachToDevice(self) -> None:  # noqa: N802
        """Take the device, and load weights and optimizer state."""
        if self._options.offline:
            raise SimulatorError("the device is offline: compile only")
        if _attached:
            raise SimulatorError("the simulated IPUs are held by another executable: detachFromDevice() it first")
        _attached.append(self)
        self._upload()
        self._write_optimizer_state()

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
        if self._busy or not self._dirty_host:
            return False
        self.copyWeightsToHost()
        return True

    @torch.no_grad()
    def copyWeightsToHost(self) -> None:  # noqa: N802
        """Weights and buffers, device to host, in place."""
        with self._host_access():
            lost = self._host.changed()
            if lost:
                raise SimulatorError(
                    f"{lost[0]}: edited on the host through an alias taken before the last step; this download "
                    "would overwrite "
                    "the edit: reach tensors through the model, after the step"
                )
            for name, tensor in self._host.named().items():
                tensor.copy_(self._device(name))
            self._host.mark()
        self._dirty_host = False
        self.transfers.down(self._streamed_bytes())

    def copyWeightsToDevice(self) -> None:  # noqa: N802
        """Weights and buffers, host to device."""
        if self._dirty_host:
            raise SimulatorError(
                "copyWeightsToDevice: the device has stepped since the host last saw its weights: this upload would "
                "undo that"
            )
        if self._optimizer is not None:
            self._optimizer.state_dict()  # an upload sends the optimizer's state along; have its newest copy
        self._upload()

    def setOptimizer(self, optimizer: AdamW) -> None:  # noqa: N802
        """Take over changed settings such as the learning rate."""
        if optimizer is not self._optimizer:
            raise SimulatorError("setOptimizer: expected the optimizer that the model was built with")
        if self.isCompiled():
            with self._host_access():
                self._device_optimizer.configure(optimizer)

    @property
    def rng_state(self) -> list[int]:
        """State of the device's random numbers: of dropout, then of stochastic rounding."""
        state: list[int] = self._rng.tolist()
        return state + self._rounding.state

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        dropout = self._rng.numel()
        self._rng = torch.tensor(state[:dropout], dtype=torch.uint8)
        self._rounding.state = state[dropout:]

    @torch.no_grad()
    def _upload(self) -> None:
        with self._host_access():
            self._host.check_shapes()
            host = self._host.named()
            for name, tensor in host.items():
                if not tensor.is_floating_point():
                    self._refuse_constant(name, tensor)
                    continue
                device = self._device(name)
                if name in self._sparse and not same_bits(device, tensor) and self._optimizer is not None:
                    self._relaid.add(name)
                device.copy_(tensor)
            self._host.mark()
        self.transfers.up(self._streamed_bytes())

    def _refuse_constant(self, name: str, tensor: Tensor) -> None:
        if not same_bits(tensor, self._device(name)):
            raise SimulatorError(
                f"{name}: an integer buffer is a constant of the executable and cannot change after compilation: "
                "carry its "
                "bits in a float16 buffer"
            )

    def _read_optimizer_state(self) -> dict[str, Any]:
        self.transfers.down(self._streamed_bytes())
        state = {name: tensor.clone() for name, tensor in self._device_optimizer.state.items()}
        return {"ipu_state": state, "ipu_param": {"lossScaling": self._device_optimizer.loss_scaling}}

    @torch.no_grad()
    def _write_optimizer_state(self) -> None:
        optimizer = self._optimizer
        if optimizer is None or not optimizer.ipu_state_is_dirty:
            return
        self.copyWeightsToHostIfNeeded()
        device = self._device_optimizer.state
        for name, tensor in (optimizer.cached_state or {}).items():
            if name not in device or device[name].shape != tensor.shape:
                raise SimulatorError(f"optimizer state {name}: unknown, or of another shape than compiled")
            self._refuse_old_layout(name, tensor, device[name])
            device[name].copy_(tensor)
        optimizer.ipu_state_is_dirty = False
        self._relaid.clear()
        self.transfers.up(self._streamed_bytes())

    def _refuse_old_layout(self, name: str, tensor: Tensor, device: Tensor) -> None:
        relaid = {f"Accl{i}___{self._sparse[buffer][1]}" for buffer in self._relaid for i in (1, 2)}
        if name in relaid and bool(tensor.any()) and same_bits(tensor, device):
            raise SimulatorError(
                f"{name}: its layout was changed, but the moments were left behind in the old one (the same bits "
                "came back)"
            )

    def _streamed_bytes(self) -> int:
        # Each of PopART's transfers moves every streamed variable, optimizer state included.
        tensors = [*self._parameters.values(), *(b for b in self._buffers.values() if b.is_floating_point())]
        if self._optimizer is not None:
            tensors += self._device_optimizer.state.values()
        return sum(t.numel() * t.element_size() for t in tensors)

    def _device(self, name: str) -> Tensor:
        return self._parameters[name] if name in self._parameters else self._buffers[name]

    # --- running

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run device iterations x gradient accumulation x replicas micro-batches; outputs [micro-batches, ...]."""
        if self._options.offline:
            raise SimulatorError("the device is offline: compile only")
        if not self.isCompiled():
            self.compile(*inputs)
        if not self.isAttachedToDevice():
            self.attachToDevice()
        found = [(x.shape, x.dtype) for x in inputs]
        if found != self._input_types:
            raise SimulatorError(
                f"inputs: compiled for {self._input_types}, found {found}: an executable's shapes are fixed"
            )
        self._check_host()
        self._write_optimizer_state()
        if self._relaid:
            raise SimulatorError(
                f"{sorted(self._relaid)[0]}: its layout was changed but the moments were left behind in the old "
                "one: load an "
                "optimizer state dict with re-laid moments"
            )
        parts = [x.split(x.shape[0] // self._factors) for x in inputs]
        outputs: list[list[Tensor]] = []
        micro_batches = self._options.Training.gradient_accumulation
        number = 0
        for iteration in range(self._options.device_iterations):
            gradients: list[dict[str, Tensor]] = [{} for _ in range(self._options.replication_factor)]
            for micro_batch in range(micro_batches):
                for replica, accumulated in enumerate(gradients):
                    self.log.append((iteration, micro_batch, replica))
                    outputs.append(self._run([part[number] for part in parts], accumulated))
                    number += 1
            if self._optimizer is not None:
                self._step(gradients)
        if self._optimizer is not None:
            self._dirty_host = True
            self._optimizer.host_state_is_dirty = True
        return [torch.stack(column) if column[0].dim() == 0 else torch.cat(column) for column in zip(*outputs)]

    def _check_host(self) -> None:
        with self._host_access():
            self._host.check_shapes()
            changed = self._host.changed()
            for name in changed:
                if not self._host.synced[name].is_floating_point():
                    self._refuse_constant(name, self._host.named()[name])
        if changed and self._dirty_host:
            raise SimulatorError(
                f"{changed[0]}: edited on the host through an alias taken before the last step; the device never "
                "sees it"
            )
        if changed:
            raise SimulatorError(
                f"{changed[0]}: changed on the host but never uploaded: call copyWeightsToDevice() before the next step"
            )

    def _forward(self, inputs: list[Tensor], trace: Trace, parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
        with self._host_access(), trace:
            outputs = torch.func.functional_call(self._model, {**parameters, **self._buffers}, tuple(inputs))
        if self.isCompiled() and trace.visited != self.stages:
            raise SimulatorError(f"pipeline: compiled for stages {self.stages}, ran {trace.visited}")
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _run(self, inputs: list[Tensor], accumulated: dict[str, Tensor]) -> list[Tensor]:
        training = self._optimizer is not None
        parameters = {n: p.detach().requires_grad_(training) for n, p in self._parameters.items()}
        half_partials = self._options.Precision.partials == torch.float16
        trace = Trace(self._rounding)
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training):
            torch.set_rng_state(self._rng)
            with self._arithmetic(half_partials):
                outputs = self._forward(inputs, trace, parameters)
                if training:
                    if len(trace.losses) != 1:
                        raise SimulatorError(f"model: expected one identity_loss, found {len(trace.losses)}")
                    (trace.losses[0] * self._device_optimizer.loss_scaling).backward()
            self._rng = torch.get_rng_state()
        if training:
            self._accumulate(parameters, accumulated)
        return [x.detach() for x in outputs]

    def _arithmetic(self, half_partials: bool) -> ContextManager[Any]:
        if any(p.dtype == torch.float16 for p in self._parameters.values()):
            return HalfArithmetic(self._rounding, half_partials)
        return contextlib.nullcontext()

    @torch.no_grad()
    def _accumulate(self, parameters: dict[str, Tensor], accumulated: dict[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is None:
                continue
            total = parameter.grad.float()
            if name in accumulated:
                total = total + accumulated[name].float()
            half = self._device_optimizer.accum_type == torch.float16
            accumulated[name] = self._rounding(total) if half else total

    @torch.no_grad()
    def _step(self, gradients: list[dict[str, Tensor]]) -> None:
        self._check_moments()
        total = gradients[0]
        for other in gradients[1:]:
            for name, gradient in other.items():
                reduced = total[name].float() + gradient.float()
                total[name] = self._rounding(reduced) if gradient.dtype == torch.float16 else reduced
        self._device_optimizer.step(self._parameters, total, self._rounding)

    def _check_moments(self) -> None:
        encoder, state = SimulatedEncoder(), self._device_optimizer.state
        for meta_info, (plan, nz) in self._sparse.items():
            moments = [state[key] for key in (f"Accl1___{nz}", f"Accl2___{nz}") if key in state]
            try:
                encoder.decode(plan, bits_from_half(self._buffers[meta_info]), moments)
            except ValueError as error:
                raise SimulatorError(f"moments of {nz}: {error}") from None

    # --- checks at compilation

    def _trace_once(self, inputs: list[Tensor]) -> Trace:
        trace = Trace(Rounding())
        placement = VariablePlacement({**self._parameters, **self._buffers}, trace)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), placement, HalfArithmetic(Rounding(), False):
            self._forward(inputs, trace, self._parameters)
        return trace

    def _names_of(self, trace: Trace) -> dict[str, tuple[LayerPlan, str]]:
        """metaInfo buffer -> (plan, name of its nz); refuses metaInfo or nz that is not a tensor of the model."""
        buffers = {id(t): n for n, t in self._buffers.items()}
        parameters = {id(t): n for n, t in self._parameters.items()}
        found = {}
        for plan, meta_info, nz in trace.sparse:
            if id(meta_info) not in buffers or id(nz) not in parameters:
                raise SimulatorError(f"{plan.layer}: metaInfo must be a buffer of the model and nz a parameter")
            found[buffers[id(meta_info)]] = (plan, parameters[id(nz)])
        return found

    @contextlib.contextmanager
    def _host_access(self) -> Iterator[None]:
        """The executor's own accesses to the model are no reason to download."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before
