"""A small sparse model, as the IPU engine would build one, for the tests of the simulator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ipu_bert.engines import simulator as sim
from sparse_ops.ipu.layer import IpuBlockSparseLinear
from sparse_ops.ipu.layout import LayerPlan
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.pattern import BlockPattern

FEATURES, ROWS, BLOCK = 32, 8, 4
EPS = 0.1  # large, so that an update is a smooth function of the gradient


def sparse_layer(seed: int, block_size: int = BLOCK, out: int = FEATURES, sparsity: float = 0.5) -> BlockSparseLinear:
    """A BlockSparseLinear [out, FEATURES] with normal values and bias."""
    generator = torch.Generator().manual_seed(seed)
    layer = BlockSparseLinear.from_pattern(BlockPattern.random((out, FEATURES), block_size, sparsity, generator))
    with torch.no_grad():
        layer.values.normal_(generator=generator).mul_(0.2)
        assert layer.bias is not None
        layer.bias.normal_(generator=generator)
    return layer


def plan_for(layer: BlockSparseLinear, data_type: str = "float", rows: int = ROWS, name: str = "layer") -> LayerPlan:
    """The plan of a layer."""
    return LayerPlan(
        layer=name,
        in_features=layer.in_features,
        out_features=layer.out_features,
        block_size=layer.block_size,
        blocks=layer.values.shape[0],
        batch=rows,
        available_memory_proportion="0.6",
        meta_info_bucket_oversize_proportion="0.1",
        partials="half" if data_type == "half" else "float",
        data_type=data_type,
    )


class Model(nn.Module):
    """Two sparse layers on two IPUs; the loss is the sum of squares of y - target."""

    def __init__(self, layers: list[BlockSparseLinear], data_type: str = "float") -> None:
        super().__init__()
        self.first, self.second = (
            IpuBlockSparseLinear(layer, plan_for(layer, data_type, name=name), sim.SimulatedEncoder(), sim)
            for layer, name in zip(layers, ("first", "second"))
        )
        self.register_buffer("table", torch.arange(4))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """x, target [ROWS, FEATURES] -> the loss."""
        with sim.Block("one", ipu_id=0):
            hidden = torch.tanh(self.first(x))
        with sim.Block("two", ipu_id=1):
            y = self.second(hidden)
            return sim.identity_loss((y.float() - target).square().sum(), reduction="none")


def reference_loss(layers: list[BlockSparseLinear], x: Tensor, target: Tensor) -> Tensor:
    """The same on the host, without any device."""
    return (layers[1](torch.tanh(layers[0](x))) - target).square().sum()


def options(accumulation: int = 3, replicas: int = 1, iterations: int = 1) -> sim.Options:
    """What a pipeline of two stages needs."""
    result = sim.Options()
    result.deviceIterations(iterations).replicationFactor(replicas).outputMode(sim.OutputMode.All)
    result.Training.gradientAccumulation(accumulation)
    result.Training.accumulationAndReplicationReductionType(sim.ReductionType.Sum)
    result.setExecutionStrategy(sim.PipelinedExecution(sim.AutoStage.AutoIncrement))
    return result


class Run:
    """A compiled training model with its host model, optimizer and slots."""

    def __init__(self, seed: int, data_type: str = "float", accumulation: int = 3, replicas: int = 1) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.layers = [sparse_layer(seed + i) for i in (0, 1)]
        self.model = Model(self.layers, data_type)
        self.optimizer = sim.optim.AdamW(self.model.parameters(), lr=0.01, eps=EPS, weight_decay=0.01)
        self.dtype = torch.float16 if data_type == "half" else torch.float32
        self.micro_batches = accumulation * replicas
        self.executor = sim.trainingModel(self.model, options(accumulation, replicas), self.optimizer)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Fresh random x and target for one call."""
        shape = (self.micro_batches * ROWS, FEATURES)
        x = torch.randn(shape, generator=self.generator).to(self.dtype)
        return x, torch.randn(shape, generator=self.generator)

    def step(self) -> Tensor:
        """One step on fresh inputs; the losses of its micro-batches."""
        (losses,) = self.executor(*self.inputs())
        return losses

    def update(self, upload: bool = True, load_moments: bool = True) -> None:
        """Move two blocks of the first layer, as the engine does at a pattern update."""
        layer, module = self.layers[0], self.model.first
        self.executor.copyWeightsToHostIfNeeded()
        state = self.optimizer.state_dict()
        keys = [f"Accl{i}___first.nz_values" for i in (1, 2)]
        values, moments = module.read_slots(layer.rows, layer.cols, [state["ipu_state"][key] for key in keys])
        with torch.no_grad():
            layer.values.copy_(values)
        taken = set(layer.pattern.keys().tolist())
        free = torch.tensor([k for k in range(layer.pattern.grid[0] * layer.pattern.grid[1]) if k not in taken][:2])
        slots = torch.tensor([1, 3])
        n_cols = layer.pattern.grid[1]
        layer.reallocate(slots, free // n_cols, free % n_cols)
        for moment in moments:
            moment[slots] = 0.0
        encoded = module.write_slots(layer.rows, layer.cols, layer.values, moments)
        if upload:
            self.executor.copyWeightsToDevice()
        if load_moments:
            state["ipu_state"].update(zip(keys, encoded))
            self.optimizer.load_state_dict(state)
