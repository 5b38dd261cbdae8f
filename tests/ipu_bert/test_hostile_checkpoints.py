"""Checkpoints that somebody rewrote, checksums and all: one line names file and thing, and nothing was taken over."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import make_optimization, make_plan, make_shape, sparse_model

from ipu_bert import checkpoint
from ipu_bert.checkpoint import CheckpointError
from ipu_bert.engines.torch_engine import TorchEngine
from ipu_bert.model import sparse_layers
from ipu_bert.precision import Precision
from ipu_bert.sealed_json import sealed
from ipu_bert.stopwatch import Stopwatch
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer
from sparse_ops.dynsparse.updater import PatternUpdater
from sparse_ops.files import sha256_of
from sparse_ops.norms import l1

QKV = "bert.encoder.layer.0.attention.self.qkv"


def make_engine(seed: int) -> TorchEngine:
    model = sparse_model(make_shape(), sparsity=0.5, block_size=8, seed=seed)
    return TorchEngine(
        model,
        optimization=make_optimization(),
        precision=Precision(compute="float32", loss_scale=1.0),
        micro_batch_size=1,
        block_norm=l1,
        seed=0,
        timer=Stopwatch(),
    )


def fill(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("group", "name", "change", "message"),
    [
        ("model", f"{QKV}.values", lambda x: x[1:], r"model\.safetensors: .*values: expected float32 \[24, 8, 8\] as"),
        ("model", f"{QKV}.values", torch.Tensor.double, r"values: expected float32 .*, found float64"),
        ("model", f"{QKV}.values", fill(float("nan")), r"values: expected finite numbers, found NaN or inf"),
        ("model", "cls.predictions.bias", fill(float("inf")), r"bias: expected finite numbers, found NaN or inf"),
        ("model", f"{QKV}.rows", torch.Tensor.long, r"rows: expected int32 \[24\] .*, found int64"),
        ("model", f"{QKV}.rows", fill(-1), r"qkv: pattern rows: expected block coordinates in \[0, 12\), found -1"),
        ("model", f"{QKV}.cols", fill(4), r"qkv: pattern cols: expected block coordinates in \[0, 4\), found \d to 4"),
        ("model", f"{QKV}.cols", lambda x: x * 0, r"qkv: pattern: block \(row \d+, col 0\) has two slots"),
        ("model", f"{QKV}.rows", None, r"model\.safetensors: .*rows: expected int32 \[24\] .*, found no such tensor"),
        ("random", "torch", lambda x: x[1:], r"random\.safetensors: torch: Expected a CPUGeneratorImplState of size"),
        ("random", "torch", lambda x: x * 0 + 255, r"random\.safetensors: torch: Invalid mt19937 state"),
        ("random", "torch", torch.Tensor.long, r"random\.safetensors: torch: RNG state must be a torch\.ByteTensor"),
        ("model", None, None, r"expected model\.safetensors, found no such file"),
        ("optimizer", None, None, r"expected optimizer\.safetensors, found no such file"),
        (
            "optimizer",
            f"exp_avg.{QKV}.values",
            lambda x: x[1:],
            r"optimizer\.safetensors: exp_avg\..*expected float32 \[",
        ),
        ("optimizer", f"exp_avg_sq.{QKV}.values", fill(-1e-9), r"exp_avg_sq.*expected no number below 0, found one"),
        ("optimizer", f"exp_avg.{QKV}.bias", fill(float("nan")), r"exp_avg.*expected finite numbers"),
        ("optimizer", f"exp_avg.{QKV}.bias", None, r"exp_avg.*found no such tensor"),
    ],
)
def test_a_state_that_the_model_cannot_have(group, name, change, message, seed):
    """The model, the moments and the positions are what they were."""
    engine, other = make_engine(seed), make_engine(seed + 1)
    before = {g: {n: t.clone() for n, t in tensors.items()} for g, tensors in engine.state().items()}
    groups = {g: dict(tensors) for g, tensors in other.state().items()}
    if name is None:
        del groups[group]
    elif change is None:
        del groups[group][name]
    else:
        groups[group][name] = change(groups[group][name])
    with pytest.raises(ValueError, match=message) as caught:
        engine.load_state(groups, 1)
    assert len(str(caught.value).splitlines()) == 1
    for part, tensors in engine.state().items():
        assert all(torch.equal(tensor, before[part][n]) for n, tensor in tensors.items()), part


def test_blocks_stay_in_their_segment(seed):
    """24 blocks in the first six of twelve block rows: 16 for the query, 8 for the key."""
    engine = make_engine(seed)
    groups = {group: dict(tensors) for group, tensors in engine.state().items()}
    places = torch.arange(24, dtype=torch.int32)
    groups["model"].update({f"{QKV}.rows": places // 4, f"{QKV}.cols": places % 4})
    with pytest.raises(ValueError, match=r"qkv\.rows: expected \[8, 8, 8\] blocks by segment, found \[16, 8, 0\]"):
        engine.load_state(groups, 1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("born", fill(-1), r"pattern history: .*qkv\.born: expected whole numbers of 0 to 10, found -1 to "),
        ("born", fill(11), r"qkv\.born: expected whole numbers of 0 to 10, found 0 to 11"),
        ("born", torch.Tensor.float, r"born: expected torch\.int32 \[24\], found torch\.float32 \[24\]"),
        ("added", lambda x: x * 0 - 1, r"added: expected whole numbers of 0 to 24, found -1 to -1"),
        ("bitmap", lambda x: x[1:], r"bitmap: expected torch\.uint8 \[6\], found torch\.uint8 \[5\]"),
        ("bitmap", None, r"bitmap: expected such a tensor, found none"),
    ],
)
def test_a_pattern_history_that_no_run_has(name, change, message, seed):
    layers = dict(sparse_layers(sparse_model(make_shape(), sparsity=0.5, block_size=8, seed=seed)))
    first, second = PatternUpdater(make_plan()), PatternUpdater(make_plan())
    for updater in (first, second):
        updater.track(layers)
    moments = {key: [torch.zeros_like(layer.values)] for key, layer in layers.items()}
    first.update(layers, moments, 10)
    state = {key: tensor.clone() for key, tensor in first.state_dict().items()}
    second.load_state_dict(state)
    before = {key: tensor.clone() for key, tensor in second.state_dict().items()}
    key = f"{QKV}.{name}"
    if change is None:
        del state[key]
    else:
        state[key] = change(state[key])
    with pytest.raises(ValueError, match=message) as caught:
        second.load_state_dict(state)
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(tensor, before[other]) for other, tensor in second.state_dict().items())


@pytest.mark.parametrize(("key", "value"), [("done", -1), ("done", 9), ("previous_step", -3), ("previous_step", 31)])
def test_a_count_of_updates_that_no_run_has(key, value, seed):
    updater = PatternUpdater(make_plan())
    updater.track(dict(sparse_layers(sparse_model(make_shape(), sparsity=0.5, block_size=8, seed=seed))))
    with pytest.raises(
        ValueError, match=rf"pattern history: {key}: expected a whole number of 0 to \d+, found {value}"
    ):
        updater.load_state_dict({**updater.state_dict(), key: torch.tensor(value)})


GROUPS = {"model": {"w": torch.arange(6.0)}, "random": {"torch": torch.zeros(3, dtype=torch.uint8)}}
ENTRY = {"bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"files": None}, "expected files of type dict"),
        ({"files": {"model.safetensors": 3}}, "expected bytes and sha256 of a safetensors file"),
        ({"files": {"model.safetensors": {"bytes": "9", "sha256": ""}}}, "expected bytes and sha256"),
        ({"files": {"model.safetensors": {"bytes": -9, "sha256": ""}}}, "expected bytes and sha256"),
        ({"files": {"../model.safetensors": ENTRY}}, "expected bytes and sha256"),
        ({"files": {"/etc/model.safetensors": ENTRY}}, "expected bytes and sha256"),
        ({"step": -1}, "expected step of 0 or more, found -1"),
        ({"step": 4}, "expected step 3 in step_00000003, found 4"),
        ({"step": True}, "expected step of type int"),
        ({"step": 10**30}, "expected step of 0 or more"),
        ({"seconds": {"data": "x"}}, "expected seconds of 0 or more of a phase of a run, found 'data': 'x'"),
        ({"seconds": {"lunch": 1.0}}, "found 'lunch': 1.0"),
        ({"seconds": {"data": -1.0}}, "expected seconds of 0 or more"),
        ({"elapsed_seconds": float("nan")}, "expected finite numbers, found NaN"),
        ({"identity": []}, "expected identity of type dict"),
    ],
)
def test_a_state_json_that_no_run_wrote(state, message, tmp_path):
    path = checkpoint.save(tmp_path, 3, GROUPS, {}, 0)
    written = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**written, **state}))
    with pytest.raises(CheckpointError, match=r"state\.json: ") as caught:
        checkpoint.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"step": 1e999}', "[]", "\xff", '{"step": ' + "9" * 5000 + "}"])
def test_a_state_json_that_is_none(text, tmp_path):
    path = checkpoint.save(tmp_path, 3, GROUPS, {}, 0)
    (path / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"checkpoint .*state\.json: ") as caught:
        checkpoint.load(path)
    assert len(str(caught.value).splitlines()) == 1


def resealed(path: Path, name: str, data: bytes) -> None:
    """Another file with its own checksum, as somebody who knows the format writes it."""
    (path / name).write_bytes(data)
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    state["files"][name] = {"bytes": len(data), "sha256": sha256_of(path / name)}
    (path / "state.json").write_text(sealed(state))


def header(entry: object, data: bytes = b"") -> bytes:
    text = json.dumps({"w": entry}).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 62) + b"{}",
        header({"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}),
        header({"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 4]}, b"\0" * 4),
        header({"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}, b"\0" * 4),
        header(3),
    ],
)
def test_a_safetensors_header_that_lies(data, tmp_path):
    path = checkpoint.save(tmp_path, 3, GROUPS, {}, 0)
    resealed(path, "model.safetensors", data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as safetensors: ") as caught:
        checkpoint.load(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("blank_pictures")
def test_a_rewritten_run_is_not_resumed_and_not_exported(tiny):
    """Weights of one layer exchanged for ones of another shape: the folder is named, and the tensor."""
    path = checkpoint.find(Trainer(tiny("train.stop_at=1")).run())
    weights = load_file(str(path / "model.safetensors"))
    name = f"{QKV}.values"
    save_file({**weights, name: weights[name][1:].contiguous()}, str(path / "aside"))
    resealed(path, "model.safetensors", (path / "aside").read_bytes())
    os.remove(path / "aside")
    refused = r"checkpoint .*step_00000001: model\.safetensors: "
    with pytest.raises(CheckpointError, match=rf"{refused}{name}: expected"):
        Trainer(tiny("train.stop_at=1"), path)
    with pytest.raises(CheckpointError, match=rf"{refused}expected the [\d,]+ weights of its config, found [\d,]+"):
        load_model(path)  # its config is the checkpoint's own, so sizes are compared before a model is built
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(sealed({**state, "config": {"model": {"layers": 10**9}}}))
    with pytest.raises(CheckpointError, match=r"step_00000001: model\.layers: expected at least 1 and at most 1000"):
        load_model(path)
