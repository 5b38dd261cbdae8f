"""Block norms by hand and against torch; the gradient's largest blocks against the dense gradient."""

from __future__ import annotations

import math

import pytest
import torch

from sparse_ops import BlockPattern, block_norm
from sparse_ops.norms import largest_gradient_blocks


@pytest.mark.parametrize(("p", "expected"), [(1.0, [7.0, 0.0]), (2.0, [5.0, 0.0]), (math.inf, [4.0, 0.0])])
def test_block_norm_by_hand(p, expected):
    values = torch.tensor([[[3.0, 0.0], [0.0, -4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert block_norm(values, p).tolist() == expected


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="expected p = 1, 2 or inf, found 3"):
        block_norm(torch.zeros(1, 4, 4), 3.0)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize(("block_size", "segments"), [(1, 1), (4, 3), (16, 3)])
def test_largest_gradient_blocks_against_the_dense_gradient(seed, block_size, segments, p):
    g = torch.Generator().manual_seed(seed)
    shape = (96, 64)
    pattern = BlockPattern.random(shape, block_size, 0.6, g, segments)
    x, dy = torch.randn(40, 64, generator=g), torch.randn(40, 96, generator=g)
    dense = (dy.double().t() @ x.double()).view(pattern.grid[0], block_size, -1, block_size).transpose(1, 2)
    norms = torch.linalg.vector_norm(dense, ord=p, dim=(-2, -1))
    active = norms[pattern.rows.long(), pattern.cols.long()]
    norms[pattern.rows.long(), pattern.cols.long()] = -1.0

    count = 3
    found = largest_gradient_blocks(x, dy, pattern, count, p)
    torch.testing.assert_close(found.active.double(), active, rtol=1e-4, atol=1e-4)
    for segment, part in enumerate(norms.chunk(segments)):
        mine = (found.rows // (pattern.grid[0] // segments)) == segment
        expected = part.flatten().topk(count).values
        norms_found = found.norms[mine].double()
        torch.testing.assert_close(norms_found.sort(descending=True).values, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norms[found.rows[mine], found.cols[mine]], norms_found, rtol=1e-4, atol=1e-4)
