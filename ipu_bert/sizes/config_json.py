"""A BERT's sizes as transformers' config.json has them."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any, Mapping

from ipu_bert.settings import DataSettings, ModelSettings
from ipu_bert.sizes.shape import TOKEN_TYPES, BertShape

# Hugging Face's config key of each field of BertShape.
CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "type_vocab": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}

_WHOLE = {field.name for field in fields(BertShape) if field.type == "int"}

# The most that a run can have of each: no memory is taken for what a damaged file says beyond it.
_MOST = {
    field.name: field.metadata["high"]
    for field in (*fields(ModelSettings), *fields(DataSettings))
    if field.name in CONFIG_KEYS and field.metadata["high"] is not None
}

_MOST_LABELS = 2**20  # transformers gives each a name, as soon as it reads the number

# What this model is and cannot be told otherwise.
FIXED_CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "tie_word_embeddings": True,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


# Of keys that older files leave out, what transformers' BertConfig then takes.
LEFT_OUT = {
    "type_vocab_size": TOKEN_TYPES,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}


def sizes(shape: BertShape) -> dict[str, Any]:
    """The shape by the keys of transformers' config.json."""
    return {theirs: getattr(shape, ours) for ours, theirs in CONFIG_KEYS.items()}


def hugging_face_config(shape: BertShape, pad_token_id: int | None) -> dict[str, Any]:
    """What transformers' config.json says for this shape.

    pad_token_id: [PAD]'s, as transformers trains no row of the word embedding where it is looked up by that id.
    """
    fixed = {**FIXED_CONFIG, "pad_token_id": pad_token_id}
    return {"architectures": ["BertForPreTraining"], **fixed, **sizes(shape)}


def shape_from_config(config: Mapping[str, Any]) -> BertShape:
    """The shape that a config.json of transformers describes.

    Raises ValueError for a setting that this model does not have, and for sizes that are missing or that none can have.
    """
    for key, expected in FIXED_CONFIG.items():
        if config.get(key, expected) != expected:
            raise ValueError(f"config.json: expected {key} {expected!r}, found {config[key]!r}")
    check_labels(config)
    config = {**LEFT_OUT, **config}
    missing = [key for key in CONFIG_KEYS.values() if key not in config]
    if missing:
        raise ValueError(f"config.json: expected a BERT config, found no {', '.join(missing)}")
    for ours, theirs in CONFIG_KEYS.items():
        _check_size(ours, theirs, config[theirs])
    if config["type_vocab_size"] != TOKEN_TYPES:
        raise ValueError(f"config.json: expected type_vocab_size {TOKEN_TYPES}, found {config['type_vocab_size']}")
    return BertShape(**{ours: config[theirs] for ours, theirs in CONFIG_KEYS.items()})


def check_labels(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a number of labels that is none, or that memory would run out for."""
    found = config.get("num_labels")
    if found is not None and (type(found) is not int or not 0 <= found <= _MOST_LABELS):
        raise ValueError(f"config.json: expected at most {_MOST_LABELS:,} as num_labels, found {found!r:.60}")


def _check_size(ours: str, theirs: str, value: Any) -> None:
    wanted, most = "a whole number" if ours in _WHOLE else "a number", _MOST.get(ours, sys.float_info.max)
    kinds = (int,) if ours in _WHOLE else (int, float)
    if type(value) not in kinds:
        raise ValueError(f"config.json: expected {wanted} for {theirs}, found {value!r:.60}")
    if not value <= most:
        limit = f"{wanted} of at most {most:,}" if ours in _MOST else "a finite number"
        raise ValueError(f"config.json: expected {limit} for {theirs}, found {value!r:.60}")
