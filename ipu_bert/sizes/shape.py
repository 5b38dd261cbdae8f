"""Sizes of BERT as plain values: what the model, FLOPs, sparsity and placement are all computed from. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BertShape:
    """Sizes and fixed constants of one BERT; dropout is a probability, ``initializer_range`` a standard
    deviation.

    Raises:
        ValueError: names every field that is out of range, all at once.
    """

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    type_vocab: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        errors: list[str] = []
        for name in (
            "layers",
            "hidden_size",
            "heads",
            "intermediate_size",
            "vocab_size",
            "max_positions",
            "type_vocab",
        ):
            if getattr(self, name) < 1:
                errors.append(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.heads >= 1 and self.hidden_size % self.heads:
            errors.append(f"hidden_size must be a multiple of heads, found {self.hidden_size} and {self.heads}")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                errors.append(f"{name} must be in [0, 1), found {getattr(self, name)}")
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0.0:
                errors.append(f"{name} must be above 0, found {getattr(self, name)}")
        if errors:
            raise ValueError("model shape: " + "; ".join(errors))


@dataclass(frozen=True)
class EncoderWeight:
    """One fully connected encoder weight: ``shape`` is (out, in); ``segments`` equal row parts are pruned apart."""

    name: str
    shape: tuple[int, int]
    segments: int = 1

    @property
    def size(self) -> int:
        """Number of elements of the dense weight."""
        return self.shape[0] * self.shape[1]

    @property
    def segment_shape(self) -> tuple[int, int]:
        """(out, in) of one segment: what the paper calls a weight tensor."""
        return self.shape[0] // self.segments, self.shape[1]


def encoder_weights(layers: int, hidden_size: int, intermediate_size: int) -> list[EncoderWeight]:
    """Every weight the paper sparsifies, in order of use; query, key and value are one weight of 3 segments."""
    found = []
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        found += [
            EncoderWeight(f"{layer}.attention.self.qkv", (3 * hidden_size, hidden_size), 3),
            EncoderWeight(f"{layer}.attention.output.dense", (hidden_size, hidden_size)),
            EncoderWeight(f"{layer}.intermediate.dense", (intermediate_size, hidden_size)),
            EncoderWeight(f"{layer}.output.dense", (hidden_size, intermediate_size)),
        ]
    return found


# (layers, hidden size) of the BERT family (Turc et al. 2019); feed-forward 4 x hidden, hidden / 64 heads.
FAMILY: dict[str, tuple[int, int]] = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
}
