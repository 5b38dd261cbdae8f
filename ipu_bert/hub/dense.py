"""The dense form: folders of config.json and model.safetensors that transformers' BERT classes load and save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

from safetensors.torch import load_file, save_file
from torch import nn

from ipu_bert.hub.weights import dense_state, from_hugging_face
from ipu_bert.model import BertForPreTraining, LinearFactory, dense_linear
from ipu_bert.sizes.config_json import hugging_face_config, shape_from_config
from sparse_ops import files


def save_pretrained(model: BertForPreTraining, folder: str | Path, pad_token_id: int) -> None:
    """Write config.json and model.safetensors, which transformers' `BertForPreTraining.from_pretrained` loads.

    pad_token_id: of the tokenizer that the model's ids come from. Each file is written aside, synced and renamed, the
    weights first.
    """
    write_dense(model, hugging_face_config(model.shape, pad_token_id), Path(folder))


def write_dense(model: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Write a model of ours by transformers' names, and `config` as its config.json, as `save_pretrained` does."""
    with files.replacing(folder / "model.safetensors") as aside:
        save_file(dense_state(model), str(aside), metadata={"format": "pt"})
    files.write(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


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
    model = BertForPreTraining(shape, linear, seed=0, kernel="auto")  # every parameter is replaced
    from_hugging_face(model, load_file(str(folder / "model.safetensors")), outside, optional)
    return model
