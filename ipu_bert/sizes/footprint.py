"""What a model holds: parameters and bytes, counted from plain sizes before anything is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Sequence

from ipu_bert.sizes.shape import BertShape
from ipu_bert.sizes.weights import EncoderWeight

# Of a weight, its gradient and both its moments on the torch engine, which holds all of them in float32.
FLOAT32_BYTES = (4, 4, 8)


@dataclass(frozen=True)
class ParameterCounts:
    """Elements of the parameters that exist; `sparse_as_dense` is what the sparse weights would have if dense.

    sparse: values of block-sparse weights. encoder_dense: everything else in the encoder (dense weights, biases,
    LayerNorm). embeddings: three tables and their LayerNorm; the decoder shares one. heads: pooler, NSP, MLM.
    sparse_blocks: blocks over all sparse weights.
    """

    sparse: int
    sparse_as_dense: int
    encoder_dense: int
    embeddings: int
    heads: int
    sparse_blocks: int

    @property
    def dense(self) -> int:
        """All that is not block-sparse."""
        return self.encoder_dense + self.embeddings + self.heads

    @property
    def total(self) -> int:
        """Parameters that exist."""
        return self.sparse + self.dense

    def to_dict(self) -> dict[str, int]:
        """Fields and totals as plain numbers."""
        return {**asdict(self), "dense": self.dense, "total": self.total}


def embedding_parameters(shape: BertShape) -> int:
    """Three tables and their LayerNorm."""
    return (shape.vocab_size + shape.max_positions + shape.type_vocab + 2) * shape.hidden_size


def encoder_parameters(weights: Sequence[EncoderWeight], hidden_size: int, layers: int) -> int:
    """Of `layers` encoder layers with these weights: weights as they exist, their biases, two LayerNorms a layer."""
    return sum(weight.elements + weight.shape[0] for weight in weights) + layers * 2 * 2 * hidden_size


def head_parameters(shape: BertShape) -> int:
    """Pooler and MLM transform, the transform's LayerNorm, the decoder's bias, NSP; the decoder's weight is shared."""
    hidden = shape.hidden_size
    return 2 * (hidden * hidden + hidden) + 2 * hidden + shape.vocab_size + 2 * hidden + 2


def parameter_counts(shape: BertShape, weights: Sequence[EncoderWeight]) -> ParameterCounts:
    """Exact counts of `BertForPreTraining(shape, sparse_linear(weights, ...), ...)`."""
    sparse = [weight for weight in weights if weight.is_sparse]
    elements = sum(weight.elements for weight in sparse)
    return ParameterCounts(
        sparse=elements,
        sparse_as_dense=sum(weight.size for weight in sparse),
        encoder_dense=encoder_parameters(weights, shape.hidden_size, shape.layers) - elements,
        embeddings=embedding_parameters(shape),
        heads=head_parameters(shape),
        sparse_blocks=sum(weight.blocks for weight in sparse),
    )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of what a training step keeps between steps, activations left out; sparse and dense parameters apart.

    index: positions and the kernel index of every sparse weight, int32.
    """

    sparse_weights: int
    sparse_gradients: int
    sparse_moments: int
    dense_weights: int
    dense_gradients: int
    dense_moments: int
    index: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, int]:
        """Fields and their total in bytes."""
        return {**asdict(self), "total": self.total}


def memory_estimate(
    shape: BertShape, weights: Sequence[EncoderWeight], weight_bytes: int, gradient_bytes: int, moment_bytes: int
) -> MemoryEstimate:
    """Bytes of weights, gradients and both Adam moments (`moment_bytes` is for the two together, per element)."""
    counts = parameter_counts(shape, weights)
    return MemoryEstimate(
        counts.sparse * weight_bytes,
        counts.sparse * gradient_bytes,
        counts.sparse * moment_bytes,
        counts.dense * weight_bytes,
        counts.dense * gradient_bytes,
        counts.dense * moment_bytes,
        sum(_index_bytes(weight) for weight in weights if weight.is_sparse),
    )


def _index_bytes(weight: EncoderWeight) -> int:
    """rows, cols, row_slots and col_slots of each block, and two pointers that are one longer than the grid; int32."""
    pointers = weight.shape[0] // weight.block_size + weight.shape[1] // weight.block_size + 2
    return 4 * (4 * weight.blocks + pointers)
