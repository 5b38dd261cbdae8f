"""Runs a model's own code for one micro-batch, as PopTorch does when it traces, and makes a program of what it did."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, Sequence

import torch
from torch import Tensor, nn

from ipu_bert.engines.simulator.arithmetic import HalfArithmetic
from ipu_bert.engines.simulator.device import DeviceMemory, DeviceRandom
from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.memory import same_bits
from ipu_bert.engines.simulator.program import Program, Result, Wanted
from ipu_bert.engines.simulator.tape import Tape
from ipu_bert.engines.simulator.trace import Trace


@dataclass(frozen=True)
class Traced:
    """One micro-batch: what the model did, its outputs, and gradients by parameter, with the loss scale."""

    trace: Trace
    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]


class Tracer:
    """Traces `model` on the device, with its kind of random numbers, none of which are used up.

    parameters: those that the model's code gets, with the device's values.
    """

    def __init__(self, model: nn.Module, device: DeviceMemory, random: DeviceRandom, half_partials: bool) -> None:
        self._model, self._device, self._rounding, self._half_partials = model, device, random.rounding, half_partials
        self._training = device.optimizer is not None
        self.parameters = {name: p.detach().requires_grad_(self._training) for name, p in device.parameters.items()}
        loss_scaling = 1.0 if device.optimizer is None else device.optimizer.loss_scaling
        self._scale = torch.tensor(loss_scaling)

    def program(self, first: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[Traced, Program]:
        """Of the micro-batch `first`; `other` is the proof of it.

        Raises SimulatorError where the program does not give the other micro-batch's very bits: then the model's code
        depends on values, and PopTorch would fix those of its trace without a word.
        """
        used, first = self._rounding.count, [x.clone() for x in first]
        tape = Tape(self._device.variables, first, self._scale)
        traced = self._traced(first, HalfArithmetic(self._rounding, self._half_partials, tape))
        wanted = Wanted(
            [tape.result(x) for x in traced.outputs],
            [x.dtype for x in traced.outputs],
            {name: tape.result(x) for name, x in traced.gradients.items()},
        )
        program = Program(tape, wanted, self._rounding.count, self._rounding)
        direct = self._traced(other, HalfArithmetic(self._rounding, self._half_partials, None))
        found = self._run(program, other)
        self._rounding.count = used
        expected = [*direct.outputs, *(x.float() for x in direct.gradients.values())]
        for a, b in zip(expected, [*found.outputs, *found.gradients.values()]):
            if not same_bits(a, b):
                raise SimulatorError(
                    "model: what was traced with one micro-batch gives other numbers for another than its code does: "
                    "the code depends on values, which a trace fixes"
                )
        return traced, program

    def _traced(self, inputs: Sequence[Tensor], arithmetic: HalfArithmetic) -> Traced:
        trace = Trace(arithmetic)
        with self._random_numbers(), torch.set_grad_enabled(self._training), arithmetic:
            with trace:
                variables = {**self.parameters, **self._device.buffers}
                outputs = torch.func.functional_call(self._model, variables, tuple(inputs))
            gradients = self._backward(trace) if self._training else {}
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return Traced(trace, tuple(x.detach() for x in outputs), gradients)

    def _backward(self, trace: Trace) -> dict[str, Tensor]:
        if len(trace.losses) != 1:
            raise SimulatorError(f"model: expected one identity_loss, found {len(trace.losses)}")
        (loss,) = trace.losses
        start, parameters = [self._scale.to(loss.dtype)], list(self.parameters.values())
        gradients = torch.autograd.grad([loss], parameters, start, allow_unused=True)
        return {name: gradient for name, gradient in zip(self.parameters, gradients) if gradient is not None}

    def _run(self, program: Program, inputs: Sequence[Tensor]) -> Result:
        with self._random_numbers():
            program.begin(self._device.variables, self._scale)
            result = program.run(inputs)
            program.end()
            return result

    @contextmanager
    def _random_numbers(self) -> Iterator[None]:
        """The same ones for every pass."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._rounding.count = 0
            yield
