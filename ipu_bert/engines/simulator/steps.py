"""Runs a call's micro-batches in the device's order: forward, backward, accumulation, and the optimizer's step."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Sequence

import torch
from torch import Tensor

from ipu_bert.engines.simulator.compilation import Executable
from ipu_bert.engines.simulator.device import DeviceMemory, DeviceRandom
from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.layout import SimulatedEncoder
from ipu_bert.engines.simulator.loss_scale import AutomaticLossScale
from ipu_bert.engines.simulator.optim import DeviceAdamW
from ipu_bert.engines.simulator.options import Options
from ipu_bert.engines.simulator.reduction import GradientReduction, Gradients
from sparse_ops.ipu.layout import bits_from_half


class StepRunner:
    """Runs `executable` on the device's memory; nothing of the host's model is needed any more.

    log: (iteration, micro-batch, replica) in the order they ran.
    """

    def __init__(self, device: DeviceMemory, executable: Executable, options: Options, random: DeviceRandom) -> None:
        self._device, self._executable = device, executable
        self._options, self._random = options, random
        self._loss_scale = AutomaticLossScale(options.Training.automatic_loss_scaling)
        self.log: list[tuple[int, int, int]] = []

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """One call with inputs [global batch, ...]; outputs [micro-batches, ...], scalars stacked, others joined.

        Raises ValueError where values are not of metaInfo's layout, and SimulatorError where moments are not.
        """
        parts = zip(*(x.split(x.shape[0] // self._executable.micro_batches) for x in inputs))
        outputs: list[list[Tensor]] = []
        for iteration in range(self._options.device_iterations):
            gradients: list[Gradients] = [{} for _ in range(self._options.replication_factor)]
            with self._random.drawn(), self._weights_in_use():
                for micro_batch in range(self._options.Training.gradient_accumulation):
                    for replica, accumulated in enumerate(gradients):
                        self.log.append((iteration, micro_batch, replica))
                        outputs.append(self._run_micro_batch(next(parts), accumulated, micro_batch))
            if self._device.optimizer is not None:
                self._step(self._device.optimizer, gradients)
        return [torch.stack(column) if column[0].dim() == 0 else torch.cat(column) for column in zip(*outputs)]

    def _run_micro_batch(self, inputs: tuple[Tensor, ...], accumulated: Gradients, done: int) -> list[Tensor]:
        outputs, gradients = self._executable.program.run(inputs)
        if self._device.optimizer is not None:
            parameters = self._device.parameters
            self._loss_scale.count([g for name, g in gradients.items() if parameters[name].dtype == torch.float16])
            self._reduction(self._device.optimizer).accumulate(accumulated, gradients, done)
        return outputs

    @contextmanager
    def _weights_in_use(self) -> Iterator[None]:
        """Weights stay as they are while inside, so that what follows from them alone is computed once."""
        optimizer, program = self._device.optimizer, self._executable.program
        program.begin(self._device.variables, torch.tensor(1.0 if optimizer is None else optimizer.loss_scaling))
        try:
            yield
        finally:
            program.end()

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
