"""Native code is given indices that no pattern has: it refuses them, or the product is that of the positions in them.

`make sanitize` runs this under AddressSanitizer, which ends the process at the first access outside of an array.
"""

from __future__ import annotations

from typing import Callable

import pytest
import torch
from compiler import HAS_KERNELS, needs_kernels
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_ops import native
from sparse_ops.pattern import BLOCK_SIZES, BlockIndex, BlockPattern

pytestmark = needs_kernels

LEVELS = range(native._library().sparse_ops_best_level() + 1) if HAS_KERNELS else (0,)
REFUSED = "index: expected one made by BlockPattern.index()"
WILD = st.sampled_from([-(2**31), -2, -1, 0, 1, 2**24, 2**31 - 1]) | st.integers(0, 40)


@st.composite
def spoilt_indices(draw: st.DrawFn) -> BlockIndex:
    """A pattern's index in which a field or two are others: one number, two that change places, or all of them."""
    n_rows, n_cols = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    nnz = draw(st.integers(1, n_rows * n_cols))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    index = BlockPattern.of_count((n_rows, n_cols), 1, nnz, source).index()
    for name in draw(st.lists(st.sampled_from(BlockIndex._fields), min_size=1, max_size=2)):
        field = getattr(index, name).clone()
        places = st.integers(0, field.numel() - 1)
        how = draw(st.sampled_from(["number", "swap", "noise"]))
        if how == "number":
            field[draw(places)] = draw(WILD)
        elif how == "swap":
            a, b = draw(places), draw(places)
            field[[a, b]] = field[[b, a]]
        else:
            field[:] = torch.randint(-2, nnz + 2, field.shape, generator=source)
        index = index._replace(**{name: field})
    return index


def _refused(product: Callable[[], Tensor]) -> Tensor | None:
    try:
        return product()
    except ValueError as error:
        if REFUSED not in str(error):
            raise
        return None


@given(spoilt_indices(), st.sampled_from(BLOCK_SIZES), st.sampled_from(LEVELS), st.integers(1, 70), st.booleans())
def test_a_wrong_index_is_refused_or_does_no_harm(
    index: BlockIndex, b: int, level: int, tokens: int, half: bool
) -> None:
    """Whole numbers, small enough to be exact in any order of adding, in bfloat16 too: what is accepted is right."""
    (n_rows, n_cols), nnz = index.grid, index.rows.numel()
    dtype = torch.bfloat16 if half else torch.float32
    x, dy, values = (
        torch.randint(-1, 2, shape).to(dtype) for shape in ((tokens, n_cols * b), (tokens, n_rows * b), (nnz, b, b))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_level_now", lambda: level)
        y = _refused(lambda: native.forward(x, values, index, None))
        dx = _refused(lambda: native.grad_input(dy, values, index))
        dw = _refused(lambda: native.grad_values(x, dy, index, b)[0])
    if y is None and dx is None and dw is None:
        return
    rows, cols = index.rows.long(), index.cols.long()  # one side of the index holds them: they are in the grid
    dense = torch.zeros(n_rows, n_cols, b, b)
    dense[rows, cols] = values.float()
    weight = dense.transpose(1, 2).reshape(n_rows * b, n_cols * b)
    gradient = (dy.float().t() @ x.float()).view(n_rows, b, n_cols, b).transpose(1, 2)[rows, cols]
    expected = (x.float() @ weight.t(), dy.float() @ weight, gradient)
    for found, exact in zip((y, dx, dw), expected):
        assert found is None or torch.equal(found, exact.to(dtype))
