"""From a folder of text, or another BERT's files, to a classifier that `pipeline` loads: every command of the page, in
another directory each, and the text deleted after the first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, pipeline

from ipu_bert import cli, export_run
from ipu_bert.finetune.__main__ import main
from ipu_bert.hub.auto import SparseBertForSequenceClassification
from ipu_bert.model import sparse_layers
from ipu_bert.trained import load_model

pytestmark = pytest.mark.usefixtures("blank_pictures")
STAGE = ["--config", "quickstart", "engine.threads=1", "log.tensorboard=false", "eval.batches=1", "train.batch_size=4"]
SMALL = ["model.hidden_size=64", "sparsity.block_size=8", "sparsity.sparsity=0.8", "data.sequence_length=32"]
SHORT = [
    "data.max_predictions=5",
    "data.vocab_size=900",
    "data.heldout_fraction=0.2",
    "data.workers=1",
    "train.steps=2",
]


@pytest.fixture
def place(corpus, tmp_path, monkeypatch):
    """A directory with some text and labelled rows, and a way to go elsewhere."""
    (tmp_path / "home/text").mkdir(parents=True)
    for path in sorted(corpus.iterdir())[:8]:
        shutil.copy(path, tmp_path / "home/text")
    rows = "".join(f"{('war ' if i % 2 else 'peace ') * 3},{i % 2}\n" for i in range(20))
    (tmp_path / "home/rows.csv").write_text("text,label\n" + rows)
    monkeypatch.chdir(tmp_path / "home")

    def elsewhere(name: str) -> Path:
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        return tmp_path / "home"

    return elsewhere


def test_from_a_folder_of_text_to_a_classifier(place, tmp_path):
    assert cli.main([*STAGE, *SMALL, *SHORT, "data.source=files", "data.path=text", "run.dir=runs/mine"]) == 0
    home = place("another")
    shutil.rmtree(home / "text")
    shutil.rmtree(home / "data")
    run = home / "runs/mine"
    assert main([str(run), "tuned", "--train", str(home / "rows.csv"), "--epochs", "1"]) == 0
    assert export_run.main([str(run), "exported", "--sparse"]) == 0
    assert main(["exported", "sparse", "--train", str(home / "rows.csv"), "--epochs", "1", "--sparse"]) == 0

    model, ids = load_model(run).model.eval(), torch.arange(5, 25)[None]
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    with torch.no_grad():  # an exported model's logits are the run's
        expected = model(ids, types, mask, torch.arange(20)[None])[0]
        assert torch.equal(AutoModelForMaskedLM.from_pretrained("exported")(ids, mask, types).logits, expected)
    place("a-third")
    answers = [
        pipeline("text-classification", model=str(tmp_path / "another" / form))("war war")
        for form in ("tuned", "sparse")
    ]
    assert answers[0][0]["label"] == answers[1][0]["label"]
    assert answers[0][0]["score"] == pytest.approx(answers[1][0]["score"], abs=1e-5)


def bert_base_layout(finished: Path, folder: Path) -> None:
    """bert-base-uncased's own: LayerNorm by its old names, heads, a decoder's bias, no layer_norm_eps, vocab.txt."""
    words = load_model(finished).text.vocabulary()
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertForPreTraining(config).save_pretrained(folder)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    del told["layer_norm_eps"]
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 40}))


def test_from_another_bert_s_files_to_a_sparse_model_that_goes_on(finished, place, tmp_path):
    bert_base_layout(finished, tmp_path / "bert")
    start = f"model.init={tmp_path / 'bert'}"
    options = [option for option in SMALL + SHORT if not option.startswith(("model.", "data.vocab_size"))]
    assert cli.main([*STAGE, *options, start, "data.source=files", "data.path=text", "run.dir=runs/on"]) == 0
    home = place("another")
    shutil.rmtree(home / "text")
    rows = ["--train", str(home / "rows.csv"), "--epochs", "1", "--sparse", "--updates", "2", "--batch-size", "4"]
    assert main([str(home / "runs/on"), "tuned", *rows]) == 0
    assert main([str(tmp_path / "bert"), "direct", *rows, "--sparsity", "0.8", "--block-size", "8"]) == 0
    for name in ("tuned", "direct"):
        model = AutoModelForSequenceClassification.from_pretrained(name)
        assert isinstance(model, SparseBertForSequenceClassification)
        assert len(sparse_layers(model)) == 4  # one encoder layer
        assert json.loads(Path(name, "finetune.json").read_text())["moved_blocks"] > 0
