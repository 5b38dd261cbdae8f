"""Operations that PopTorch and PopART replace by others without a word: refused where that changes numbers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.options import Options


class Lowering(TorchFunctionMode):
    """While a model is traced, raises SimulatorError for an operation that the device would compute otherwise.

    GELU is PopART's tanh form whatever was asked for; a lookup that the pattern TiedGather replaces loses its
    padding_idx (docs/ipu.md has the lines of both).
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._tied_gather = bool(options._Popart.options.get("patterns", {}).get("TiedGather"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.gelu and kwargs.get("approximate", "none") != "tanh":
            raise SimulatorError("gelu: the device has the tanh form alone: ask for approximate='tanh'")
        padding_idx = kwargs.get("padding_idx") if func is F.embedding else None
        if self._tied_gather and padding_idx is not None:
            raise SimulatorError(
                f"embedding: TiedGather drops padding_idx, here {padding_idx}: its row gets a gradient; look it up "
                "without one"
            )
        return func(*args, **kwargs)
