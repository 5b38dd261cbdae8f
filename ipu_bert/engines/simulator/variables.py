"""A variable lives on one IPU: the check that PopART makes when it cuts a pipeline."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.trace import present_ipu


class VariablePlacement(TorchFunctionMode):
    """While a model is traced, notes the IPU of each variable's first use.

    Raises SimulatorError at a use on another.
    """

    def __init__(self, variables: dict[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in variables.items()}
        self.ipus: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_flatten((args, kwargs or {}))[0]:
            name = self._names.get(id(x))
            ipu = present_ipu()
            if name is not None and ipu is not None and _computes(func):
                first = self.ipus.setdefault(name, ipu)
                if first != ipu:
                    raise SimulatorError(
                        f"{name}: used on IPU {first} and IPU {ipu}: a variable cannot be copied between the IPUs of a "
                        "pipeline; put both uses on one IPU"
                    )
        return func(*args, **(kwargs or {}))


def _computes(func: Any) -> bool:
    return getattr(func, "__name__", "") not in ("__get__", "__set__", "dim", "size", "numel")
