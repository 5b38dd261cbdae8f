"""The dense form: folders of config.json and model.safetensors that transformers' BERT classes load and save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Sequence

from safetensors.torch import load_file, save_file

from ipu_bert.hub.weights import TIED, from_hugging_face, to_hugging_face
from ipu_bert.model import BertForPreTraining, LinearFactory, dense_linear
from ipu_bert.sizes.config_json import hugging_face_config, shape_from_config
from sparse_ops import files


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
    model = BertForPreTraining(shape, linear, seed=0, kernel="auto")  # every parameter is replaced
    from_hugging_face(model, load_file(str(folder / "model.safetensors")), outside, optional)
    return model
