"""Between the canonical model on the host and the tensors that PopTorch moves: slots, names and moments."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

import torch
from torch import Tensor, nn

from ipu_bert.engines.base import MOMENTS
from ipu_bert.model import BertForPreTraining, sparse_layers
from sparse_ops.ipu.layer import IpuBlockSparseLinear
from sparse_ops.ipu.layout import plain
from sparse_ops.linear import BlockSparseLinear

State = Optional[Mapping[str, Tensor]]  # PopTorch's "ipu_state"
Moments = Dict[str, List[Tensor]]  # canonical parameter -> both moments, float32


class CanonicalModel:
    """The canonical model kept on the host beside the one that PopTorch runs, and the translation between both.

    Tensors of the device's model are always reached through the model, at the time of use: PopTorch downloads when
    that happens after a step, and aliases from before would be out of date.
    """

    def __init__(self, model: BertForPreTraining, device_model: nn.Module) -> None:
        self.model = model
        self.layers: dict[str, BlockSparseLinear] = dict(sparse_layers(model))
        self._device_model = device_model
        values = {f"{name}.values" for name in self.layers}
        self.names = {  # canonical parameter -> parameter of the device's model
            name: f"{name[: -len('values')]}nz_values" if name in values else name
            for name, _ in model.named_parameters()
        }

    def device_layer(self, name: str) -> IpuBlockSparseLinear:
        """The sparse layer that PopTorch runs."""
        layer = self._device_model.get_submodule(name)
        assert isinstance(layer, IpuBlockSparseLinear)
        return layer

    @torch.no_grad()
    def read_sparse(self, state: State) -> Moments:
        """Fill the canonical sparse layers from the device's model; returns their moments [nnz, b, b]."""
        moments = {}
        for name, layer in self.layers.items():
            device_layer = self.device_layer(name)
            found = self._moments_of(f"{name}.nz_values", state, device_layer.nz_values)
            values, slots = device_layer.read_slots(layer.rows, layer.cols, found)
            layer.values.copy_(values)
            moments[name] = slots
        return moments

    @torch.no_grad()
    def write_sparse(self, moments: Moments) -> dict[str, Tensor]:
        """Encode the canonical sparse layers into the device's model; returns their state in device layout."""
        state: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            device_layer = self.device_layer(name)
            encoded = device_layer.write_slots(layer.rows, layer.cols, layer.values, moments[name])
            state.update(zip(_state_names(f"{name}.nz_values"), encoded))
        return state

    @torch.no_grad()
    def read_all(self, state: State) -> dict[str, Tensor]:
        """Fill the canonical model; returns every moment as `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`."""
        sparse = self.read_sparse(state)
        device = dict(self._device_model.named_parameters())
        found: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            layer = name.rpartition(".")[0]
            if name.endswith(".values") and layer in sparse:
                pair = sparse[layer]
            else:
                parameter.copy_(device[name])
                pair = self._moments_of(name, state, device[name])
            found.update({f"{key}.{name}": moment for key, moment in zip(MOMENTS, pair)})
        return found

    @torch.no_grad()
    def write_all(self, moments: Mapping[str, Tensor], updates: int) -> dict[str, Tensor]:
        """The canonical model into the device's; returns the whole state in device layout and names.

        updates: of the weights so far, as AdamW corrects its bias by.
        """
        sparse = {name: [moments[f"{key}.{name}.values"] for key in MOMENTS] for name in self.layers}
        state = self.write_sparse(sparse)
        device = dict(self._device_model.named_parameters())
        for name, parameter in self.model.named_parameters():
            device_name = self.names[name]
            if device_name == name:
                device[name].copy_(parameter)
                state.update(zip(_state_names(name), (moments[f"{key}.{name}"].clone() for key in MOMENTS)))
            state[f"Step___{device_name}"] = torch.tensor(float(updates))
        return state

    def _moments_of(self, name: str, state: State, parameter: Tensor) -> list[Tensor]:
        if state is None:  # no step yet
            return [torch.zeros(parameter.shape) for _ in MOMENTS]
        return [plain(state[key]).float().reshape(parameter.shape) for key in _state_names(name)]


def _state_names(name: str) -> tuple[str, str]:
    return f"Accl1___{name}", f"Accl2___{name}"


def streamed_bytes(model: nn.Module, state: Any) -> int:
    """Bytes that one transfer of PopART moves: all floating weights and buffers, and the optimizer's state."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point()), *(state or {}).values()]
    return sum(t.numel() * t.element_size() for t in tensors)
