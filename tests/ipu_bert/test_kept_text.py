"""A finished run needs no file outside its folder: judged and exported with the text deleted, from elsewhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from ipu_bert import checkpoint, evaluate, export_run
from ipu_bert.data.kept_text import count_ids
from ipu_bert.sealed_json import sealed
from ipu_bert.trainer import Trainer
from sparse_ops.files import sha256_of

pytestmark = pytest.mark.usefixtures("blank_pictures")


@pytest.fixture
def moved_run(tiny, corpus, tmp_path, monkeypatch) -> Path:
    """A run whose text and prepared text are gone, in a folder that was moved; the process is in another one."""
    shutil.copytree(corpus, tmp_path / "text")
    config = tiny("train.stop_at=1", f"data.path={tmp_path / 'text'}", f"data.dir={tmp_path / 'data'}")
    trainer = Trainer(config)
    (tmp_path / "tokenizer.json").write_bytes(Path(trainer.data.tokenizer_path).read_bytes())
    shutil.move(str(trainer.run()), tmp_path / "moved")
    shutil.rmtree(tmp_path / "text")
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "moved"


def error_of(capsys: pytest.CaptureFixture[str], status: int) -> str:
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def rewrite(path: Path, **changes: torch.Tensor) -> None:
    """Other tensors in a checkpoint's text.safetensors, with a checksum that fits."""
    file = path / "text.safetensors"
    save_file({**load_file(file), **changes}, file)
    state = json.loads((path / "state.json").read_text())
    state["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    (path / "state.json").write_text(sealed(state))


def test_a_run_is_exported_and_judged_without_its_text(moved_run, tmp_path, capsys):
    expected = (tmp_path / "tokenizer.json").read_bytes()
    assert (moved_run / "tokenizer.json").read_bytes() == expected
    assert export_run.main([str(moved_run), "exported"]) == 0
    assert Path("exported/tokenizer.json").read_bytes() == expected
    text = tmp_path / "other.txt"
    text.write_text("\n\n".join("We the people work for peace.\nWar was long. The Union is strong." for _ in range(9)))
    capsys.readouterr()
    assert evaluate.main([str(moved_run), "--text", str(text), "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    seen = load_file(checkpoint.find(moved_run) / "text.safetensors")["seen"]
    pieces = Tokenizer.from_buffer(expected)
    ids = pieces.encode(text.read_text().replace("\n", " "), add_special_tokens=False).ids
    weights = np.log(seen.numpy() + 1.0) - np.log(int(seen.sum()) + len(seen) - 4)
    assert judged["unigram_entropy"] == pytest.approx(-weights[ids].mean(), rel=1e-3)
    assert "no text found" in error_of(capsys, evaluate.main([str(moved_run)]))  # its own text is gone
    assert list(Path().iterdir()) == [Path("exported")]  # nothing was prepared anywhere


def test_a_damaged_or_foreign_tokenizer_is_refused(moved_run, capsys):
    path = checkpoint.find(moved_run)
    good = {file.name: file.read_bytes() for file in path.iterdir()}
    data = bytearray(good["text.safetensors"])
    data[len(data) // 2] ^= 1
    (path / "text.safetensors").write_bytes(data)
    assert "text.safetensors: its SHA-256" in error_of(capsys, export_run.main([str(path), "out"]))
    other = bytearray(load_file(_restored(path, good) / "text.safetensors")["tokenizer"].numpy().tobytes())
    other[other.index(b'"the"') + 1] ^= 1  # still JSON: another word
    foreign = torch.frombuffer(other, dtype=torch.uint8)
    for changes, message in (
        ({"tokenizer": foreign}, "expected the tokenizer that the model was trained with, found another"),
        ({"seen": torch.zeros(3, dtype=torch.int64)}, "counts of ids, found"),
        ({"seen": torch.full((1000,), -1)}, "counts of ids, found"),
        ({"pairs": torch.zeros(2)}, "counts of ids, found"),
    ):
        rewrite(_restored(path, good), **changes)
        assert message in error_of(capsys, export_run.main([str(path), "out"]))
    junk = torch.frombuffer(bytearray(b'{"version": 1}'), dtype=torch.uint8)
    rewrite(_restored(path, good), tokenizer=junk)
    state = json.loads((path / "state.json").read_text())
    state["identity"]["tokenizer"] = hashlib.sha256(b'{"version": 1}').hexdigest()
    (path / "state.json").write_text(sealed(state))
    assert "cannot be read as a tokenizer" in error_of(capsys, export_run.main([str(path), "out"]))
    assert not Path("out").exists()


def _restored(path: Path, good: dict[str, bytes]) -> Path:
    for name, data in good.items():
        (path / name).write_bytes(data)
    return path


def test_an_older_checkpoint_that_did_not_keep_it_is_refused_when_the_text_is_gone(moved_run, capsys):
    path = checkpoint.find(moved_run)
    state = json.loads((path / "state.json").read_text())
    del state["files"]["text.safetensors"]
    (path / "state.json").write_text(sealed(state))
    for command in (export_run.main, evaluate.main):
        arguments = [str(moved_run), "out"] if command is export_run.main else [str(moved_run), "--text", "any.txt"]
        line = error_of(capsys, command(arguments))
        assert "expected its tokenizer in it, found none, as in those of older versions" in line
        assert "no text found" in line
    assert not list(Path().iterdir())


def test_ids_are_counted_in_pieces(monkeypatch, seed):
    ids = np.random.default_rng(seed).integers(0, 9, 1000, np.uint16)
    monkeypatch.setattr("ipu_bert.data.kept_text._TOKENS", 7)
    assert count_ids(ids, 11).tolist() == [int((ids == i).sum()) for i in range(11)]
