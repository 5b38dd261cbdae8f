"""What the simulated device holds: copies of the model's tensors, the optimizer's state, and random numbers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import torch
from torch import Tensor, nn

from ipu_bert.engines.simulator.arithmetic import Rounding
from ipu_bert.engines.simulator.optim import AdamW, DeviceAdamW


class DeviceMemory:
    """The device's own copies of a model's parameters and buffers, by name, and its optimizer; none for inference."""

    def __init__(self, model: nn.Module, optimizer: AdamW | None) -> None:
        self.parameters = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        self.buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
        self.optimizer: DeviceAdamW | None = None
        if optimizer is not None:
            names = {id(tensor): name for name, tensor in model.named_parameters()}
            self.optimizer = DeviceAdamW(names, optimizer, self.parameters)

    @property
    def variables(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return {**self.parameters, **self.buffers}

    def streamed_bytes(self) -> int:
        """Bytes of one transfer: each of PopART's moves every streamed variable, optimizer state included."""
        tensors = [*self.parameters.values(), *(b for b in self.buffers.values() if b.is_floating_point())]
        if self.optimizer is not None:
            tensors += self.optimizer.state.values()
        return sum(t.numel() * t.element_size() for t in tensors)


class DeviceRandom:
    """The device's random numbers: one generator for dropout and, where halves are rounded stochastically, another."""

    def __init__(self, seed: int, stochastic_rounding: bool) -> None:
        self.rounding = Rounding(seed if stochastic_rounding else None)
        self._dropout = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """While inside, torch's CPU generator is the device's; the host's is as before afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._dropout)
            yield
            self._dropout = torch.get_rng_state()

    @property
    def state(self) -> list[int]:
        """Bytes of the state of dropout, then of stochastic rounding."""
        dropout: list[int] = self._dropout.tolist()
        return dropout + self.rounding.state

    @state.setter
    def state(self, state: list[int]) -> None:
        size = self._dropout.numel()
        self._dropout = torch.tensor(state[:size], dtype=torch.uint8)
        self.rounding.state = state[size:]
