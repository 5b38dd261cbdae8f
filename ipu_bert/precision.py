"""One frozen precision policy, applied by the engine; master weights and moments stay float32."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ContextManager

import torch


@dataclass(frozen=True)
class Precision:
    """compute: `float32` or `bfloat16`, the dtype of products and activations on the torch engine.

    loss_scale: factor on the loss before the backward pass, divided out of the gradients before clipping; Adam's eps
    therefore stays 1e-6 where the paper, whose gradients keep the factor, writes 1e-6 x loss scale.
    """

    compute: str = "float32"
    loss_scale: float = 1.0

    def autocast(self) -> ContextManager[None]:
        """The context that forward passes run in."""
        if self.compute == "float32":
            return nullcontext()
        return torch.autocast("cpu", dtype=getattr(torch, self.compute))
