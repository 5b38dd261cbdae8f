"""Patterns: exact counts, uniform sampling, validation, the kernel index by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sparse_ops.pattern import BlockPattern, block_count, free_positions, named_generator, sample_distinct


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("shape", "block_size", "sparsity", "segments", "expected"),
    [
        ((128, 128), 16, 0.9, 1, 6),  # 64 positions: 6.4
        ((256, 256), 16, 0.9, 1, 26),  # 256 positions: 25.6
        ((768, 256), 16, 0.9, 3, 26),  # the same in each of three segments
        ((768, 768), 1, 0.9, 1, 58982),  # 589,824 positions: 58,982.4
        ((768, 768), 16, 0.0, 1, 2304),
        ((64, 32), 8, 0.5, 1, 16),
    ],
)
def test_block_count_is_the_nearest_whole_number(shape, block_size, sparsity, segments, expected):
    assert block_count(shape, block_size, sparsity, segments) == expected


def test_random_pattern_has_the_exact_count_in_every_segment(seed):
    pattern = BlockPattern.random((3 * 64, 48), 4, 0.83, generator(seed), segments=3)
    expected = block_count((64, 48), 4, 0.83)
    assert torch.bincount(pattern.slot_segments(), minlength=3).tolist() == [expected] * 3
    assert pattern.keys().unique().numel() == pattern.nnz == 3 * expected


def test_same_generator_same_pattern_and_another_for_another(seed):
    patterns = [BlockPattern.random((64, 64), 4, 0.7, generator(s)) for s in (seed, seed, seed + 1)]
    assert patterns[0].checksum() == patterns[1].checksum() != patterns[2].checksum()


def test_every_position_is_equally_likely(seed):
    """Chi-squared over 16 positions, 4 drawn each time; the bound is passed by chance once in a million runs."""
    g, draws = generator(seed), 4000
    counts = torch.zeros(16)
    for _ in range(draws):
        counts[BlockPattern.random((64, 64), 16, 0.75, g).keys()] += 1
    expected = draws * 4 / 16
    # Without replacement the counts vary less than multinomial ones, so the bound for 15 degrees of freedom holds.
    assert float(((counts - expected) ** 2 / expected).sum()) < 57.0


def test_index_by_hand():
    """Blocks at (1, 2), (0, 0), (1, 0) of a 2 x 3 grid, given out of order."""
    rows, cols = torch.tensor([1, 0, 1], dtype=torch.int32), torch.tensor([2, 0, 0], dtype=torch.int32)
    index = BlockPattern((8, 12), 4, rows, cols).index()
    assert index.row_ptr.tolist() == [0, 1, 3]
    assert index.row_slots.tolist() == [1, 2, 0]
    assert index.col_ptr.tolist() == [0, 2, 2, 3]
    assert index.col_slots.tolist() == [1, 2, 0]
    assert index.grid == (2, 3)
    assert all(tensor.dtype == torch.int32 for tensor in index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 3}, "block size: expected one of"),
        ({"shape": (10, 8)}, "expected rows in a multiple of 1 segment.* found 10"),
        ({"shape": (8, 10)}, "expected columns in a multiple of block size 4, found 10"),
        ({"segments": 3}, "3 segment"),
        ({"rows": torch.tensor([0, 2], dtype=torch.int32)}, r"rows: expected .* in \[0, 2\), found 0 to 2"),
        ({"cols": torch.tensor([-1, 0], dtype=torch.int32)}, "cols: expected block coordinates"),
        ({"rows": torch.tensor([0, 1])}, r"expected int32 \[2\], found torch.int64"),
        ({"cols": torch.tensor([0], dtype=torch.int32)}, "expected int32"),
        ({"rows": torch.tensor([1, 1], dtype=torch.int32)}, r"block \(row 1, col 0\) has two slots"),
    ],
)
def test_bad_patterns_are_refused(change, message):
    zeros = torch.zeros(2, dtype=torch.int32)
    good = {"shape": (8, 8), "block_size": 4, "rows": torch.tensor([0, 1], dtype=torch.int32), "cols": zeros}
    BlockPattern(**good)
    with pytest.raises(ValueError, match=message):
        BlockPattern(**{**good, **change})


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, math.nan])
def test_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity: expected a number in"):
        block_count((64, 64), 16, sparsity)


def test_sparsity_that_leaves_no_block_is_refused():
    with pytest.raises(ValueError, match="leaves no 16x16 block of the 16"):
        block_count((64, 64), 16, 0.99)


@pytest.mark.parametrize(("population", "count"), [(10, 0), (10, 3), (10, 10), (1000, 499), (1000, 501)])
def test_sample_distinct_is_distinct_and_in_range(seed, population, count):
    sample = sample_distinct(population, count, generator(seed))
    assert sample.shape == (count,)
    assert sample.unique().numel() == count
    assert count == 0 or (int(sample.min()) >= 0 and int(sample.max()) < population)


def test_sample_distinct_needs_memory_of_the_sample_only(seed):
    """A population of 2^62 can be sampled, which no list of it could."""
    assert sample_distinct(2**62, 100, generator(seed)).unique().numel() == 100


def test_free_positions_are_the_complement(seed):
    taken = sample_distinct(50, 20, generator(seed)).sort().values
    expected = [position for position in range(50) if position not in set(taken.tolist())]
    assert free_positions(taken, torch.arange(30)).tolist() == expected


def test_named_generators_do_not_depend_on_the_process():
    """A fixed number: Python's own hash would change it with every process."""
    assert torch.randint(10**9, (1,), generator=named_generator(3, "layer", 7)).item() == 881902338
