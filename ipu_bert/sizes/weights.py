"""The encoder's weights with their shapes and blocks: made once from a config, asked by everything that counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ipu_bert.settings import SparsitySettings
from ipu_bert.sizes.distribution import sparsity_by_weight
from ipu_bert.sizes.shape import EncoderSize
from sparse_ops.pattern import block_count


@dataclass(frozen=True)
class EncoderWeight:
    """One fully connected encoder weight: `shape` is (out, in); `segments` equal row parts are pruned apart.

    sparsity: as asked for, 0 where the weight is dense; what whole blocks make of it is `1 - density`. block_size and
    blocks (of all segments): 0 where it is dense.
    """

    name: str
    layer: int
    shape: tuple[int, int]
    segments: int
    sparsity: float
    block_size: int
    blocks: int

    @property
    def is_sparse(self) -> bool:
        """Whether the weight is block-sparse."""
        return self.blocks > 0

    @property
    def size(self) -> int:
        """Elements of the dense weight."""
        return self.shape[0] * self.shape[1]

    @property
    def elements(self) -> int:
        """Elements that exist."""
        return self.blocks * self.block_size**2 if self.is_sparse else self.size

    @property
    def density(self) -> float:
        """Share of the elements that exist: a 128 x 128 weight asked for 0.1 in 16 x 16 blocks has 6 of 64, 0.094."""
        return self.elements / self.size

    @property
    def segment_shape(self) -> tuple[int, int]:
        """(out, in) of one segment: what the paper calls a weight tensor."""
        return self.shape[0] // self.segments, self.shape[1]


def encoder_weights(encoder: EncoderSize, sparsity: SparsitySettings) -> tuple[EncoderWeight, ...]:
    """Every weight the paper sparsifies, in order of use; query, key and value are one weight of 3 segments.

    Raises ValueError that names the weight for a block size or a sparsity that it cannot have, and for a pattern of
    `sparsity.layers` that matches none.
    """
    weights = _dense_weights(encoder)
    if sparsity.method == "dense":
        return weights
    chosen = sparsity_by_weight(weights, sparsity.sparsity, sparsity.distribution, sparsity.layers)
    return tuple(_with_blocks(weight, chosen.get(weight.name, 0.0), sparsity.block_size) for weight in weights)


def _with_blocks(weight: EncoderWeight, sparsity: float, block_size: int) -> EncoderWeight:
    if sparsity == 0.0:
        return weight
    try:
        blocks = weight.segments * block_count(weight.shape, block_size, sparsity, weight.segments)
    except ValueError as error:
        raise ValueError(f"{weight.name}: {error}") from None
    return replace(weight, sparsity=sparsity, block_size=block_size, blocks=blocks)


def _dense_weights(encoder: EncoderSize) -> tuple[EncoderWeight, ...]:
    hidden, intermediate = encoder.hidden_size, encoder.intermediate_size
    kinds = (
        ("attention.self.qkv", (3 * hidden, hidden), 3),
        ("attention.output.dense", (hidden, hidden), 1),
        ("intermediate.dense", (intermediate, hidden), 1),
        ("output.dense", (hidden, intermediate), 1),
    )
    return tuple(
        EncoderWeight(f"bert.encoder.layer.{i}.{kind}", i, shape, segments, sparsity=0.0, block_size=0, blocks=0)
        for i in range(encoder.layers)
        for kind, shape, segments in kinds
    )
