"""To and from Hugging Face: names, the fused query-key-value, and folders that transformers loads.

This is the only place where a sparse weight is made dense, and it is never on the path of a training step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ipu_bert.model import BertForPreTraining, LinearFactory, dense_linear
from ipu_bert.sizes.shape import BertShape
from sparse_ops import files
from sparse_ops.linear import BlockSparseLinear

QKV_PARTS = ("query", "key", "value")
WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"

# transformers' state dict repeats what it ties; its files leave these out, as ours do.
TIED = {
    "cls.predictions.decoder.weight": WORD_EMBEDDINGS,
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

# Constants that older transformers stored among the weights.
NOT_WEIGHTS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


def to_hugging_face(model: BertForPreTraining) -> dict[str, Tensor]:
    """State dict of transformers' BertForPreTraining: qkv split in three, sparse weights dense, tied entries shared.

    Untied tensors are copies on the CPU in the model's dtype; what lies outside a pattern is 0.
    """
    state: dict[str, Tensor] = {}
    for name, weight in _own_weights(model).items():
        dense = weight.to_dense() if isinstance(weight, BlockSparseLinear) else weight
        dense = dense.detach().to("cpu", copy=True).contiguous()
        names = _their_names(name)
        for part, tensor in zip(names, dense.chunk(len(names))):
            state[part] = tensor.clone() if len(names) > 1 else tensor
    state.update({tied: state[name] for tied, name in TIED.items()})
    return state


@torch.no_grad()
def from_hugging_face(
    model: BertForPreTraining,
    state: Mapping[str, Tensor],
    outside: str = "refuse",
    optional: Sequence[str] = (),
) -> None:
    """Take every weight of `model` from transformers' names, in place; patterns stay, blocks are read at them.

    `from_hugging_face(model, to_hugging_face(model))` changes no bit. A state dict of the encoder alone (BertModel,
    names without `bert.`) is taken too if `optional` allows its heads to be missing. outside: what to do with non-zero
    weights outside a sparse layer's pattern, "refuse" or "drop". optional: name prefixes that may be missing,
    `("cls.",)` for an encoder without heads.
    Raises ValueError for names missing or left over, another shape, an untied decoder, or a non-zero outside the
    pattern; then nothing has changed.
    """
    if outside not in ("refuse", "drop"):
        raise ValueError(f"outside: expected 'refuse' or 'drop', found {outside!r}")
    if not any(name.startswith(("bert.", "cls.")) for name in state):
        state = {f"bert.{name}": tensor for name, tensor in state.items()}
    plan = []
    missing: list[str] = []
    used: set[str] = {*NOT_WEIGHTS, *TIED}
    for name, target in _own_weights(model).items():
        names = _their_names(name)
        used.update(names)
        absent = [part for part in names if part not in state]
        if absent:
            missing += [part for part in absent if not part.startswith(tuple(optional))]
            continue
        source = torch.cat([state[part] for part in names]) if len(names) > 1 else state[names[0]]
        _check(name, source, target, outside)
        plan.append((source, target))
    left = sorted(set(state) - used)
    if missing or left:
        raise ValueError(f"Hugging Face weights: missing {missing[:5] or 'none'}, not known {left[:5] or 'none'}")
    for tied, name in TIED.items():
        if tied in state and name in state and not torch.equal(state[tied], state[name]):
            raise ValueError(f"Hugging Face weights: expected {tied} to be tied to {name}, found another tensor")
    for source, target in plan:
        if isinstance(target, BlockSparseLinear):
            target.from_dense(source.to(target.values.device, target.values.dtype))
        else:
            target.copy_(source)


def save_pretrained(model: BertForPreTraining, folder: str | Path) -> None:
    """Write config.json and model.safetensors, which transformers' `BertForPreTraining.from_pretrained` loads.

    Each file is written aside, synced and renamed, the weights first.
    """
    folder = Path(folder)
    state = {name: tensor for name, tensor in to_hugging_face(model).items() if name not in TIED}
    with files.replacing(folder / "model.safetensors") as aside:
        save_file(state, str(aside), metadata={"format": "pt"})
    files.write(folder / "config.json", json.dumps(hugging_face_config(model.shape), indent=2, sort_keys=True) + "\n")


def load_pretrained(
    folder: str | Path,
    linear: LinearFactory = dense_linear,
    outside: str = "refuse",
    optional: Sequence[str] = (),
) -> BertForPreTraining:
    """A model from a folder of config.json and model.safetensors; options as in `from_hugging_face`.

    Raises ValueError for a file that is missing, and, naming the setting, for a BERT that this model is not.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: expected config.json and model.safetensors, found no {name}")
    shape = shape_from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = BertForPreTraining(shape, linear, seed=0)  # every parameter is replaced
    from_hugging_face(model, load_file(str(folder / "model.safetensors")), outside, optional)
    return model


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

# What this model is and cannot be told otherwise.
FIXED_CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def hugging_face_config(shape: BertShape) -> dict[str, Any]:
    """What transformers' config.json says for this shape."""
    sizes = {theirs: getattr(shape, ours) for ours, theirs in CONFIG_KEYS.items()}
    return {"architectures": ["BertForPreTraining"], **FIXED_CONFIG, **sizes}


def shape_from_config(config: Mapping[str, Any]) -> BertShape:
    """The shape that a config.json of transformers describes.

    Raises ValueError for a setting that this model does not have, and for sizes that are missing.
    """
    for key, expected in FIXED_CONFIG.items():
        if config.get(key, expected) != expected:
            raise ValueError(f"config.json: expected {key} {expected!r}, found {config[key]!r}")
    missing = [key for key in CONFIG_KEYS.values() if key not in config]
    if missing:
        raise ValueError(f"config.json: expected a BERT config, found no {', '.join(missing)}")
    return BertShape(**{ours: config[theirs] for ours, theirs in CONFIG_KEYS.items()})


def _own_weights(model: BertForPreTraining) -> dict[str, Tensor | BlockSparseLinear]:
    """Each parameter by the name it would have if dense; a sparse layer stands for its own weight."""
    found: dict[str, Tensor | BlockSparseLinear] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, BlockSparseLinear) and name == "values":
                found[f"{prefix}.weight"] = module
            else:
                found[f"{prefix}.{name}"] = parameter
    return found


def _their_names(name: str) -> list[str]:
    return [name.replace(".qkv.", f".{part}.") for part in QKV_PARTS] if ".qkv." in name else [name]


def _check(name: str, source: Tensor, target: Tensor | BlockSparseLinear, outside: str) -> None:
    if isinstance(target, BlockSparseLinear):
        expected: tuple[int, ...] = (target.out_features, target.in_features)
    else:
        expected = tuple(target.shape)
    if tuple(source.shape) != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, found {list(source.shape)}")
    if isinstance(target, BlockSparseLinear) and outside == "refuse":
        b = target.block_size
        blocks = source.reshape(expected[0] // b, b, expected[1] // b, b).transpose(1, 2)
        kept = blocks[target.rows.long().to(source.device), target.cols.long().to(source.device)]
        lost = int(source.count_nonzero()) - int(kept.count_nonzero())
        if lost:
            raise ValueError(f"{name}: expected zeros outside the {target.rows.numel()} blocks, found {lost} others")
