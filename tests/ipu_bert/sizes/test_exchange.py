"""What ranks exchange, by hand for BERT-Base, and as docs/scaling.md has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import family_shape, make_weights

from ipu_bert.sizes.exchange import StepBytes, step_bytes
from ipu_bert.sizes.footprint import parameter_counts
from ipu_bert.sizes.shape import FAMILY

PAGE = Path(__file__).resolve().parents[3] / "docs" / "scaling.md"


def base(sparsity: float) -> StepBytes:
    shape = family_shape(FAMILY["base"])
    return step_bytes(parameter_counts(shape, make_weights(shape, sparsity)))


def test_bert_base_by_hand() -> None:
    """Blocks of 16 x 16: 690 of query, key and value, 230 behind attention, 922 in each half of the feed-forward."""
    sparse, dense = base(0.9), base(0.0)
    blocks = 12 * (690 + 230 + 922 + 922) * 256
    others = 12 * (3 * 768 + 768 + 4 * 768 + 768 + 4 * 768)  # biases, and two LayerNorms
    assert sparse.encoder == 4 * (blocks + others)
    assert sparse.embeddings == 4 * (30522 + 512 + 2 + 2) * 768
    assert dense.encoder == 4 * (12 * 12 * 768 * 768 + others)
    assert (dense.heads, dense.embeddings) == (sparse.heads, sparse.embeddings)
    assert sparse.as_dense == dense.as_dense == dense.total
    assert sparse.on_the_wire(8) == pytest.approx(1.75 * sparse.total)


@pytest.mark.parametrize("part", ["encoder", "embeddings", "heads", "total"])
def test_the_page_has_these_numbers(part: str) -> None:
    one, other = (f"{getattr(base(sparsity), part) / 1e6:.1f} MB" for sparsity in (0.9, 0.0))
    assert f" | {one} | {other} |" in PAGE.read_text(encoding="utf-8")
