"""The optimizer's tensors that belong to blocks: what has to be zeroed where a block is put anew."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor

from sparse_ops.linear import BlockSparseLinear


def moments_of(optimizer: torch.optim.Optimizer, layers: Mapping[str, BlockSparseLinear]) -> dict[str, list[Tensor]]:
    """Per layer every state tensor [nnz, b, b] that the optimizer keeps of its values; none before the first step.

    Numbers that are not kept per element, as counts of steps, are left out. Raises ValueError for an optimizer that
    does not hold a layer's values, and for one whose state is neither per element nor one number, as Adafactor's and
    LBFGS's, or begins at another number than zero, as Rprop's.
    """
    if isinstance(optimizer, (torch.optim.LBFGS, torch.optim.Rprop)):
        raise ValueError(
            f"moments_of: expected state per element that begins at zero, found {type(optimizer).__name__}"
        )
    if any(group.get("initial_accumulator_value") for group in optimizer.param_groups):
        raise ValueError("moments_of: expected state that begins at zero, found another initial_accumulator_value")
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    found: dict[str, list[Tensor]] = {}
    for name, layer in layers.items():
        if layer.values not in held:
            raise ValueError(f"{name}.values: expected a parameter of the optimizer, found one that it does not hold")
        found[name] = []
        for key, state in optimizer.state.get(layer.values, {}).items():
            if not isinstance(state, Tensor) or state.dim() == 0:
                continue
            if state.shape != layer.values.shape:
                expected, shape = list(layer.values.shape), list(state.shape)
                raise ValueError(
                    f"{name}.values: expected {key} of the optimizer per element, {expected}, found {shape}"
                )
            found[name].append(state)
    return found
