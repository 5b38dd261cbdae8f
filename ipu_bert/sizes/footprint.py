"""What a model holds: parameters and bytes, counted from plain sizes before anything is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Mapping

from ipu_bert.sizes.flops import block_total
from ipu_bert.sizes.shape import BertShape, encoder_weights


@dataclass(frozen=True)
class ParameterCounts:
    """Elements of the parameters that exist; ``sparse_as_dense`` is what the sparse weights would have if dense.

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


def parameter_counts(shape: BertShape, sparsity: Mapping[str, float], block_size: int) -> ParameterCounts:
    """Exact counts of ``BertForPreTraining(shape, sparse_linear(block_size, sparsity, ...))``.

    Raises:
        ValueError: a block size or a sparsity that a weight cannot have; the message names the weight.
    """
    hidden = shape.hidden_size
    sparse = sparse_as_dense = blocks = 0
    # Two LayerNorms a layer.
    encoder_dense = shape.layers * 2 * 2 * hidden
    for weight in encoder_weights(shape.layers, hidden, shape.intermediate_size):
        encoder_dense += weight.shape[0]
        if sparsity.get(weight.name, 0.0) == 0.0:
            encoder_dense += weight.size
        else:
            kept = block_total(weight, sparsity[weight.name], block_size)
            blocks += kept
            sparse += kept * block_size**2
            sparse_as_dense += weight.size
    embeddings = (shape.vocab_size + shape.max_positions + shape.type_vocab + 2) * hidden
    # Pooler and MLM transform, the transform's LayerNorm, the decoder's bias, NSP.
    heads = 2 * (hidden * hidden + hidden) + 2 * hidden + shape.vocab_size + 2 * hidden + 2
    return ParameterCounts(sparse, sparse_as_dense, encoder_dense, embeddings, heads, blocks)


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
    shape: BertShape,
    sparsity: Mapping[str, float],
    block_size: int,
    weight_bytes: int = 4,
    gradient_bytes: int = 4,
    moment_bytes: int = 8,
) -> MemoryEstimate:
    """Bytes of weights, gradients and both Adam moments (``moment_bytes`` is for the two together, per element)."""
    counts = parameter_counts(shape, sparsity, block_size)
    index = 0
    for weight in encoder_weights(shape.layers, shape.hidden_size, shape.intermediate_size):
        if sparsity.get(weight.name, 0.0) > 0.0:
            # rows, cols, row_slots and col_slots of each block; two pointers that are one longer than the grid.
            pointers = weight.shape[0] // block_size + weight.shape[1] // block_size + 2
            index += 4 * (4 * block_total(weight, sparsity[weight.name], block_size) + pointers)
    return MemoryEstimate(
        counts.sparse * weight_bytes,
        counts.sparse * gradient_bytes,
        counts.sparse * moment_bytes,
        counts.dense * weight_bytes,
        counts.dense * gradient_bytes,
        counts.dense * moment_bytes,
        index,
    )
