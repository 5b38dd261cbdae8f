"""Sizes of BERT as plain values: what the model, FLOPs, sparsity and placement are all computed from. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ipu_bert.settings import ModelSettings

TOKEN_TYPES = 2  # first and second part of a sequence


class EncoderSize(Protocol):
    """What the encoder's weights follow from: ModelSettings, BertShape and FamilySize all have it."""

    @property
    def layers(self) -> int:
        """Encoder layers L."""

    @property
    def hidden_size(self) -> int:
        """Width H."""

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward part."""


@dataclass(frozen=True)
class BertShape:
    """Sizes and fixed constants of one BERT; dropouts are probabilities, `initializer_range` a standard deviation.

    Raises ValueError that names every field out of range, all at once.
    """

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    type_vocab: int
    dropout: float
    attention_dropout: float
    layer_norm_eps: float
    initializer_range: float

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


def bert_shape(model: ModelSettings, vocab_size: int) -> BertShape:
    """The shape of a config's model; the vocabulary's size comes from the prepared data."""
    return BertShape(
        layers=model.layers,
        hidden_size=model.hidden_size,
        heads=model.heads,
        intermediate_size=model.intermediate_size,
        vocab_size=vocab_size,
        max_positions=model.max_positions,
        type_vocab=TOKEN_TYPES,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        layer_norm_eps=model.layer_norm_eps,
        initializer_range=model.initializer_range,
    )


class FamilySize(NamedTuple):
    """A member of the BERT family (Turc et al. 2019): feed-forward 4 H wide, H / 64 heads."""

    layers: int
    hidden_size: int

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward part."""
        return 4 * self.hidden_size

    @property
    def heads(self) -> int:
        """Attention heads, of 64 features each."""
        return self.hidden_size // 64


FAMILY: dict[str, FamilySize] = {
    "tiny": FamilySize(2, 128),
    "mini": FamilySize(4, 256),
    "small": FamilySize(4, 512),
    "medium": FamilySize(8, 512),
    "base": FamilySize(12, 768),
}
