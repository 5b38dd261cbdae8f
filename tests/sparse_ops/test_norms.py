"""Block norms by hand and against torch; the gradient's largest blocks against the dense gradient."""

from __future__ import annotations

import math

import pytest
import torch

from sparse_ops import BlockPattern, block_norm
from sparse_ops.norms import NORMS, LargestBlocks
from sparse_ops.reference import dense_gradient_strip, strips


@pytest.mark.parametrize(("p", "expected"), [(1.0, [7.0, 0.0]), (2.0, [5.0, 0.0]), (math.inf, [4.0, 0.0])])
def test_block_norm_by_hand(p, expected):
    values = torch.tensor([[[3.0, 0.0], [0.0, -4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert block_norm(values, p).tolist() == expected


@pytest.mark.parametrize(("name", "expected"), [("l1", [7.0, 0.5]), ("l2", [5.0, 0.5]), ("linf", [4.0, 0.5])])
def test_norms_by_hand(name, expected):
    """Two blocks, in any number of dimensions before them and every dtype that weights have."""
    values = torch.tensor([[[3.0, 0.0], [0.0, -4.0]], [[0.0, -0.5], [0.0, 0.0]]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = NORMS[name](values.to(dtype).view(1, 2, 2, 2))
        assert (found.dtype, found.tolist()) == (torch.float32, [expected])


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="expected p = 1, 2 or inf, found 3"):
        block_norm(torch.zeros(1, 4, 4), 3.0)


@pytest.mark.parametrize(("norm", "p"), [("l1", 1.0), ("l2", 2.0), ("linf", math.inf)])
@pytest.mark.parametrize(("block_size", "segments"), [(1, 1), (4, 3), (16, 3)])
def test_largest_blocks_of_strips_against_the_dense_gradient(seed, block_size, segments, norm, p):
    g = torch.Generator().manual_seed(seed)
    shape = (96, 64)
    pattern = BlockPattern.random(shape, block_size, 0.6, g, segments)
    x, dy = torch.randn(40, 64, generator=g), torch.randn(40, 96, generator=g)
    dense = (dy.double().t() @ x.double()).view(pattern.grid[0], block_size, -1, block_size).transpose(1, 2)
    norms = torch.linalg.vector_norm(dense, ord=p, dim=(-2, -1))
    active = norms[pattern.rows.long(), pattern.cols.long()]
    norms[pattern.rows.long(), pattern.cols.long()] = -1.0

    count = 3
    largest = LargestBlocks(pattern, count, NORMS[norm])
    for strip in strips(pattern.index(), block_size, segments):
        largest.add(strip, dense_gradient_strip(x, dy, strip, block_size))
    found = largest.found()
    torch.testing.assert_close(found.active.double(), active, rtol=1e-4, atol=1e-4)
    for segment, part in enumerate(norms.chunk(segments)):
        mine = (found.rows // (pattern.grid[0] // segments)) == segment
        expected = part.flatten().topk(count).values
        norms_found = found.norms[mine].double()
        torch.testing.assert_close(norms_found.sort(descending=True).values, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norms[found.rows[mine], found.cols[mine]], norms_found, rtol=1e-4, atol=1e-4)


def test_norms_and_gradient_blocks_of_float64_are_float64():
    """1e8 and 1 add up to 1e8 in float32."""
    values = torch.tensor([[[1e8, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    assert block_norm(values, 1.0).tolist() == [100000001.0]
    assert block_norm(values, 2.0).dtype == torch.float64
    assert [block_norm(values.to(d), 1.0).dtype for d in (torch.float32, torch.bfloat16)] == [torch.float32] * 2
    rows, cols = torch.tensor([0], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    pattern = BlockPattern((4, 8), 4, rows, cols)
    x, dy = torch.zeros(2, 8, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    x[0, 4], x[1, 5], x[0, 0] = 1e8, 1.0, 1e8 + 1
    largest = LargestBlocks(pattern, 1, NORMS["l1"])
    for strip in strips(pattern.index(), 4, 1):
        largest.add(strip, dense_gradient_strip(x, dy, strip, 4))
    found = largest.found()
    assert found.norms.tolist() == [4 * (1e8 + 1)]
    assert found.active.tolist() == [4 * (1e8 + 1)]
