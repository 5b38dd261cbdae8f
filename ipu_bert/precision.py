"""One frozen precision policy, applied by the engine; master weights and moments stay float32."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ContextManager

import torch


@dataclass(frozen=True)
class Precision:
    """compute: the dtype of products and activations, `float32`, `bfloat16` (torch engine) or `float16` (IPU engine).

    loss_scale: factor on the loss before the backward pass, divided out of the gradients before clipping; Adam's eps
    therefore stays 1e-6 where the paper, whose gradients keep the factor, writes 1e-6 x loss scale.
    """

    compute: str
    loss_scale: float

    def autocast(self) -> ContextManager[None]:
        """The context that forward passes on the CPU run in."""
        if self.compute == "float32":
            return nullcontext()
        return torch.autocast("cpu", dtype=getattr(torch, self.compute))
