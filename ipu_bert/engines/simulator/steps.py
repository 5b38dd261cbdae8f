"""Runs a call's micro-batches in the device's order: forward, backward, accumulation, and the optimizer's step."""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager, Sequence

import torch
from torch import Tensor

from ipu_bert.engines.simulator.arithmetic import HalfArithmetic
from ipu_bert.engines.simulator.compilation import Executable
from ipu_bert.engines.simulator.device import DeviceMemory, DeviceRandom
from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.layout import SimulatedEncoder
from ipu_bert.engines.simulator.loss_scale import AutomaticLossScale
from ipu_bert.engines.simulator.memory import HostTensors
from ipu_bert.engines.simulator.optim import DeviceAdamW
from ipu_bert.engines.simulator.options import Options
from ipu_bert.engines.simulator.reduction import GradientReduction, Gradients
from ipu_bert.engines.simulator.trace import Trace
from sparse_ops.ipu.layout import bits_from_half


class StepRunner:
    """Runs `executable` on the device's memory; the host's model gives the code and none of its tensors.

    log: (iteration, micro-batch, replica) in the order they ran.
    """

    def __init__(
        self, host: HostTensors, device: DeviceMemory, executable: Executable, options: Options, random: DeviceRandom
    ) -> None:
        self._host, self._device, self._executable = host, device, executable
        self._options, self._random = options, random
        self._loss_scale = AutomaticLossScale(options.Training.automatic_loss_scaling)
        self.log: list[tuple[int, int, int]] = []

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """One call with inputs [global batch, ...]; outputs [micro-batches, ...], scalars stacked, others joined.

        Raises SimulatorError where stages, losses or layouts are not what was compiled.
        """
        parts = zip(*(x.split(x.shape[0] // self._executable.micro_batches) for x in inputs))
        outputs: list[list[Tensor]] = []
        for iteration in range(self._options.device_iterations):
            gradients: list[Gradients] = [{} for _ in range(self._options.replication_factor)]
            for micro_batch in range(self._options.Training.gradient_accumulation):
                for replica, accumulated in enumerate(gradients):
                    self.log.append((iteration, micro_batch, replica))
                    outputs.append(self._run_micro_batch(next(parts), accumulated, micro_batch))
            if self._device.optimizer is not None:
                self._step(self._device.optimizer, gradients)
        return [torch.stack(column) if column[0].dim() == 0 else torch.cat(column) for column in zip(*outputs)]

    def _run_micro_batch(self, inputs: tuple[Tensor, ...], accumulated: Gradients, done: int) -> list[Tensor]:
        optimizer = self._device.optimizer
        training = optimizer is not None
        parameters = {n: p.detach().requires_grad_(training) for n, p in self._device.parameters.items()}
        trace = Trace(self._random.rounding)
        with self._random.drawn(), torch.set_grad_enabled(training), self._arithmetic():
            outputs = self._forward(inputs, trace, parameters)
            if optimizer is not None:
                if len(trace.losses) != 1:
                    raise SimulatorError(f"model: expected one identity_loss, found {len(trace.losses)}")
                (trace.losses[0] * optimizer.loss_scaling).backward()
        if optimizer is not None:
            gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            self._loss_scale.count(gradients)
            self._reduction(optimizer).accumulate(accumulated, gradients, done)
        return [x.detach() for x in outputs]

    def _forward(self, inputs: tuple[Tensor, ...], trace: Trace, parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
        with self._host.access(), trace:
            outputs = torch.func.functional_call(self._host.model, {**parameters, **self._device.buffers}, inputs)
        if trace.visited != self._executable.stages:
            raise SimulatorError(f"pipeline: compiled for stages {self._executable.stages}, ran {trace.visited}")
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _arithmetic(self) -> ContextManager[Any]:
        if any(p.dtype == torch.float16 for p in self._device.parameters.values()):
            return HalfArithmetic(self._random.rounding, self._options.Precision.partials == torch.float16)
        return contextlib.nullcontext()

    def _reduction(self, optimizer: DeviceAdamW) -> GradientReduction:
        half = optimizer.accum_type == torch.float16
        return GradientReduction(self._options.Training.reduction, half, self._random.rounding)

    @torch.no_grad()
    def _step(self, optimizer: DeviceAdamW, gradients: list[Gradients]) -> None:
        self._check_moments(optimizer)
        micro_batches = self._options.Training.gradient_accumulation
        total = self._reduction(optimizer).over_replicas(gradients, micro_batches)
        optimizer.step(self._device.parameters, total, self._random.rounding)
        optimizer.loss_scaling *= self._loss_scale.factor()

    def _check_moments(self, optimizer: DeviceAdamW) -> None:
        """Moments in another layout than metaInfo would be updated without a word on hardware."""
        encoder, state = SimulatedEncoder(), optimizer.state
        for meta_info, sparse in self._executable.sparse.items():
            moments = [state[key] for key in (f"Accl1___{sparse.values}", f"Accl2___{sparse.values}") if key in state]
            try:
                encoder.decode(sparse.plan, bits_from_half(self._device.buffers[meta_info]), moments)
            except ValueError as error:
                raise SimulatorError(f"moments of {sparse.values}: {error}") from None
