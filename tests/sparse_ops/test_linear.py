"""BlockSparseLinear: re-allocation in place, state dict, dense conversions."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.nn.utils import prune

from sparse_ops import BlockIndex, BlockPattern, BlockSparseLinear


def layer_of(seed: int, segments: int = 1) -> BlockSparseLinear:
    pattern = BlockPattern.random((48, 32), 8, 0.6, torch.Generator().manual_seed(seed), segments)
    layer = BlockSparseLinear.from_pattern(pattern)
    torch.nn.init.normal_(layer.values)
    return layer


def free_position(layer: BlockSparseLinear, segment: int = 0) -> tuple[int, int]:
    taken = set(zip(layer.rows.tolist(), layer.cols.tolist()))
    height = layer.pattern.grid[0] // layer.segments
    rows = range(segment * height, (segment + 1) * height)
    return next((r, c) for r in rows for c in range(layer.pattern.grid[1]) if (r, c) not in taken)


def test_reallocate_moves_in_place_and_zeroes(seed):
    layer = layer_of(seed)
    before, objects = layer.values.detach().clone(), {name: id(t) for name, t in layer.named_parameters()}
    pointers = [t.data_ptr() for t in (layer.values, layer.rows, layer.cols, *layer.index)]
    row, col = free_position(layer)
    layer.reallocate(torch.tensor([2]), torch.tensor([row]), torch.tensor([col]))
    assert (int(layer.rows[2]), int(layer.cols[2])) == (row, col)
    assert not layer.values[2].any()
    others = torch.arange(layer.values.shape[0]) != 2
    assert torch.equal(layer.values[others], before[others])
    assert [t.data_ptr() for t in (layer.values, layer.rows, layer.cols, *layer.index)] == pointers
    assert {name: id(t) for name, t in layer.named_parameters()} == objects
    for mine, rebuilt in zip(layer.index, layer.pattern.index()):
        assert torch.equal(mine, rebuilt)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_any_whole_numbers_name_slots(dtype, seed):
    layer = layer_of(seed)
    row, col = free_position(layer)
    layer.reallocate(*(torch.tensor([number], dtype=dtype) for number in (2, row, col)))
    assert (int(layer.rows[2]), int(layer.cols[2])) == (row, col)


def test_two_slots_may_swap_positions(seed):
    layer = layer_of(seed)
    slots = torch.tensor([0, 1])
    rows, cols = layer.rows[slots].flip(0), layer.cols[slots].flip(0)
    layer.reallocate(slots, rows, cols)
    assert torch.equal(layer.rows[slots], rows)


def test_a_taken_position_is_refused_and_nothing_changes(seed):
    layer = layer_of(seed)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(ValueError, match="has two slots"):
        layer.reallocate(torch.tensor([0]), layer.rows[1:2], layer.cols[1:2])
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_a_block_may_not_leave_its_segment(seed):
    layer = layer_of(seed, segments=3)
    slot = int((layer.pattern.slot_segments() == 0).nonzero()[0])
    row, col = free_position(layer, segment=1)
    with pytest.raises(ValueError, match="stay in its segment"):
        layer.reallocate(torch.tensor([slot]), torch.tensor([row]), torch.tensor([col]))


@pytest.mark.parametrize(
    ("slots", "rows", "cols", "said"),
    [
        ([0], [3.9], [2.9], "expected rows of whole numbers"),
        ([0], [2**32 + 3], [2], "expected rows of 0 to 5, found 4294967299"),
        ([0], [-1], [2], "expected rows of 0 to 5, found -1"),
        ([-1], [3], [2], "expected slots of 0 to "),
        ([0, 0], [3, 4], [2, 2], "expected every slot once"),
        ([0, 1], [3], [2], "expected 2 rows, found 1"),
    ],
)
def test_what_is_no_move_is_refused_and_nothing_changes(slots, rows, cols, said, seed):
    layer = layer_of(seed)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(ValueError, match=f"reallocate: {said}"):
        layer.reallocate(torch.tensor(slots), torch.tensor(rows), torch.tensor(cols))
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_a_block_whose_values_something_makes_anew_cannot_be_moved(seed):
    """Pruning makes `values` of `values_orig` at every forward pass, so zeros would not stay."""
    layer = layer_of(seed)
    prune.l1_unstructured(layer, "values", 0.5)
    row, col = free_position(layer)
    with pytest.raises(ValueError, match="reallocate: expected values that are a parameter"):
        layer.reallocate(torch.tensor([0]), torch.tensor([row]), torch.tensor([col]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_type_leaves_positions_whole_numbers(dtype, seed):
    layer, x = layer_of(seed), torch.randn(3, 32, dtype=dtype)
    before = layer.to_dense().to(dtype)
    layer.type(dtype)
    assert {name: tensor.dtype for name, tensor in layer.named_buffers()} == dict.fromkeys(
        BlockIndex._fields, torch.int32
    )
    torch.testing.assert_close(layer(x), x @ before.T + layer.bias, rtol=1e-5, atol=1e-5)
    layer.load_state_dict(layer.state_dict())


def test_a_layer_takes_its_own_state_dict_whatever_was_put_on_it(seed):
    layer = layer_of(seed)
    layer.register_buffer("scale", torch.ones(1))
    layer.lora = torch.nn.Linear(2, 2)
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="expected the keys"):
        layer.load_state_dict({**layer.state_dict(), "other": torch.ones(1)})


def test_state_dict_carries_the_pattern(seed):
    first, second = layer_of(seed), layer_of(seed + 1)
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 32)
    assert torch.equal(first(x), second(x))
    assert sorted(first.state_dict()) == ["bias", "cols", "rows", "values"]


STATES = {
    "another layer's positions": (
        {"rows": lambda t: t + 99},
        ValueError,
        r"rows: expected block coordinates in \[0, 6\)",
    ),
    "two slots at one place": ({"rows": torch.zeros_like, "cols": torch.zeros_like}, ValueError, "has two slots"),
    "int64 positions": ({"cols": lambda t: t.long()}, ValueError, "cols: expected int32"),
    "more blocks": ({"rows": lambda t: t.repeat(2)}, RuntimeError, r"mismatch for rows: expected \[10\], found \[20\]"),
    "no positions": ({"rows": None, "cols": None}, RuntimeError, r"found \['bias', 'values'\]$"),
    "no bias": (
        {"bias": None},
        RuntimeError,
        r"expected the keys \['bias', 'cols', 'rows', 'values'\], found \['cols',",
    ),
    "a list": ({"cols": lambda t: t.tolist()}, RuntimeError, "cols: expected a tensor, found list"),
    "positions without numbers": ({"rows": lambda t: t.to("meta")}, RuntimeError, "rows: expected numbers for"),
    "quantized values": (
        {"values": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)},
        RuntimeError,
        "values: expected numbers for torch.float32 on cpu",
    ),
    "a dense weight": ({"weight": torch.ones(48, 32)}, RuntimeError, "'weight'"),
}


@pytest.mark.parametrize("what", STATES)
@pytest.mark.parametrize("assign", [False, True])
def test_a_refused_state_dict_changes_nothing(seed, what, assign):
    changes, error, message = STATES[what]
    layer, other = layer_of(seed), layer_of(seed + 1)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    state.update({k: v(state[k]) if callable(v) else v for k, v in changes.items()})
    x = torch.randn(5, 32)
    expected = layer(x)
    with pytest.raises(error, match=message):
        layer.load_state_dict({k: v for k, v in state.items() if v is not None}, assign=assign)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("wrap", [lambda layer: layer, torch.nn.Sequential], ids=["alone", "in a model"])
def test_blocks_of_a_layer_of_other_sizes_are_refused_though_they_fit(seed, wrap):
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (i.flatten().int() for i in torch.meshgrid(torch.arange(4), torch.arange(2), indexing="ij"))
    wide, high = (
        wrap(BlockSparseLinear.from_pattern(BlockPattern(shape, 4, rows, cols), bias=False))
        for shape in ((16, 32), (32, 16))
    )
    file = io.BytesIO()
    torch.save(wide.state_dict(), file)
    before = {name: tensor.clone() for name, tensor in high.state_dict().items()}
    file.seek(0)
    with pytest.raises(RuntimeError, match=r"rows: expected those of a layer \[32, 16\], found those of \[16, 32\]"):
        high.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in high.state_dict().items())
    again = copy.deepcopy(wide)
    torch.nn.init.zeros_(next(again.parameters()))
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, 32, generator=generator)
    assert torch.equal(again(x), wide(x))
    high.load_state_dict(dict(wide.state_dict()))  # without metadata, as from an older release, nothing tells


def test_values_are_not_loaded_without_their_positions(seed):
    layer, state = layer_of(seed), layer_of(seed + 1).state_dict()
    with pytest.raises(ValueError, match=r"belong together: expected all, found \['values'\] only"):
        layer.load_state_dict({"values": state["values"]}, strict=False)
    layer.load_state_dict({"bias": state["bias"]}, strict=False)
    assert torch.equal(layer.bias, state["bias"])


def test_in_a_model_a_refused_layer_is_not_changed(seed):
    model, other = (torch.nn.Sequential(layer_of(seed + i)) for i in (0, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = dict(other.state_dict())
    with pytest.raises(ValueError, match=r"^0\.values, rows and cols belong together"):
        model.load_state_dict({name: tensor for name, tensor in state.items() if name != "0.rows"})
    state["0.rows"] = state["0.rows"] - 100
    with pytest.raises(ValueError, match=r"^0: pattern rows: expected block coordinates"):
        model.load_state_dict(state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_dense_and_back(seed):
    layer = layer_of(seed)
    values, dense = layer.values.detach().clone(), layer.to_dense()
    assert int((dense != 0).sum()) == values.numel()
    r, c = int(layer.rows[3]), int(layer.cols[3])
    assert torch.equal(dense[8 * r : 8 * r + 8, 8 * c : 8 * c + 8], values[3])
    layer.values.data.zero_()
    layer.from_dense(dense)
    assert torch.equal(layer.values, values)
    with pytest.raises(ValueError, match=r"weight: expected \[48, 32\], found \[32, 48\]"):
        layer.from_dense(dense.t())
