"""The C++ of the operation, run over stand-ins for PopART and popsparse, against dense products in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stand_in_sdk import OpRunner, build_stand_in
from torch import Tensor

from sparse_ops.ipu.host import PopsparseEncoder
from sparse_ops.ipu.layer import IpuBlockSparseLinear
from sparse_ops.ipu.layout import DOMAIN, OPERATION, LayerPlan, half_from_bits
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.pattern import BlockPattern

TILES = 9


@pytest.fixture(scope="module")
def library(shared: Path) -> Path:
    return build_stand_in(shared)


@pytest.fixture
def runner(library: Path) -> OpRunner:
    return OpRunner(library, TILES)


@pytest.fixture
def encoder(library: Path, runner: OpRunner) -> PopsparseEncoder:
    return PopsparseEncoder(library, tiles_per_ipu=TILES)


def whole(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Whole numbers so small that every sum of products below is exact in half: at most 64 products of at most 9."""
    return torch.randint(-3, 4, shape, generator=generator).float()


def make_plan(out: int, inner: int, b: int, blocks: int, batch: int, data_type: str = "half") -> LayerPlan:
    partials = "float" if b == 1 else data_type
    return LayerPlan("some.layer", inner, out, b, blocks, batch, "0.6", "0.1", partials, data_type)


def make_layer(
    plan: LayerPlan, generator: torch.Generator, encoder: PopsparseEncoder, runner: OpRunner
) -> tuple[IpuBlockSparseLinear, BlockSparseLinear]:
    """The layer with a random pattern on the stand-in, and the one it was made from; no bias."""
    b = plan.block_size
    pattern = BlockPattern.of_count((plan.out_features, plan.in_features), b, plan.blocks, generator)
    on_host = holding(pattern, whole((plan.blocks, b, b), generator))
    return IpuBlockSparseLinear(on_host, plan, encoder, runner), on_host


def holding(pattern: BlockPattern, values: Tensor) -> BlockSparseLinear:
    """A layer on the host, without bias."""
    layer = BlockSparseLinear.from_pattern(pattern, bias=False)
    with torch.no_grad():
        layer.values.copy_(values)
    return layer


@pytest.mark.parametrize("data_type", ["half", "float"])
@pytest.mark.parametrize(("out", "inner"), [(48, 48), (32, 64), (64, 16)])
@pytest.mark.parametrize("b", [1, 4, 8, 16])
def test_output_and_both_gradients_are_those_of_the_dense_weight(
    b: int, out: int, inner: int, data_type: str, encoder: PopsparseEncoder, runner: OpRunner, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks = max(1, out * inner // b**2 // 3)
    layer, on_host = make_layer(make_plan(out, inner, b, blocks, 16, data_type), generator, encoder, runner)
    x = whole((2, 8, inner), generator).to(layer.plan.dtype).requires_grad_()
    dy = whole((2, 8, out), generator).to(layer.plan.dtype)
    y = layer(x)
    y.backward(dy)

    weight, flat_x, flat_dy = (
        on_host.to_dense().detach().double(),
        x.detach().double().view(16, -1),
        dy.double().view(16, -1),
    )
    assert torch.equal(y.double().view(16, -1), flat_x @ weight.T)
    assert torch.equal(x.grad.double().view(16, -1), flat_dy @ weight)
    _, (found,) = layer.read_slots(on_host.rows, on_host.cols, [layer.nz_values.grad])
    dense = (flat_dy.T @ flat_x).view(out // b, b, inner // b, b).transpose(1, 2)
    assert torch.equal(found.double(), dense[on_host.rows.long(), on_host.cols.long()])


def test_a_changed_pattern_is_multiplied_by_the_same_operation(
    encoder: PopsparseEncoder, runner: OpRunner, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer, _ = make_layer(make_plan(32, 32, 8, 6, 16), generator, encoder, runner)
    x = whole((16, 32), generator).half()
    layer(x)
    keys = runner.keys
    pattern = BlockPattern.of_count((32, 32), 8, 6, generator)
    values, moments = whole((6, 8, 8), generator), whole((6, 8, 8), generator)
    (encoded,) = layer.write_slots(pattern.rows, pattern.cols, values, [moments])
    on_host = holding(pattern, values)
    assert torch.equal(layer(x).double(), x.double() @ on_host.to_dense().detach().double().T)
    assert runner.keys == keys, "nothing would be compiled"
    assert torch.equal(layer.read_slots(pattern.rows, pattern.cols, [encoded])[1][0], moments)


def test_every_attribute_but_the_name_is_in_the_keys_of_operation_and_gradient(
    encoder: PopsparseEncoder, runner: OpRunner
) -> None:
    def keys(plan: LayerPlan) -> list[str]:
        meta_info, nz = (torch.zeros(size) for size in encoder.sizes(plan))
        inputs = (torch.zeros(plan.batch, plan.in_features), half_from_bits(meta_info.short()), nz)
        typed = [x.to(plan.dtype) for x in (inputs[0], inputs[2])]
        dy = torch.zeros(plan.batch, plan.out_features, dtype=plan.dtype)
        runner.run(OPERATION, DOMAIN, plan.attributes(), (typed[0], inputs[1], typed[1]), dy)
        assert len(runner.keys) == 4, "two each of the operation and of its gradient"
        return runner.keys

    plan = make_plan(32, 32, 8, 6, 16)
    other: dict[str, object] = {
        "in_features": 64,
        "out_features": 64,
        "block_size": 4,
        "blocks": 7,
        "batch": 32,
        "available_memory_proportion": "0.5",
        "meta_info_bucket_oversize_proportion": "0.2",
        "partials": "float",
    }
    before = keys(plan)
    for name, value in other.items():
        after = keys(replace(plan, **{name: value}))
        assert all(a != b for a, b in zip(before, after)), name
    assert keys(replace(plan, layer="another")) == before


def test_a_device_with_other_tiles_is_refused(library: Path, encoder: PopsparseEncoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer, _ = make_layer(make_plan(48, 48, 8, 12, 16), generator, encoder, OpRunner(library, 25))
    with pytest.raises(ValueError, match=r"'some\.layer': the plan for this device needs \d+ elements of metaInfo"):
        layer(torch.zeros(16, 48, dtype=torch.float16))


@pytest.mark.parametrize(
    ("rows", "cols", "message"),
    [
        ([0, 1, 1], [0, 2, 2], r"two slots share the position \(1, 2\)"),
        ([0, 1, 4], [0, 2, 2], r"slot 2 is at \(4, 2\), outside the 4x4 grid of blocks"),
    ],
)
def test_positions_that_a_pattern_cannot_have(
    rows: list[int], cols: list[int], message: str, encoder: PopsparseEncoder
) -> None:
    plan = make_plan(32, 32, 8, 3, 16)
    with pytest.raises(ValueError, match=message):
        encoder.encode(plan, torch.tensor(rows, dtype=torch.int32), torch.tensor(cols, dtype=torch.int32), [])


def test_padding_that_is_not_zero_is_refused(encoder: PopsparseEncoder, runner: OpRunner, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer, on_host = make_layer(make_plan(32, 32, 8, 6, 16), generator, encoder, runner)
    with pytest.raises(ValueError, match=r"padding of array 1 is not zero"):
        layer.read_slots(on_host.rows, on_host.cols, [torch.ones_like(layer.nz_values)])


# Two layers that fit and were refused, with strides that divide the grid's rows; a stride of one less; a sparse layer.
@pytest.mark.parametrize(
    ("grid", "blocks", "parts"),
    [
        ((128, 128), 4096, (32, 23)),
        ((768, 192), 36864, (110, 12)),
        ((96, 96), 97, (12, 8)),
        ((768, 192), 1475, (10, 2)),
    ],
)
def test_sizes_are_asked_with_a_pattern_that_plans_are_made_for(
    grid: tuple[int, int], blocks: int, parts: tuple[int, int], encoder: PopsparseEncoder, runner: OpRunner
) -> None:
    """What metaInfo needs, over all parts of the grid, is within the room that popsparse plans for it.

    FullyConnectedPlan.cpp 590-600 and 1310-1392 without what is the same for any pattern: for each row of blocks in a
    part that has any two codes, and one for each block; a tenth more than a random pattern is expected to need.
    """
    encoder.sizes(make_plan(grid[0] * 4, grid[1] * 4, 4, blocks, 16))
    rows, cols = (found // 4 for found in runner.encoded_last(blocks))
    part_rows, part_cols = -(-grid[0] // parts[0]), -(-grid[1] // parts[1])
    with_blocks = torch.stack([rows, cols // part_cols]).unique(dim=1).shape[1]
    density = blocks / (grid[0] * grid[1])
    expected_rows = math.ceil(part_rows * (1 - (1 - density) ** part_cols))
    in_a_row = -(-math.ceil(part_rows * part_cols * density) // expected_rows)
    assert 2 * with_blocks + blocks <= 1.1 * parts[0] * parts[1] * expected_rows * (2 + in_a_row)
    check_random(grid, rows, cols)


def test_it_is_random_in_any_grid(encoder: PopsparseEncoder, runner: OpRunner, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(50):
        out, inner = torch.randint(1, 50, (2,), generator=generator).tolist()
        blocks = int(torch.randint(1, out * inner + 1, (1,), generator=generator))
        encoder.sizes(make_plan(out, inner, 1, blocks, 16))
        check_random((out, inner), *runner.encoded_last(blocks))


def check_random(grid: tuple[int, int], rows: Tensor, cols: Tensor) -> None:
    """Different places; every row and column of the grid has its share, to within what Bernstein's bound, which holds
    without replacement, allows with a chance of 1e-12.
    """
    places = torch.stack([rows, cols])
    assert places.unique(dim=1).shape == places.shape
    density = len(rows) / (grid[0] * grid[1])
    for found, size, length in ((rows, grid[0], grid[1]), (cols, grid[1], grid[0])):
        counts = torch.bincount(found, minlength=size)
        assert len(counts) == size
        log, variance = math.log(2e12), length * density * (1 - density)
        bound = log / 3 + math.sqrt(log**2 / 9 + 2 * log * variance)
        assert (counts - length * density).abs().max() <= bound, f"{grid}: {counts.tolist()}"
