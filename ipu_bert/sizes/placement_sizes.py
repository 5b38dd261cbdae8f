"""Elements, bytes and FLOPs of a model's parts on an IPU, and what popsparse adds to its sparse weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Mapping, NamedTuple, Sequence

from ipu_bert.sizes.flops import block_total
from ipu_bert.sizes.shape import BertShape, EncoderWeight, encoder_weights

KIB = 1024


class Padding(NamedTuple):
    """popsparse's plan for one product: half precision, 4,096 rows, oversize 0.1."""

    out_features: int
    in_features: int
    density: float
    block_size: int
    meta_info_bytes: int
    factor: float  # elements of nz per non-zero


# From a run of the public planner of poplibs 3.4 on a host, with assumed figures of a Mk2 IPU. The last three: 1,024
# rows, and metaInfo at oversize 0.3; the factor of 1x1 was not recorded and is taken as 1 + oversize.
PADDING = tuple(
    Padding(out, inner, density, block, kib * KIB, factor)
    for out, inner, density, block, kib, factor in (
        (768, 768, 0.05, 16, 189, 11.6),
        (768, 768, 0.05, 8, 273, 2.92),
        (768, 768, 0.05, 4, 462, 1.46),
        (768, 768, 0.10, 16, 221, 5.82),
        (768, 768, 0.10, 8, 352, 1.53),
        (768, 768, 0.10, 4, 399, 1.09),
        (768, 768, 0.20, 16, 221, 2.92),
        (768, 768, 0.20, 8, 308, 1.53),
        (768, 768, 0.20, 4, 664, 1.37),
        (768, 768, 0.50, 16, 252, 1.17),
        (768, 768, 0.50, 8, 410, 1.17),
        (768, 768, 0.50, 4, 903, 1.09),
        (3072, 768, 0.10, 16, 305, 1.46),
        (3072, 768, 0.10, 8, 664, 1.17),
        (768, 3072, 0.10, 16, 539, 1.53),
        (768, 3072, 0.10, 8, 416, 1.17),
        (2304, 768, 0.10, 16, 305, 1.94),
        (2304, 768, 0.10, 8, 550, 1.02),
        (1024, 1024, 0.10, 16, 231, 3.43),
        (4096, 1024, 0.10, 16, 319, 1.72),
        (1024, 1024, 0.10, 1, 2904, 1.3),
    )
)


def padding_of(weight: EncoderWeight, density: float, block_size: int) -> tuple[Padding, bool]:
    """The planner's figures for a sparse weight, and whether they are of this very product.

    The nearest has the same block size where there is one, then the nearest number of non-zeros, then the shape.
    """

    def distance(p: Padding) -> tuple[float, float, float]:
        size, known = weight.size * density, p.out_features * p.in_features * p.density
        shape = abs(math.log(weight.shape[0] / weight.shape[1]) - math.log(p.out_features / p.in_features))
        return abs(math.log(p.block_size / block_size)), abs(math.log(known / size)), shape

    nearest = min(PADDING, key=distance)
    exact = (nearest.out_features, nearest.in_features, nearest.block_size) == (*weight.shape, block_size)
    return nearest, exact and abs(nearest.density - density) < 0.005


@dataclass(frozen=True)
class LayerPadding:
    """What popsparse needs for a sparse weight beside its non-zeros."""

    name: str
    non_zeros: int
    factor: float
    meta_info: int
    estimated: bool  # False: the planner's figure for this very product


def layer_of(weight: EncoderWeight) -> int:
    """Number of the encoder layer that a weight belongs to."""
    return int(weight.name.split("layer.")[1].split(".")[0])


class ModelSizes:
    """Elements, bytes and FLOPs of the model's parts."""

    def __init__(
        self,
        shape: BertShape,
        sparsity: Mapping[str, float],
        block_size: int,
        sequence_length: int,
        micro_batch_size: int,
        max_predictions: int,
        half: bool,
        recompute: bool,
    ) -> None:
        self.shape, self._sparsity, self._block_size = shape, sparsity, block_size
        self._length, self._micro, self._predictions = sequence_length, micro_batch_size, max_predictions
        self._bytes, self._recompute = 2 if half else 4, recompute
        self.weights = encoder_weights(shape.layers, shape.hidden_size, shape.intermediate_size)
        h, v = shape.hidden_size, shape.vocab_size
        self.embedding_parameters = (v + shape.max_positions + shape.type_vocab + 2) * h
        # Pooler, MLM transform and its LayerNorm, the decoder's bias, NSP; the decoder's weight is the embedding.
        self.head_parameters = 2 * (h * h + h) + 2 * h + v + 2 * h + 2
        self.head_flops = 6.0 * (max_predictions * (h * h + h * v) + h * h + 2 * h)

    def is_sparse(self, weight: EncoderWeight) -> bool:
        """Whether the weight is block-sparse."""
        return self._sparsity.get(weight.name, 0.0) > 0.0

    def elements(self, weight: EncoderWeight) -> int:
        """Elements that exist."""
        if not self.is_sparse(weight):
            return weight.size
        return block_total(weight, self._sparsity[weight.name], self._block_size) * self._block_size**2

    def _of_layer(self, i: int) -> list[EncoderWeight]:
        return self.weights[4 * i : 4 * i + 4]

    def layer_parameters(self, i: int) -> int:
        """Weights as stored, biases, two LayerNorms."""
        return sum(self.elements(w) + w.shape[0] for w in self._of_layer(i)) + 4 * self.shape.hidden_size

    def layer_flops(self, i: int) -> float:
        """Of one sequence, forward and backward; recomputation is not counted, it is the same share everywhere."""
        linear = 6.0 * self._length * sum(self.elements(w) for w in self._of_layer(i))
        return linear + 12.0 * self._length**2 * self.shape.hidden_size

    def layer_padding(self, weight: EncoderWeight) -> LayerPadding:
        """See LayerPadding."""
        elements = self.elements(weight)
        known, exact = padding_of(weight, elements / weight.size, self._block_size)
        return LayerPadding(weight.name, elements, known.factor, known.meta_info_bytes, not exact)

    def activations(self, layers: Sequence[int], embeddings: bool, heads: bool, in_flight: int) -> int:
        """Bytes kept for `in_flight` micro-batches, and once what recomputing or finishing one of them needs."""
        shape, rows = self.shape, self._micro * self._length
        h = shape.hidden_size
        one_input = rows * h * self._bytes
        # Queries, keys, values, context, two projections, two LayerNorms; feed-forward before and after GELU; scores
        # and probabilities.
        attention = 2 * self._micro * shape.heads * self._length**2
        inside = (rows * (8 * h + 2 * shape.intermediate_size) + attention) * self._bytes
        if self._recompute:
            kept = len(layers) * one_input * in_flight + (inside if layers else 0)
        else:
            kept = len(layers) * inside * in_flight
        if embeddings:
            kept += one_input * in_flight
        if heads:
            positions = self._micro * self._predictions
            # Logits, and in float32 their copy and the probabilities.
            kept += one_input + positions * (3 * h * self._bytes + shape.vocab_size * (self._bytes + 8))
        return int(kept)
