"""Whether the tensors of a checkpoint can be those of a model: asked for all of them before one is taken over."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor, nn

from ipu_bert.engines.base import MOMENTS
from ipu_bert.model import sparse_layers
from sparse_ops.pattern import BlockPattern

Tensors = Mapping[str, Tensor]


def check_state(model: nn.Module, groups: Mapping[str, Tensors], step: int) -> None:
    """ValueError that names the first tensor that training cannot go on from."""
    check_model(model, groups)
    _check_generators(groups.get("random", {}))
    found = dict(_group(groups, "optimizer"))
    updates = found.pop("updates", None)  # missing where no step could be skipped
    if updates is not None and (updates.shape != () or updates.dtype != torch.int64 or not 0 <= int(updates) <= step):
        raise ValueError(
            f"optimizer.safetensors: updates: expected a whole number of 0 to {step}, found {_text(updates)}"
        )
    expected = {f"{key}.{name}": parameter for name, parameter in model.named_parameters() for key in MOMENTS}
    _check_tensors("optimizer", expected, found)
    second = MOMENTS[1]  # of squares
    negative = [name for name in expected if name.startswith(f"{second}.") and bool((found[name] < 0).any())]
    if negative:
        raise ValueError(f"optimizer.safetensors: {negative[0]}: expected no number below 0, found one")


def check_model(model: nn.Module, groups: Mapping[str, Tensors]) -> None:
    """ValueError that names the first tensor of the group "model" that is not one of this model.

    Missing, unknown, of another shape or dtype, not finite, or positions that no pattern of the layer can have.
    """
    found = _group(groups, "model")
    _check_tensors("model", model.state_dict(), found)
    for name, layer in sparse_layers(model):
        mine = layer.pattern
        try:
            pattern = BlockPattern(
                mine.shape, mine.block_size, found[f"{name}.rows"], found[f"{name}.cols"], mine.segments
            )
        except ValueError as error:
            raise ValueError(f"model.safetensors: {name}: {error}") from None
        wanted, got = (x.slot_segments().bincount(minlength=x.segments).tolist() for x in (mine, pattern))
        if wanted != got:
            raise ValueError(f"model.safetensors: {name}.rows: expected {wanted} blocks by segment, found {got}")


def _check_generators(found: Tensors) -> None:
    """States of random generators: torch's own, and numbers of PopTorch's."""
    for name, tensor in found.items():
        try:
            if name == "torch":
                torch.Generator().set_state(tensor)
            elif tensor.dtype != torch.int64 or tensor.dim() != 1:
                raise TypeError(f"expected int64 [n], found {_text(tensor)}")
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"random.safetensors: {name}: {' '.join(str(error).split())}") from None


def _group(groups: Mapping[str, Tensors], group: str) -> Tensors:
    if group not in groups:
        raise ValueError(f"expected {group}.safetensors, found no such file in it")
    return groups[group]


def _check_tensors(group: str, expected: Tensors, found: Tensors) -> None:
    for name in sorted({*expected, *found}):
        wanted, got = (_text(x[name]) if name in x else "no such tensor" for x in (expected, found))
        if wanted != got:
            raise ValueError(f"{group}.safetensors: {name}: expected {wanted} as in this config's model, found {got}")
        if found[name].is_floating_point() and not bool(torch.isfinite(found[name]).all()):
            raise ValueError(f"{group}.safetensors: {name}: expected finite numbers, found NaN or inf")


def _text(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).rpartition('.')[2]} {list(tensor.shape)}"
