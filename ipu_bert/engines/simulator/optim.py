"""poptorch.optim.AdamW, as far as it is used here: settings on the host, state on the device."""

from __future__ import annotations

from typing import Any, Iterable

import torch
from torch import Tensor

from ipu_bert.engines.simulator.arithmetic import Rounding


class AdamW(torch.optim.AdamW):
    """Settings and a cached copy of the device's state.

    `state_dict` has the device's moments under "ipu_state", named `Accl1___<parameter>` and `Accl2___<parameter>`;
    `load_state_dict` marks them to be written before the next step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        loss_scaling: float = 1.0,
        bias_correction: bool = True,
        accum_type: torch.dtype = torch.float32,
        first_order_momentum_accum_type: torch.dtype = torch.float32,
        second_order_momentum_accum_type: torch.dtype = torch.float32,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.loss_scaling, self.bias_correction, self.accum_type = loss_scaling, bias_correction, accum_type
        self.moment_types = (first_order_momentum_accum_type, second_order_momentum_accum_type)
        self.max_grad_norm = max_grad_norm
        self._ipu: dict[str, Any] = {"ipu_state": None, "ipu_param": None}
        self.ipu_state_is_dirty = self.host_state_is_dirty = False
        self.read_device: Any = None  # set at compilation

    def state_dict(self) -> dict[str, Any]:
        """torch's settings and the device's state by name, downloaded when it is newer than the cached copy."""
        if self.host_state_is_dirty and self.read_device is not None:
            self._ipu = self.read_device()
            self.host_state_is_dirty = False
        return {**self._ipu, **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take settings and state; the state reaches the device at the next call. Raises RuntimeError without any."""
        if state_dict.get("ipu_state") is None:
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self._ipu = {key: state_dict[key] for key in ("ipu_state", "ipu_param")}
        self.ipu_state_is_dirty, self.host_state_is_dirty = True, False

    @property
    def cached_state(self) -> dict[str, Tensor] | None:
        """The host's copy of the device's state by name; None before there is any."""
        state: dict[str, Tensor] | None = self._ipu["ipu_state"]
        return state


class DeviceAdamW:
    """The update as PopART composes it: unscale, clip, moments, decoupled decay; float32 inside, weights rounded.

    state: `Accl1___<parameter>` and `Accl2___<parameter>` in the parameter's shape; where bias is corrected, also
    `Step___<parameter>`, float32 [].
    """

    def __init__(self, names: dict[int, str], optimizer: AdamW, parameters: dict[str, Tensor]) -> None:
        self._names = names  # id of a host parameter -> its name
        self.accum_type, self.loss_scaling = optimizer.accum_type, optimizer.loss_scaling
        self._bias_correction, self._max_norm = optimizer.bias_correction, optimizer.max_grad_norm
        self._settings: dict[str, dict[str, Any]] = {}
        self.configure(optimizer)
        self.state: dict[str, Tensor] = {}
        for name in self._settings:
            for i, dtype in enumerate(optimizer.moment_types):
                self.state[f"Accl{i + 1}___{name}"] = torch.zeros_like(parameters[name], dtype=dtype)
            if self._bias_correction:
                self.state[f"Step___{name}"] = torch.zeros(())

    def configure(self, optimizer: AdamW) -> None:
        """Take over settings such as the learning rate."""
        self._settings = {
            self._names[id(p)]: {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
            for group in optimizer.param_groups
            for p in group["params"]
        }

    def step(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor], rounding: Rounding) -> None:
        """One step with summed gradients that still carry the loss scale; parameters change in place."""
        unscaled = {name: g.float() / self.loss_scaling for name, g in gradients.items() if name in self._settings}
        factor = 1.0
        if self._max_norm is not None:
            norm = float(torch.stack([g.double().square().sum() for g in unscaled.values()]).sum().sqrt())
            factor = self._max_norm / max(norm, self._max_norm)
        for name, g in unscaled.items():
            settings = self._settings[name]
            g = g * factor
            first, second = (self.state[f"Accl{i}___{name}"] for i in (1, 2))
            beta1, beta2 = settings["betas"]
            first.copy_(beta1 * first.float() + (1.0 - beta1) * g)
            second.copy_(beta2 * second.float() + (1.0 - beta2) * g * g)
            mean, square = first.float(), second.float()
            if self._bias_correction:
                step = self.state[f"Step___{name}"]
                step += 1
                mean, square = mean / (1.0 - beta1 ** float(step)), square / (1.0 - beta2 ** float(step))
            weight = parameters[name]
            update = mean / (square.sqrt() + settings["eps"]) + settings["weight_decay"] * weight.float()
            changed = weight.float() - settings["lr"] * update
            weight.copy_(rounding(changed) if weight.dtype == torch.float16 else changed)
