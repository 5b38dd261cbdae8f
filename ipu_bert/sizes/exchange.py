"""What ranks exchange in a step, counted from sizes: every rank's gradients, part by part."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ipu_bert.sizes.footprint import ParameterCounts

GRADIENT_BYTES = 4  # float32, whatever products are computed in


@dataclass(frozen=True)
class StepBytes:
    """Bytes of gradients that each rank gives to be added up in one step.

    encoder: blocks that exist, dense weights, biases and LayerNorm. embeddings: the word embedding, tied to the
    decoder, has a gradient in every row and is most of it. as_dense: all, if no weight were sparse.
    """

    encoder: int
    embeddings: int
    heads: int
    as_dense: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.encoder + self.embeddings + self.heads

    def on_the_wire(self, ranks: int) -> float:
        """Bytes that each rank sends, and receives as many, when they are added up in a ring: 2 (n - 1) / n of all."""
        return 2 * (ranks - 1) / ranks * self.total

    def to_dict(self) -> dict[str, int]:
        """Fields and their total in bytes."""
        return {**asdict(self), "total": self.total}


def step_bytes(counts: ParameterCounts) -> StepBytes:
    """Of a model with so many parameters."""
    return StepBytes(
        encoder=(counts.sparse + counts.encoder_dense) * GRADIENT_BYTES,
        embeddings=counts.embeddings * GRADIENT_BYTES,
        heads=counts.heads * GRADIENT_BYTES,
        as_dense=(counts.total - counts.sparse + counts.sparse_as_dense) * GRADIENT_BYTES,
    )
