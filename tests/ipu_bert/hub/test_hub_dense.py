"""Names and weights to Hugging Face and back, bit for bit, and folders that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from small_models import make_peer, make_shape, sparse_model
from torch import nn

from ipu_bert.hub.dense import load_pretrained, save_pretrained
from ipu_bert.hub.weights import TIED, from_hugging_face, to_hugging_face
from ipu_bert.model import BertForPreTraining, sparse_layers
from ipu_bert.sizes.config_json import shape_from_config
from ipu_bert.sizes.shape import BertShape

SHAPE = make_shape(layers=2, vocab_size=60, max_positions=24, dropout=0.1, layer_norm_eps=1e-7)


def make(block: int, seed: int, shape: BertShape = SHAPE) -> BertForPreTraining:
    """A sparse model (dense at block 0) with random values in every parameter."""
    model = sparse_model(shape, 0.7 if block else 0.0, block or 1, seed)
    randomise(model, seed)
    return model


def randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def folder_of_peer(path: Path, shape: BertShape = SHAPE) -> transformers.BertForPreTraining:
    """A folder that transformers itself wrote."""
    peer: transformers.BertForPreTraining = make_peer(shape).eval()
    randomise(peer, 1)
    peer.save_pretrained(path)
    return peer


def logits(model: BertForPreTraining, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    everywhere = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.no_grad():
        found: tuple[torch.Tensor, torch.Tensor] = model.eval()(
            ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool), everywhere
        )
    return found


@pytest.mark.parametrize("block", [0, 1, 4, 16])
def test_transformers_loads_what_we_save(block: int, seed: int, tmp_path: Path) -> None:
    model = make(block, seed)
    save_pretrained(model, tmp_path / "out", pad_token_id=0)
    peer, info = transformers.BertForPreTraining.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert peer.config.layer_norm_eps == 1e-7
    assert peer.config.hidden_dropout_prob == 0.1
    ids = torch.randint(1, 60, (3, 20), generator=torch.Generator().manual_seed(seed))
    mlm, nsp = logits(model, ids)
    theirs = peer.eval()(ids)
    torch.testing.assert_close(mlm, theirs.prediction_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nsp, theirs.seq_relationship_logits, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_we_load_what_transformers_saves(tmp_path: Path, seed: int) -> None:
    peer = folder_of_peer(tmp_path)
    model = load_pretrained(tmp_path)
    ids = torch.randint(1, 60, (3, 20), generator=torch.Generator().manual_seed(seed))
    mlm, nsp = logits(model, ids)
    theirs = peer(ids)
    torch.testing.assert_close(mlm, theirs.prediction_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nsp, theirs.seq_relationship_logits, rtol=1e-4, atol=1e-5)
    assert model.shape == SHAPE


@pytest.mark.parametrize("block", [0, 1, 4, 16])
def test_there_and_back_changes_no_bit(block: int, seed: int) -> None:
    model = make(block, seed)
    state = to_hugging_face(model)
    other = make(block, seed)
    randomise(other, seed + 1)
    from_hugging_face(other, state)
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(one, two), name
    again = to_hugging_face(other)
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_names_are_exactly_transformers_state_dict(tmp_path: Path) -> None:
    peer = folder_of_peer(tmp_path)
    state = to_hugging_face(make(4, 0))
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in peer.state_dict().items()}
    assert all(state[tied] is state[name] for tied, name in TIED.items())
    peer.load_state_dict(state, strict=True)


def test_sparse_weights_land_in_their_segment(seed: int) -> None:
    model = make(4, seed)
    name = "bert.encoder.layer.1.attention.self"
    layer = dict(sparse_layers(model))[f"{name}.qkv"]
    state = to_hugging_face(model)
    for slot in range(layer.rows.numel()):
        row, col = 4 * int(layer.rows[slot]), 4 * int(layer.cols[slot])
        part = ("query", "key", "value")[row // 32]
        found = state[f"{name}.{part}.weight"][row % 32 : row % 32 + 4, col : col + 4]
        assert torch.equal(found, layer.values[slot])
    kept = sum(int(state[f"{name}.{part}.weight"].count_nonzero()) for part in ("query", "key", "value"))
    assert kept == layer.values.numel()


def test_weights_outside_the_pattern_are_refused_or_dropped(seed: int) -> None:
    model, dense = make(4, seed), make(0, seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"layer\.0\.attention\.self\.qkv\.weight: expected zeros outside the .* blocks"
    ):
        from_hugging_face(model, to_hugging_face(dense))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    from_hugging_face(model, to_hugging_face(dense), outside="drop")
    layer = model.bert.encoder.layer[0].output.dense
    weight = dense.bert.encoder.layer[0].output.dense.weight
    row, col = 4 * int(layer.rows[0]), 4 * int(layer.cols[0])
    assert torch.equal(layer.values[0], weight[row : row + 4, col : col + 4])


def test_an_encoder_without_heads_is_taken_when_allowed(seed: int) -> None:
    model = make(0, seed)
    whole = to_hugging_face(model)
    encoder = {n[len("bert.") :]: t for n, t in whole.items() if n.startswith("bert.")}
    encoder["embeddings.position_ids"] = torch.arange(24)
    other = make(0, seed + 1)
    with pytest.raises(ValueError, match=r"missing \['cls\.predictions\.bias'"):
        from_hugging_face(other, encoder)
    head = other.cls.seq_relationship.weight.detach().clone()
    from_hugging_face(other, encoder, optional=("cls.",))
    assert torch.equal(other.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
    assert torch.equal(other.cls.seq_relationship.weight, head)


def test_mistakes_are_named(tmp_path: Path) -> None:
    model = make(0, 0)
    state = to_hugging_face(model)
    with pytest.raises(ValueError, match=r"not known \['bert\.extra'\]"):
        from_hugging_face(model, {**state, "bert.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"expected shape \[60, 32\], found \[61, 32\]"):
        from_hugging_face(model, {**state, "bert.embeddings.word_embeddings.weight": torch.zeros(61, 32)})
    with pytest.raises(ValueError, match="to be tied"):
        from_hugging_face(model, {**state, "cls.predictions.decoder.weight": torch.zeros(60, 32)})
    with pytest.raises(ValueError, match="'refuse' or 'drop', found 'keep'"):
        from_hugging_face(model, state, outside="keep")
    with pytest.raises(ValueError, match=r"found no config\.json"):
        load_pretrained(tmp_path)
    save_pretrained(model, tmp_path, pad_token_id=0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert shape_from_config(config) == SHAPE
    with pytest.raises(ValueError, match="expected hidden_act 'gelu', found 'relu'"):
        shape_from_config({**config, "hidden_act": "relu"})
    del config["num_hidden_layers"]
    with pytest.raises(ValueError, match="found no num_hidden_layers"):
        shape_from_config(config)


def test_a_broken_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pretrained(make(0, 0), tmp_path, pad_token_id=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ipu_bert.hub.dense.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(make(0, 1), tmp_path, pad_token_id=0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
