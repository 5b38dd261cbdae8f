"""Transfers between the host's model and the device: data moves only when told to, and no edit gets lost on the way.

Errors where hardware would lose data silently: weights edited on the host and never uploaded, or edited through an old
alias while the device had newer ones; an integer buffer changed after compilation; metaInfo uploaded without moments;
anything whose shape changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ipu_bert.engines.simulator.compilation import SparseVariable
from ipu_bert.engines.simulator.device import DeviceMemory
from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.memory import HostTensors, Transfers, same_bits
from ipu_bert.engines.simulator.optim import AdamW


class WeightStreams:
    """Moves weights, buffers and optimizer state. optimizer: the host's, none for inference; sparse: by metaInfo."""

    def __init__(
        self,
        host: HostTensors,
        device: DeviceMemory,
        sparse: dict[str, SparseVariable],
        optimizer: AdamW | None,
        transfers: Transfers,
    ) -> None:
        self._host, self._device, self._sparse = host, device, sparse
        self._optimizer, self._transfers = optimizer, transfers
        self._device_is_newer = False
        self._relaid: set[str] = set()  # metaInfo buffers uploaded since the moments were last written

    # --- weights and buffers

    def download_if_newer(self) -> bool:
        """Download when the device has stepped since the last transfer; whether it had."""
        if self._host.in_use or not self._device_is_newer:
            return False
        self.download()
        return True

    @torch.no_grad()
    def download(self) -> None:
        """Device to host, in place. Raises SimulatorError where the host has edits that this would overwrite."""
        lost = self._host.changed()
        if lost:
            raise SimulatorError(
                f"{lost[0]}: edited on the host through an alias taken before the last step; this download would "
                "overwrite the edit: reach tensors through the model, after the step"
            )
        variables = self._device.variables
        for name, tensor in self._host.named().items():
            tensor.copy_(variables[name])
        self._host.mark()
        self._device_is_newer = False
        self._transfers.down(self._device.streamed_bytes())

    def upload(self) -> None:
        """Host to device. Raises SimulatorError where the device has newer weights."""
        if self._device_is_newer:
            raise SimulatorError(
                "copyWeightsToDevice: the device has stepped since the host last saw its weights: this upload would "
                "undo that"
            )
        if self._optimizer is not None:
            self._optimizer.state_dict()  # an upload sends the optimizer's state along; have its newest copy
        self.load()

    @torch.no_grad()
    def load(self) -> None:
        """Host to device, whatever the device has. Raises SimulatorError for a changed shape or integer buffer."""
        self._host.check_shapes()
        variables = self._device.variables
        for name, tensor in self._host.named().items():
            if not tensor.is_floating_point():
                self._refuse_constant(name, tensor)
                continue
            device = variables[name]
            if name in self._sparse and not same_bits(device, tensor) and self._optimizer is not None:
                self._relaid.add(name)
            device.copy_(tensor)
        self._host.mark()
        self._transfers.up(self._device.streamed_bytes())

    def _refuse_constant(self, name: str, tensor: Tensor) -> None:
        if not same_bits(tensor, self._device.variables[name]):
            raise SimulatorError(
                f"{name}: an integer buffer is a constant of the executable and cannot change after compilation: carry "
                "its bits in a float16 buffer"
            )

    # --- optimizer state

    def read_optimizer_state(self) -> dict[str, Any]:
        """The device's state and loss scale, as AdamW.state_dict names them."""
        self._transfers.down(self._device.streamed_bytes())
        optimizer = self._device.optimizer
        assert optimizer is not None
        state = {name: tensor.clone() for name, tensor in optimizer.state.items()}
        return {"ipu_state": state, "ipu_param": {"lossScaling": optimizer.loss_scaling}}

    @torch.no_grad()
    def write_optimizer_state(self) -> None:
        """Send the state that was loaded on the host, if any. Raises SimulatorError where it does not fit."""
        if self._optimizer is None or not self._optimizer.ipu_state_is_dirty:
            return
        self.download_if_newer()
        assert self._device.optimizer is not None
        device = self._device.optimizer.state
        for name, tensor in (self._optimizer.cached_state or {}).items():
            if name not in device or device[name].shape != tensor.shape:
                raise SimulatorError(f"optimizer state {name}: unknown, or of another shape than compiled")
            self._refuse_old_layout(name, tensor, device[name])
            device[name].copy_(tensor)
        self._optimizer.ipu_state_is_dirty = False
        self._relaid.clear()
        self._transfers.up(self._device.streamed_bytes())

    def _refuse_old_layout(self, name: str, tensor: Tensor, device: Tensor) -> None:
        relaid = {f"Accl{i}___{self._sparse[buffer].values}" for buffer in self._relaid for i in (1, 2)}
        if name in relaid and bool(tensor.any()) and same_bits(tensor, device):
            raise SimulatorError(
                f"{name}: its layout was changed, but the moments were left behind in the old one (the same bits came "
                "back)"
            )

    # --- around a call

    def prepare_call(self) -> None:
        """Refuse edits that the device has not seen, send loaded optimizer state, refuse moments left behind."""
        self._refuse_edits()
        self.write_optimizer_state()
        if self._relaid:
            raise SimulatorError(
                f"{sorted(self._relaid)[0]}: its layout was changed but the moments were left behind in the old one: "
                "load an optimizer state dict with re-laid moments"
            )

    def finish_call(self) -> None:
        """After training the device has newer weights and optimizer state than the host."""
        if self._optimizer is not None:
            self._device_is_newer = True
            self._optimizer.host_state_is_dirty = True

    def _refuse_edits(self) -> None:
        self._host.check_shapes()
        changed = self._host.changed()
        for name in changed:
            if not self._host.synced[name].is_floating_point():
                self._refuse_constant(name, self._host.named()[name])
        if changed and self._device_is_newer:
            raise SimulatorError(
                f"{changed[0]}: edited on the host through an alias taken before the last step; the device never sees "
                "it"
            )
        if changed:
            raise SimulatorError(
                f"{changed[0]}: changed on the host but never uploaded: call copyWeightsToDevice() before the next step"
            )
