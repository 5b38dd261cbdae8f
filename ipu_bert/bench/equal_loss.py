"""Seconds a step at equal loss: a sparse BERT against the dense one that needs no more than it to reach its loss.

The sparse model of a size loses against the dense model of that size in loss, and wins in time; what decides is the
dense model of equal loss, which is smaller. The paper's losses say how small (Tables 1, A.8, A.11): between the dense
models that it trained, a straight line in log seconds and log loss, as its own comparison at equal FLOPs takes
(`sizes.flops.interpolate_cost`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Mapping

from ipu_bert.sizes.flops import DENSE_FAMILY_MLM, interpolate_cost

# Validation MLM loss of sparse models at sparsity 0.9 with sequences of 128, by block size (Tables 1 and A.8).
SPARSE_MLM = {
    "medium": {1: 2.408, 4: 2.546, 8: 2.591, 16: 2.621},
    "base": {1: 2.160, 4: 2.272, 8: 2.295, 16: 2.311},
}
SPARSITY, LENGTH = 0.9, 128


@dataclass(frozen=True)
class EqualLoss:
    """One block size of a sparse model. mlm_loss [nats]: the paper's, after its whole run. dense_seconds: of a step of
    the dense model of that loss, between those that were measured or beyond them (`beyond`).
    """

    size: str
    block: int
    mlm_loss: float
    seconds: float
    dense_seconds: float
    beyond: bool

    @property
    def ratio(self) -> float:
        """Sparse over dense: below 1 the sparse model gets there first."""
        return self.seconds / self.dense_seconds

    def to_dict(self) -> dict[str, Any]:
        """Fields and the ratio as plain values."""
        return {**asdict(self), "ratio": self.ratio}


def equal_loss(size: str, sparse_seconds: Mapping[int, float], dense_seconds: Mapping[str, float]) -> list[EqualLoss]:
    """For each block size that was measured. sparse_seconds: by block; dense_seconds: by size of the dense family.

    Raises ValueError for fewer than two dense models, and for a size that the paper gives no sparse losses of.
    """
    if size not in SPARSE_MLM:
        raise ValueError(f"equal loss: expected one of {', '.join(SPARSE_MLM)}, found {size!r}")
    family = {name: DENSE_FAMILY_MLM[name] for name in dense_seconds if name in DENSE_FAMILY_MLM}
    points = [(dense_seconds[name], loss) for name, loss in family.items()]
    return [
        EqualLoss(
            size=size,
            block=block,
            mlm_loss=loss,
            seconds=sparse_seconds[block],
            dense_seconds=interpolate_cost(points, loss),
            beyond=not min(family.values()) <= loss <= max(family.values()),
        )
        for block, loss in sorted(SPARSE_MLM[size].items(), reverse=True)
        if block in sparse_seconds
    ]


def render(found: list[EqualLoss]) -> str:
    """The comparison for a reader, a line for each block size."""
    lines = [f"{'block':>7} {'MLM loss':>8} {'s/step':>8} {'dense of that loss':>18} {'sparse / dense':>14}"]
    for one in found:
        verdict = f"wins by {1 / one.ratio:.2f}" if one.ratio < 1 else f"loses by {one.ratio:.2f}"
        dense = f"{one.dense_seconds:.3f}{'*' if one.beyond else ''}"
        name = f"{one.block}x{one.block}"
        lines.append(f"{name:>7} {one.mlm_loss:>8.3f} {one.seconds:>8.3f} {dense:>18} {one.ratio:>14.2f}  {verdict}")
    if any(one.beyond for one in found):
        lines.append("* outside the dense models that were measured: their nearest line continued")
    return "\n".join(lines)
