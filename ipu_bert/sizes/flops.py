"""The paper's FLOPs and its comparison at equal FLOPs, from plain sizes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Sequence

from ipu_bert.settings import SparsitySettings
from ipu_bert.sizes.shape import FAMILY, BertShape, EncoderSize
from ipu_bert.sizes.weights import EncoderWeight, encoder_weights

# A training step is one forward pass and two products of the same size backward (App. A.2).
PASSES = 3


@dataclass(frozen=True)
class SequenceFlops:
    """FLOPs of forward + backward for one sequence, padding included; a multiply-add is 2.

    sparse: executed in block-sparse weights. sparse_as_dense: what those weights would cost if they were dense. dense:
    executed in the encoder's dense weights. attention: its two products. heads: pooler, NSP and MLM head.
    """

    sparse: float
    sparse_as_dense: float
    dense: float
    attention: float
    heads: float

    @property
    def encoder(self) -> float:
        """The "non-embedding FLOPs" of App. A.2 and Figure 3, with the blocks that exist: no pooler, no heads."""
        return self.sparse + self.dense + self.attention

    @property
    def executed(self) -> float:
        """Everything that is executed, heads included."""
        return self.encoder + self.heads

    @property
    def dense_equivalent(self) -> float:
        """What the dense model of the same sizes would execute, heads included."""
        return self.sparse_as_dense + self.dense + self.attention + self.heads

    def to_dict(self) -> dict[str, float]:
        """Fields and totals as plain numbers."""
        totals = {"encoder": self.encoder, "executed": self.executed, "dense_equivalent": self.dense_equivalent}
        return {**asdict(self), **totals}


def linear_flops(elements: float, sequence_length: int) -> float:
    """Of a weight with so many elements, at every token: 3 x 2 S x elements."""
    return float(PASSES * 2 * sequence_length) * elements


def attention_flops(hidden_size: int, sequence_length: int) -> float:
    """Of one layer's queries by keys and probabilities by values, 2 S^2 H each and three passes: 12 S^2 H."""
    return float(PASSES * 2 * 2 * sequence_length**2 * hidden_size)


def head_flops(shape: BertShape, masked_positions: int, decoded: float | None = None) -> float:
    """Pooler and NSP on one token of a sequence, MLM transform and decoder at its masked positions.

    decoded: at so many of them alone, a mean over sequences, the decoder; None: at all of them.
    """
    hidden, words = shape.hidden_size, masked_positions if decoded is None else decoded
    transform, decoder = masked_positions * hidden * hidden, words * hidden * shape.vocab_size
    return float(PASSES * 2 * (hidden * (hidden + 2) + transform + decoder))


def paper_flops(encoder: EncoderSize, weights: Sequence[EncoderWeight], sequence_length: int) -> float:
    """The paper's count (App. A.2): as if each weight kept exactly the share asked for, without pooler and heads."""
    linear = sum(linear_flops(weight.size * (1.0 - weight.sparsity), sequence_length) for weight in weights)
    return linear + encoder.layers * attention_flops(encoder.hidden_size, sequence_length)


def sequence_flops(
    shape: BertShape,
    weights: Sequence[EncoderWeight],
    sequence_length: int,
    masked_positions: int,
    decoded: float | None = None,
) -> SequenceFlops:
    """What is executed for one sequence, with the blocks that exist and with the heads; decoded: see `head_flops`."""
    sparse, dense = [w for w in weights if w.is_sparse], [w for w in weights if not w.is_sparse]
    return SequenceFlops(
        sparse=linear_flops(sum(weight.elements for weight in sparse), sequence_length),
        sparse_as_dense=linear_flops(sum(weight.size for weight in sparse), sequence_length),
        dense=linear_flops(sum(weight.size for weight in dense), sequence_length),
        attention=shape.layers * attention_flops(shape.hidden_size, sequence_length),
        heads=head_flops(shape, masked_positions, decoded),
    )


# --- comparison at equal FLOPs

# Validation MLM loss of the dense family (Tables A.8 and A.11) at the paper's FLOPs.
DENSE_FAMILY_MLM: dict[str, float] = {"mini": 2.614, "small": 2.310, "medium": 2.115, "base": 1.843}


def interpolate_loss(points: Sequence[tuple[float, float]], flops: float) -> float:
    """Loss of a dense family at `flops`, from its (FLOPs, loss) points: a straight line in log FLOPs and log loss.

    The paper says "linear interpolation" and draws Figure 3 with both axes logarithmic; log-log is what gives its two
    "Matched" rows exactly (Table 1: 2.350, Table A.8: 2.603). Linear in FLOPs gives 2.381 and 2.609, log FLOPs alone
    gives 2.353 and 2.604. Outside the points the nearest segment is continued, to 0 or infinity where it is steep.
    Raises ValueError for fewer than two points, two points of the same FLOPs, or a value that is not above 0.
    """
    low, high, t = _segment([(math.log(f), math.log(loss)) for f, loss in _checked(points)], math.log(flops))
    return _exp(low + t * (high - low))


def interpolate_cost(points: Sequence[tuple[float, float]], loss: float) -> float:
    """FLOPs, or seconds, at which a dense family reaches `loss`, from its (cost, loss) points.

    The inverse of `interpolate_loss`.
    """
    low, high, t = _segment([(math.log(value), math.log(f)) for f, value in _checked(points)], math.log(loss))
    return _exp(low + t * (high - low))


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def matched_loss(flops: float) -> float:
    """Loss of the paper's dense BERT family at these FLOPs per sequence (its "Matched" rows)."""
    return interpolate_loss(dense_family(), flops)


def matched_flops(loss: float) -> float:
    """FLOPs per sequence at which the paper's dense BERT family reaches this MLM loss (Figure 3's arrow)."""
    return interpolate_cost(dense_family(), loss)


def dense_family() -> list[tuple[float, float]]:
    """(FLOPs per sequence of 128 tokens, MLM loss) of the paper's dense models."""
    dense = SparsitySettings(method="dense")
    return [
        (paper_flops(FAMILY[size], encoder_weights(FAMILY[size], dense), 128), loss)
        for size, loss in DENSE_FAMILY_MLM.items()
    ]


def epsilon(sparse_seconds: float, sparse_flops: float, dense_seconds: float, dense_flops: float) -> float:
    """Time of a sparse FLOP over time of a dense one (Eq. 5)."""
    if min(sparse_seconds, sparse_flops, dense_seconds, dense_flops) <= 0.0:
        raise ValueError(
            "epsilon: expected times and FLOPs above 0, found "
            f"{sparse_seconds} s, {sparse_flops}, {dense_seconds} s, {dense_flops}"
        )
    return (sparse_seconds / sparse_flops) / (dense_seconds / dense_flops)


def epsilon_critical(dense_flops: float, sparse_flops: float) -> float:
    """The epsilon at which a sparse step takes as long as a dense one of equal loss (Eq. 7); below it sparse wins."""
    if min(dense_flops, sparse_flops) <= 0.0:
        raise ValueError(f"epsilon_critical: expected FLOPs above 0, found {dense_flops} and {sparse_flops}")
    return dense_flops / sparse_flops


def _checked(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if len(points) < 2:
        raise ValueError(f"interpolation: expected at least two (FLOPs, loss) points, found {len(points)}")
    if any(not (f > 0.0 and loss > 0.0) for f, loss in points):
        raise ValueError(f"interpolation: expected FLOPs and losses above 0, found {list(points)}")
    return points


def _segment(points: Sequence[tuple[float, float]], x: float) -> tuple[float, float, float]:
    """The y values at both ends of the segment that x falls in, and how far along it x is."""
    ordered = sorted(points)
    if any(a[0] == b[0] for a, b in zip(ordered, ordered[1:])):
        raise ValueError("interpolation: expected points with different FLOPs and losses, found two alike")
    right = next((k for k in range(1, len(ordered)) if x <= ordered[k][0]), len(ordered) - 1)
    (x0, y0), (x1, y1) = ordered[right - 1], ordered[right]
    return y0, y1, (x - x0) / (x1 - x0)
