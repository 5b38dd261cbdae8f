"""What the model's code calls while the simulated device runs it: blocks, custom ops, losses, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable

import torch
from torch import Tensor

from ipu_bert.engines.simulator.arithmetic import HalfArithmetic
from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.options import MatMulSerializationMode
from ipu_bert.engines.simulator.sparse import BlockLinear, plan_of
from sparse_ops.ipu.layout import ABI_VERSION, DOMAIN, OPERATION, LayerPlan


@dataclass
class Trace:
    """One pass of one micro-batch through the model on the simulated device; notes what it does while entered."""

    arithmetic: HalfArithmetic
    visited: list[tuple[str, int]] = field(default_factory=list)  # (block, IPU), in order
    losses: list[Tensor] = field(default_factory=list)
    sparse: list[tuple[LayerPlan, Tensor, Tensor]] = field(default_factory=list)  # plan, metaInfo, nz as used
    open_block: bool = False

    def __enter__(self) -> Trace:
        if _traces:
            raise SimulatorError("a model is already running on the simulated device")
        _traces.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _traces.pop()

    def enter(self, block: str, ipu: int) -> None:
        """A block begins: with AutoStage.AutoIncrement, a block not seen before is the next stage.

        Raises SimulatorError for a block that was left before.
        """
        known = dict(self.visited)
        if block in known and self.visited[-1] != (block, ipu):
            raise SimulatorError(f"pipeline: block {block!r} was left and is entered again; stages run in order")
        if not known or block not in known:
            self.visited.append((block, ipu))


_traces: list[Trace] = []


def present_ipu() -> int | None:
    """Number of the IPU of the block that is being traced; None outside a trace and before the first block."""
    return _traces[-1].visited[-1][1] if _traces and _traces[-1].visited else None


def isRunningOnIpu() -> bool:  # noqa: N802
    """Whether the model's code is being run for the device."""
    return bool(_traces)


class Block:
    """Context manager: what is called inside belongs to this block, on this IPU; blocks do not nest."""

    def __init__(self, user_id: str, ipu_id: int) -> None:
        self._block, self._ipu = user_id, ipu_id

    def __enter__(self) -> None:
        if not _traces:
            return
        if _traces[-1].open_block:
            raise SimulatorError(f"pipeline: block {self._block!r} inside another block")
        _traces[-1].open_block = True
        _traces[-1].enter(self._block, self._ipu)

    def __exit__(self, *exception: object) -> None:
        if _traces:
            _traces[-1].open_block = False


def custom_op(
    inputs: tuple[Tensor, ...],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Iterable[Tensor],
    attributes: dict[str, Any] | None = None,
) -> list[Tensor]:
    """The sparse operation: [y [T, out]] from x [T, in], metaInfo float16 [m] and nz [n], y and nz of x's dtype.

    Outside a trace, as in PopTorch, zeros like the example outputs. Raises SimulatorError for another operation or
    version, another dtype, or shapes other than the attributes'; ValueError for attributes that are not ASCII.
    """
    if not _traces:
        return [torch.zeros_like(x) for x in example_outputs]
    if (name, domain, domain_version) != (OPERATION, DOMAIN, 1):
        raise SimulatorError(f"custom_op: unknown operation {domain}.{name}:{domain_version}")
    attributes = dict(attributes or {})
    for key, value in attributes.items():
        if isinstance(value, str) and not value.isascii():
            raise ValueError(f"{key}: {value!r} contains non-ASCII characters")
    if attributes.get("abi") != ABI_VERSION:
        raise SimulatorError(f"custom_op: expected abi {ABI_VERSION}, found {attributes.get('abi')}")
    x, meta_info, nz = inputs
    if meta_info.dtype != torch.float16:
        raise SimulatorError(f"{attributes['layer']}: metaInfo must be a float16 buffer, found {meta_info.dtype}")
    if nz.dtype != x.dtype:
        raise SimulatorError(f"{attributes['layer']}: nz must be of x's type {x.dtype}, found {nz.dtype}")
    plan = plan_of(attributes, "half" if x.dtype == torch.float16 else "float")
    if tuple(x.shape) != (plan.batch, plan.in_features):
        raise SimulatorError(f"{plan.layer}: x: expected [{plan.batch}, {plan.in_features}], found {list(x.shape)}")
    trace = _traces[-1]
    trace.sparse.append((plan, meta_info, nz))
    (example,) = example_outputs
    y: Tensor = BlockLinear.apply(x, meta_info, nz, plan, trace.arithmetic)
    if y.shape != example.shape or y.dtype != example.dtype:
        raise SimulatorError(f"{plan.layer}: the example output is {example.dtype} {list(example.shape)}, not y's")
    return [y]


def identity_loss(x: Tensor, reduction: str) -> Tensor:
    """Marks the loss that training minimises and reduces it: sum or mean to [], none leaves x's shape.

    Raises ValueError for another reduction.
    """
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"identity_loss: expected sum, mean or none, found {reduction!r}")
    reduced = x.sum() if reduction == "sum" else x.mean() if reduction == "mean" else x.clone()
    if _traces:
        _traces[-1].losses.append(reduced)
    return reduced


def recomputationCheckpoint(*tensors: Tensor) -> Any:  # noqa: N802
    """Keeps tensors instead of computing them again in the backward pass; no effect on numbers."""
    return tensors[0] if len(tensors) == 1 else tensors


def serializedMatMul(  # noqa: N802
    lhs: Tensor, rhs: Tensor, mode: MatMulSerializationMode, factor: int = 0, keep_precision: bool = False
) -> Tensor:
    """lhs [*, k] @ rhs [k, n] -> [*, n], `factor` parts of the n output columns one after the other.

    Raises SimulatorError for another mode, or columns that do not divide.
    """
    if mode is not MatMulSerializationMode.OutputChannels:
        raise SimulatorError(f"serializedMatMul: expected OutputChannels, found {mode}")
    if factor < 1 or rhs.shape[-1] % factor:
        raise SimulatorError(f"serializedMatMul: {rhs.shape[-1]} output channels do not divide by {factor}")
    return torch.cat([lhs @ part for part in rhs.split(rhs.shape[-1] // factor, dim=-1)], dim=-1)
