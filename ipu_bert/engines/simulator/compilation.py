"""What compilation fixes and checks: options, shapes of inputs, stages of the pipeline, where variables live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor, nn

from ipu_bert.engines.simulator.device import DeviceMemory, DeviceRandom
from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.lowering import Lowering
from ipu_bert.engines.simulator.options import Options, OutputMode, RecomputationType, recomputation
from ipu_bert.engines.simulator.program import Program
from ipu_bert.engines.simulator.trace import Trace
from ipu_bert.engines.simulator.tracing import Tracer
from ipu_bert.engines.simulator.variables import VariablePlacement
from sparse_ops.ipu.layout import LayerPlan


@dataclass(frozen=True)
class SparseVariable:
    """The values of a sparse layer: the plan of their layout, and the name of the parameter that holds them."""

    plan: LayerPlan
    values: str


@dataclass(frozen=True)
class Executable:
    """What cannot change any more.

    input_types: shape and dtype of each input of a call. micro_batches: of a call, over device iterations, gradient
    accumulation and replicas. stages: (block, IPU) in order. sparse: by the name of the metaInfo buffer.
    recomputation: what is computed again, with no effect on numbers. travelling: bytes of variables that go from IPU 0
    to another in every micro-batch, by name. program: a micro-batch.
    """

    input_types: list[tuple[torch.Size, torch.dtype]]
    micro_batches: int
    stages: list[tuple[str, int]]
    sparse: dict[str, SparseVariable]
    recomputation: RecomputationType
    travelling: dict[str, int]
    program: Program


def check_options(options: Options, training: bool) -> None:
    """Raises SimulatorError for options that the simulated device does not have."""
    if options.output_mode is not OutputMode.All:
        raise SimulatorError("options: expected outputMode(OutputMode.All)")
    if not training and options.Training.gradient_accumulation != 1:
        raise SimulatorError("options: inference has no gradient accumulation")


def compile_model(
    model: nn.Module, options: Options, device: DeviceMemory, random: DeviceRandom, inputs: Sequence[Tensor]
) -> Executable:
    """Run micro-batches of `inputs` [global batch, ...] on the device and note what the model does there.

    Raises SimulatorError when inputs do not divide, a variable is used on two IPUs, the pipeline lacks micro-batches,
    or a sparse layer's tensors are not the model's.
    """
    accumulation = options.Training.gradient_accumulation
    micro_batches = options.device_iterations * accumulation * options.replication_factor
    for x in inputs:
        if x.shape[0] % micro_batches:
            raise SimulatorError(
                "inputs: expected a first dimension that is a multiple of device iterations x gradient accumulation x "
                f"replicas = {micro_batches}, found {list(x.shape)}"
            )
    parts = list(zip(*(x.split(x.shape[0] // micro_batches) for x in inputs)))
    tracer = Tracer(model, device, random, options.Precision.partials == torch.float16)
    placement = VariablePlacement({**tracer.parameters, **device.buffers})
    with placement, Lowering(options):
        traced, program = tracer.program(parts[0], parts[-1])
    trace = traced.trace
    pipeline = 2 * len(trace.visited) - 1
    if device.optimizer is not None and len(trace.visited) > 1 and accumulation < pipeline:
        raise SimulatorError(
            f"pipeline: {len(trace.visited)} stages forward and back make {pipeline}; gradient accumulation must be at "
            f"least that, found {accumulation}"
        )
    return Executable(
        input_types=[(x.shape, x.dtype) for x in inputs],
        micro_batches=micro_batches,
        stages=trace.visited,
        sparse=_sparse_variables(trace, tracer.parameters, device.buffers),
        recomputation=recomputation(options, ipus=len({ipu for _, ipu in trace.visited})),
        travelling=_travelling(model, placement.ipus) if device.optimizer is not None else {},
        program=program,
    )


def _travelling(model: nn.Module, ipus: dict[str, int]) -> dict[str, int]:
    """PopTorch detaches a variable without gradient before the first block, which puts it on IPU 0 (docs/ipu.md)."""
    variables = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: variables[name].numel() * variables[name].element_size()
        for name, ipu in ipus.items()
        if ipu != 0 and variables[name].is_floating_point() and not variables[name].requires_grad
    }


def _sparse_variables(
    trace: Trace, device_parameters: dict[str, Tensor], device_buffers: dict[str, Tensor]
) -> dict[str, SparseVariable]:
    """By metaInfo buffer; refuses metaInfo or nz that is not a tensor of the model."""
    buffers = {id(tensor): name for name, tensor in device_buffers.items()}
    parameters = {id(tensor): name for name, tensor in device_parameters.items()}
    found = {}
    for plan, meta_info, nz in trace.sparse:
        if id(meta_info) not in buffers or id(nz) not in parameters:
            raise SimulatorError(f"{plan.layer}: metaInfo must be a buffer of the model and nz a parameter")
        found[buffers[id(meta_info)]] = SparseVariable(plan, parameters[id(nz)])
    return found
