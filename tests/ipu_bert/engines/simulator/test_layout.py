"""The simulator's own device layout, and the bits that carry it."""

from __future__ import annotations

import copy

import pytest
import torch
from small import FEATURES, plan_for, sparse_layer

from ipu_bert.engines.simulator.layout import SimulatedEncoder
from sparse_ops.ipu.layout import bits_from_half, half_from_bits, to_slots


@pytest.mark.parametrize("block_size", [1, 4, 8, 16])
def test_round_trip_with_moments(seed: int, block_size: int) -> None:
    layer = sparse_layer(seed, block_size)
    plan, encoder = plan_for(layer), SimulatedEncoder()
    arrays = [layer.values.detach(), torch.randn_like(layer.values), torch.rand_like(layer.values)]
    encoded = encoder.encode(plan, layer.rows, layer.cols, arrays)
    assert (encoded.meta_info.numel(), encoded.arrays[0].numel()) == encoder.sizes(plan)
    assert encoded.arrays[0].numel() > layer.values.numel(), "there must be padding"
    carried = bits_from_half(copy.deepcopy(half_from_bits(encoded.meta_info)).clone())
    decoded = encoder.decode(plan, carried, encoded.arrays)
    for found, expected in zip(to_slots(plan, decoded, layer.rows, layer.cols), arrays):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    dense = torch.zeros(FEATURES, FEATURES)
    for row, col, block in zip(decoded.rows.tolist(), decoded.cols.tolist(), decoded.arrays[0]):
        dense[row * block_size : (row + 1) * block_size, col * block_size : (col + 1) * block_size] = block
    torch.testing.assert_close(dense, layer.to_dense(), rtol=0, atol=0)


def test_layout_is_neither_slot_order_nor_the_same_for_another_pattern(seed: int) -> None:
    layer, other = sparse_layer(seed), sparse_layer(seed + 1)
    plan, encoder = plan_for(layer), SimulatedEncoder()
    first = encoder.encode(plan, layer.rows, layer.cols, [layer.values])
    second = encoder.encode(plan, other.rows, other.cols, [other.values])
    assert not torch.equal(first.arrays[0][: layer.values.numel()], layer.values.flatten())
    with pytest.raises(ValueError, match="different patterns"):
        encoder.decode(plan, first.meta_info, second.arrays)


def test_order_of_slots_does_not_matter(seed: int) -> None:
    layer = sparse_layer(seed)
    plan, encoder = plan_for(layer), SimulatedEncoder()
    order = torch.randperm(layer.values.shape[0])
    first = encoder.encode(plan, layer.rows, layer.cols, [layer.values])
    second = encoder.encode(plan, layer.rows[order], layer.cols[order], [layer.values[order]])
    assert torch.equal(first.meta_info, second.meta_info)
    assert torch.equal(first.arrays[0], second.arrays[0])


def test_refuses_bad_positions_and_foreign_meta_info(seed: int) -> None:
    layer = sparse_layer(seed)
    plan, encoder = plan_for(layer), SimulatedEncoder()
    twice = layer.rows.clone(), layer.cols.clone()
    twice[0][0], twice[1][0] = twice[0][1], twice[1][1]
    with pytest.raises(ValueError, match="distinct positions"):
        encoder.encode(plan, *twice, [layer.values])
    encoded = encoder.encode(plan, layer.rows, layer.cols, [layer.values])
    small = plan_for(sparse_layer(seed, sparsity=0.75), name="small")
    with pytest.raises(ValueError, match="'small': metaInfo is not of this layer"):
        encoder.decode(small, encoded.meta_info, encoded.arrays)
    other = sparse_layer(seed + 1)
    decoded = encoder.decode(plan, encoded.meta_info, encoded.arrays)
    with pytest.raises(ValueError, match="expected block positions"):
        to_slots(plan, decoded, other.rows, other.cols)
