"""Damaged and hostile files of the sparse form: one ValueError line that names file and thing, never other numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import make_shape, sparse_model

from ipu_bert.hub.auto import SparseBertForMaskedLM, save_sparse

LAYER = "bert.encoder.layer.0.attention.output.dense"
QKV = "bert.encoder.layer.0.attention.self.qkv"
NORM = "bert.encoder.layer.0.output.LayerNorm.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    save_sparse(sparse_model(make_shape(hidden_size=64, intermediate_size=128), 0.8, 8), folder, pad_token_id=0)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as found:  # noqa: PT011 - what it says is what the caller looks at
        SparseBertForMaskedLM.from_pretrained(folder)
    assert "\n" not in str(found.value)
    assert str(folder) in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        *((f"blocks.{LAYER}", pair, f"blocks: {LAYER}: expected [block size, number of blocks]")
          for pair in (None, [], [8], [8, 2, 3], "8,2", 8, [8.0, 13], ["8", "13"], [True, 13], [8, -1], [8, 10**400])),
        (f"blocks.{LAYER}", [16, 13], f"{LAYER}.values: expected [13, 16, 16]"),
        (f"blocks.{LAYER}", [8, 10**15], f"{LAYER}.values: expected [1000000000000000, 8, 8]"),
        (f"blocks.{QKV}", [8, 40], f"{QKV}.values: expected [40, 8, 8]"),
        ("blocks.bert.nowhere", [8, 3], "bert.nowhere.values: expected [3, 8, 8], as config.json has it, found none"),
        ("blocks", [1], "expected an object as blocks, found [1]"),
        ("num_hidden_layers", None, "expected a whole number for num_hidden_layers, found None"),
        ("num_hidden_layers", 1.5, "expected a whole number for num_hidden_layers, found 1.5"),
        ("num_hidden_layers", 10**13, "expected a whole number of at most 1,000 for num_hidden_layers"),
        ("num_hidden_layers", 900, "bert.encoder.layer.899.intermediate.dense.bias: expected"),
        ("hidden_size", "64", "expected a whole number for hidden_size, found '64'"),
        ("vocab_size", 5_000_000, "word_embeddings.weight: expected [5000000, 64]"),
        ("layer_norm_eps", True, "expected a number for layer_norm_eps, found True"),
        ("initializer_range", float("inf"), "expected a finite number for initializer_range, found inf"),
        ("initializer_range", 10**400, "expected a finite number for initializer_range, found 1000"),
        ("hidden_act", "relu", "expected hidden_act 'gelu', found 'relu'"),
        ("is_decoder", True, "expected is_decoder False, found True"),
        ("id2label", 5, "config.json: cannot be read: 'int' object has no attribute 'items'"),
        ("use_return_dict", False, "config.json: cannot be read: "),
        ("num_labels", 2**20 + 1, "expected at most 1,048,576 as num_labels, found 1048577"),  # 10^9: 200 GB
        ("num_labels", -1, "expected at most 1,048,576 as num_labels, found -1"),
        ("num_labels", "2", "expected at most 1,048,576 as num_labels, found '2'"),
    ],
)  # fmt: skip
def test_a_config_of_something_else(good, tmp_path, key, value, said):
    config = json.loads((good / "config.json").read_text())
    (config["blocks"] if key.startswith("blocks.") else config)[key.replace("blocks.", "", 1)] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(good / "model.safetensors")
    assert said in refused(tmp_path)


CHANGED = {
    "steps of int64": (f"{LAYER}.steps", lambda t: t.long(), "expected uint8 [n], found torch.int64"),
    "steps of bool": (f"{LAYER}.steps", lambda t: t.bool(), "expected uint8 [n], found torch.bool"),
    "steps of two dimensions": (f"{LAYER}.steps", lambda t: t[None], "expected uint8 [n]"),
    "a block twice": (f"{LAYER}.steps", lambda t: torch.cat([t[:1], t[:-1] * 0]), "has two slots"),
    "blocks outside": (f"{LAYER}.steps", lambda t: t * 0 + 200, "expected block coordinates in [0, 8)"),
    "rows beside steps": (f"{LAYER}.rows", lambda _: torch.zeros(13, dtype=torch.int32), "found both"),
    "NaN in a block": (f"{LAYER}.values", lambda t: t.masked_fill(t == t.max(), torch.nan), "found NaN"),
    "inf in a norm": (NORM, lambda t: t + torch.inf, "found NaN, inf"),
    "too large": (NORM, lambda t: t.double() * 1e300, "that float32 holds"),
    "quantized": (NORM, lambda t: t.to(torch.int8), "found torch.int8"),
    "complex": (NORM, lambda t: t.to(torch.complex64), "found torch.complex64"),
    "a layer too many": ("bert.encoder.layer.7.output.dense.bias", lambda _: torch.ones(3), "found other"),
    "another decoder": ("cls.predictions.decoder.weight", lambda _: torch.ones(50, 64), "to be tied to"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_weights_of_something_else(good, tmp_path, name):
    key, change, said = CHANGED[name]
    state = load_file(good / "model.safetensors")
    save_file({**state, key: change(state.get(key))}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").symlink_to(good / "config.json")
    assert said in refused(tmp_path)
