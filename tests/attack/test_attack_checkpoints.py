"""Any damage to a checkpoint: it is gone on from, or refused in one line that names it, and nothing has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hostile import Files, assert_one_line, bounded, contents, damaged_bytes, damaged_json
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from ipu_bert import checkpoint
from ipu_bert.config import load_config
from ipu_bert.engines.base import NonFiniteError
from ipu_bert.sealed_json import sealed
from ipu_bert.trainer import Trainer

INTEGERS = (-1, -(2**62), 0, 1, 4, 7, 1000, 2**31, 2**62)
FLOATS = (float("nan"), float("inf"), -1e30, 0.0)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)


@pytest.fixture(scope="module")
def saved(small: Path, blank_pictures: None) -> Files:
    """The files of a checkpoint of step 2."""
    folder = Trainer(load_config(str(small), ["train.stop_at=2"])).run()
    return Files({path.name: path.read_bytes() for path in checkpoint.find(folder).iterdir()})


def with_new_checksums(files: Files) -> Files:
    """As somebody would write it who knows what a checkpoint looks like."""
    state = json.loads(files["state.json"])
    for name in state["files"]:
        state["files"][name] = {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
    return files.but("state.json", sealed(state).encode())


def go_on(small: Path, files: Files) -> bool:
    """Resume from a checkpoint of these files and take a step; whether it was not refused."""
    run = small.parent / "run"
    shutil.rmtree(run / "checkpoints")
    path = run / "checkpoints" / "step_00000002"
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    before = contents(run)
    try:
        with bounded():
            trainer = Trainer(load_config(str(small)), path)
    except ValueError as error:
        assert_one_line(error, path)
        assert contents(run) == before
        return False
    try:
        with bounded(), trainer.engine.host_state() as host:
            assert trainer.updater is not None
            trainer.engine.train_step(trainer.train_stream.batch(trainer.step))
            trainer.updater.update(host.layers, host.moments, 4, None)
    except NonFiniteError:
        pass  # weights may be anything that a float can be
    return True


@given(st.data())
def test_a_changed_byte_is_refused(small: Path, saved: Files, data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(saved.keys() - {"state.json"})))
    assert not go_on(small, saved.but(name, data.draw(damaged_bytes(saved[name]))))


@given(st.data())
def test_a_missing_or_strange_file_is_refused(small: Path, saved: Files, data: st.DataObject):
    gone = data.draw(st.sampled_from(sorted(saved.keys() - {"state.json"})))
    assert not go_on(small, Files({name: found for name, found in saved.items() if name != gone}))


@given(st.data())
def test_any_bytes_with_right_checksums(small: Path, saved: Files, data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(saved.keys() - {"state.json"})))
    go_on(small, with_new_checksums(saved.but(name, data.draw(damaged_bytes(saved[name])))))


@given(st.data())
def test_any_state(small: Path, saved: Files, data: st.DataObject):
    state = data.draw(damaged_json(json.loads(saved["state.json"])))
    try:
        text = sealed(state) if data.draw(st.booleans()) else json.dumps(state)
    except ValueError:  # a number that is not finite has no seal
        text = json.dumps(state)
    go_on(small, saved.but("state.json", text.encode()))


@given(st.data())
def test_any_bytes_as_state(small: Path, saved: Files, data: st.DataObject):
    assert not go_on(small, saved.but("state.json", data.draw(damaged_bytes(saved["state.json"]))))


@given(st.data())
def test_any_tensors_with_right_checksums(small: Path, saved: Files, data: st.DataObject):
    """Another shape, dtype or value, a tensor more or less."""
    name = data.draw(st.sampled_from(sorted(saved.keys() - {"state.json"})))
    tensors = load(saved[name])
    key = data.draw(st.sampled_from(sorted(tensors)))
    tensor, kind = tensors[key], data.draw(st.sampled_from(("gone", "new", "shape", "dtype", "value", "value")))
    if kind == "gone":
        del tensors[key]
    elif kind == "new":
        tensors["stranger"] = torch.zeros(2)
    elif kind == "shape":
        tensors[key] = data.draw(st.sampled_from((tensor.flatten()[:-1], tensor.unsqueeze(0), tensor.new_zeros(0))))
    elif kind == "dtype":
        tensors[key] = tensor.to(data.draw(st.sampled_from(DTYPES)))
    elif tensor.numel():
        place = data.draw(st.integers(0, tensor.numel() - 1))
        value = data.draw(st.sampled_from(FLOATS if tensor.is_floating_point() else INTEGERS))
        limits = None if tensor.is_floating_point() or tensor.dtype == torch.bool else torch.iinfo(tensor.dtype)
        fitting = value if limits is None else max(limits.min, min(limits.max, value))
        tensors[key] = tensor.clone()
        tensors[key].view(-1)[place] = fitting
    accepted = go_on(small, with_new_checksums(saved.but(name, save(tensors))))
    assert not (accepted and name == "model.safetensors" and kind in ("gone", "new", "shape", "dtype"))
