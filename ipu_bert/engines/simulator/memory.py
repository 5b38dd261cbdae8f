"""The host's side of the device's memory: what was transferred last, so that lost edits are noticed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

from ipu_bert.engines.simulator.errors import SimulatorError

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether dtype, shape and every bit are equal; NaN patterns compare like any other."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype == torch.bool:
        return torch.equal(a, b)
    bits = _BITS[a.element_size()]
    return torch.equal(a.detach().contiguous().view(bits), b.detach().contiguous().view(bits))


class HostTensors:
    """The parameters and buffers of a host model, with a copy of what they were at the last transfer."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.in_use = model, False
        self.synced = {name: tensor.detach().clone() for name, tensor in self.named().items()}

    @contextmanager
    def access(self) -> Iterator[None]:
        """While inside, `in_use` is set: the executor's own accesses to the model are no reason to download."""
        before, self.in_use = self.in_use, True
        try:
            yield
        finally:
            self.in_use = before

    def named(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, as PopTorch names them: the live tensors."""
        with self.access():
            return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def changed(self) -> list[str]:
        """Names of tensors that differ from the last transfer."""
        return [name for name, tensor in self.named().items() if not same_bits(tensor, self.synced[name])]

    def check_shapes(self) -> None:
        """Raises SimulatorError for tensors that came, went, or changed shape or dtype since compilation."""
        now = self.named()
        if now.keys() != self.synced.keys():
            raise SimulatorError(f"tensors changed after compilation: {sorted(now.keys() ^ self.synced.keys())}")
        for name, tensor in now.items():
            was = self.synced[name]
            if was.shape != tensor.shape or was.dtype != tensor.dtype:
                raise SimulatorError(
                    f"{name}: compiled as {was.dtype} {list(was.shape)}, found {tensor.dtype} {list(tensor.shape)}: an "
                    "executable's shapes are fixed"
                )

    def mark(self) -> None:
        """Host and device agree now."""
        for name, tensor in self.named().items():
            self.synced[name].copy_(tensor.detach())


class Transfers:
    """Bytes and counts of transfers in each direction."""

    def __init__(self) -> None:
        self.bytes_down = self.bytes_up = self.downloads = self.uploads = 0

    def down(self, size: int) -> None:
        """Count one transfer of `size` bytes, device to host."""
        self.bytes_down += size
        self.downloads += 1

    def up(self, size: int) -> None:
        """Count one transfer of `size` bytes, host to device."""
        self.bytes_up += size
        self.uploads += 1


def intercept(model: nn.Module, touched: Callable[[], Any]) -> None:
    """Call `touched` whenever weights of `model` are reached through the model, as PopTorch's wrappers do.

    Tensors and views taken earlier are not intercepted, there as here.
    """
    for module in model.modules():
        original = type(module)

        class Watched(original):  # type: ignore[valid-type, misc]
            def __getattribute__(self, name: str) -> Any:
                if name in ("_parameters", "_buffers"):
                    touched()
                return object.__getattribute__(self, name)

            def __getattr__(self, name: str) -> Any:
                own = object.__getattribute__(self, "__dict__")
                if name in own["_parameters"] or name in own["_buffers"]:
                    touched()
                return super().__getattr__(name)

        Watched.__name__, Watched.__qualname__ = original.__name__, original.__qualname__
        module.__class__ = Watched
