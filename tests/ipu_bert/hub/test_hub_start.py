"""A run from another model's weights: files of other BERTs in every layout, and runs, through the command's objects."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ipu_bert import assemble, checkpoint, hub_files, starting
from ipu_bert.config import ConfigError
from ipu_bert.hub.source import read_bert
from ipu_bert.hub.weights import own_weights, to_hugging_face
from ipu_bert.model import BertForPreTraining, sparse_layers
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")

QUERY = "encoder.layer.0.attention.self.query.weight"
KINDS = ("BertForPreTraining", "BertForMaskedLM", "BertModel", "BertForSequenceClassification")
DENSE = "sparsity.method=dense"


@pytest.fixture
def bert(finished, tmp_path) -> Any:
    """Call it with a class of transformers: a folder as that saves it, with the tokenizer of `finished`."""

    def make(kind: str, **changes: Any) -> Path:
        folder = tmp_path / kind
        sizes = {"vocab_size": len(load_model(finished).text.vocabulary()), "hidden_size": 48, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 3, "intermediate_size": 96, "max_position_embeddings": 40}
        config = transformers.BertConfig(**{**sizes, **heads, "layer_norm_eps": 1e-6, **changes})
        torch.manual_seed(7)
        getattr(transformers, kind)(config).save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes((finished / "tokenizer.json").read_bytes())
        return folder

    return make


def of_model(tiny: Any, init: Path | str, *overrides: str) -> Any:
    """A small config without the sizes that `tiny` writes: they are to follow."""
    import yaml

    from ipu_bert.config import load_config

    path = Path(tiny().run.dir).parent / "tiny.yaml"
    written = yaml.safe_load(path.read_text())
    written["model"] = {"init": str(init)}
    mine = path.with_name("mine.yaml")
    mine.write_text(yaml.safe_dump(written))
    return load_config(str(mine), ["sparsity.layers=['*']", *overrides])


def model_of(config: Any) -> tuple[BertForPreTraining, tuple[str, ...]]:
    data = assemble.open_data(config, progress=False)
    found = starting.start(config, data)
    model = assemble.make_model(config, data.vocab_size)
    model.load_state_dict(found.state)
    return model, found.said


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_weights_follow_from_a_folder_of_transformers(kind, bert, tiny, seed):
    folder = bert(kind)
    config = of_model(tiny, folder, DENSE)
    sizes = config.model
    assert (sizes.layers, sizes.hidden_size, sizes.heads, sizes.intermediate_size) == (1, 48, 3, 96)
    assert (sizes.max_positions, sizes.layer_norm_eps) == (40, 1e-6)
    assert config.data.tokenizer == str(folder / "tokenizer.json")
    model, said = model_of(config)
    ids = torch.randint(5, 900, (2, 9), generator=torch.Generator().manual_seed(seed))
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found, pooled = model.eval().bert(ids, torch.zeros_like(ids), torch.ones_like(ids))
        expected = theirs(ids)
    torch.testing.assert_close(found, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    anew = said[0].partition("; start anew: ")[2]
    if kind == "BertForPreTraining":
        assert not anew
    elif kind == "BertForMaskedLM":
        assert anew == "the pooler, the next-sentence head"
    else:
        assert anew == "the masked-LM head, the next-sentence head"
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-5, atol=1e-5)
    assert ("classifier.bias" in said[-1]) == (kind == "BertForSequenceClassification")


def test_the_layout_of_bert_base_uncased(bert, tiny):
    """gamma and beta, no layer_norm_eps, the decoder's own entries, constants, a vocab.txt, rows for no id."""
    folder = bert("BertForPreTraining", layer_norm_eps=1e-12, vocab_size=1010)
    expected = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in expected.items()
    }
    assert any(name.endswith("gamma") for name in old)
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    save_file(old, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    del settings["layer_norm_eps"]
    (folder / "config.json").write_text(json.dumps(settings))
    pieces = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in sorted(pieces, key=pieces.get)))
    config = of_model(tiny, folder, DENSE)
    assert config.data.tokenizer == str(folder / "vocab.txt")
    assert config.model.layer_norm_eps == 1e-12
    model, said = model_of(config)
    assert said == (f"started from {folder}; 10 rows of its word embedding stand for no id and are left out",)
    for name, tensor in to_hugging_face(model).items():
        if name in expected:
            assert torch.equal(tensor, expected[name][: len(tensor)]), name


def test_weights_in_several_files_and_in_half_are_read(bert):
    folder = bert("BertModel")
    whole = load_file(folder / "model.safetensors")
    expected, _ = read_bert(str(folder))
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({name: whole[name].half() for name in mine}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, mine in parts.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found, _ = read_bert(str(folder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor.half().float()) for name, tensor in expected.items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected the part b\.safetensors"):
        read_bert(str(folder))
    for parts in (None, [], 3):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
        with pytest.raises(ValueError, match=r"index\.json: expected the file of each weight as weight_map, found "):
            read_bert(str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": ["x"]}}')
    with pytest.raises(ValueError, match=r"expected the part \['x'\]"):
        read_bert(str(folder))


@pytest.mark.parametrize("parts_stay", [False, True])
def test_one_file_counts_before_parts_as_for_transformers(bert, parts_stay):
    """Saved in parts, then as one: transformers leaves their index, and a copy of the file leaves them, too."""
    folder = bert("BertModel")
    model = transformers.BertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20kB")
    parts = {path.name: path.read_bytes() for path in folder.glob("model-*.safetensors")}
    assert len(parts) > 1
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.add_(1.0)
    model.save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").is_file()
    for name, content in parts.items() if parts_stay else ():
        (folder / name).write_bytes(content)
    theirs = transformers.BertModel.from_pretrained(folder).embeddings.word_embeddings.weight
    assert torch.equal(read_bert(str(folder))[0]["bert.embeddings.word_embeddings.weight"], theirs)


def test_dense_weights_become_sparse_at_their_largest_blocks(bert, tiny, seed):
    folder = bert("BertForPreTraining")
    common = ("sparsity.sparsity=0.75", "sparsity.block_size=8", f"run.seed={seed}")
    dense = own_weights(model_of(of_model(tiny, folder, DENSE))[0])
    magnitude, said = model_of(of_model(tiny, folder, *common))
    kept = mass = 0.0
    for name, layer in sparse_layers(magnitude):
        weight = dense[f"{name}.weight"]
        blocks = weight.reshape(weight.shape[0] // 8, 8, -1, 8).transpose(1, 2)
        norms = blocks.abs().sum((2, 3))
        for part, segment in enumerate(norms.chunk(layer.segments)):
            height = len(segment)
            mine = layer.pattern.slot_segments() == part
            assert int(mine.sum()) == round(segment.numel() / 4)
            found = segment[layer.rows[mine].long() - part * height, layer.cols[mine].long()]
            rest = segment.flatten().sort(descending=True).values
            assert torch.equal(found.sort(descending=True).values, rest[: int(mine.sum())])
        assert torch.equal(layer.values, blocks[layer.rows.long(), layer.cols.long()])
        kept, mass = kept + float(layer.values.detach().abs().sum()), mass + float(weight.detach().abs().sum())
    assert f"largest blocks hold {100 * kept / mass:.1f} % of the L1 mass" in said[0]
    config = of_model(tiny, folder, *common, "sparsity.init_pattern=random")
    at_random = model_of(config)[0]
    start = dict(sparse_layers(assemble.make_model(config, 1000)))
    for name, layer in sparse_layers(at_random):
        assert torch.equal(layer.pattern.keys(), start[name].pattern.keys())
        weight = dense[f"{name}.weight"]
        assert torch.equal(layer.to_dense(), torch.where(layer.to_dense() != 0, weight, torch.zeros(())))


def test_a_run_gives_weights_and_patterns_to_a_new_one(finished, tiny, tmp_path):
    source = load_model(finished).model
    config = of_model(
        tiny, finished, "run.dir=" + str(tmp_path / "second"), "train.stop_at=1", "data.sequence_length=64"
    )
    assert config.data.tokenizer == str(finished / "tokenizer.json")
    trainer = Trainer(config)
    assert trainer.step == 0
    for name, tensor in trainer.engine.state()["model"].items():
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert not any(bool(t.any()) for t in trainer.engine.state()["optimizer"].values())
    assert (trainer.run() / "report.md").exists()


def test_a_run_of_another_sparsity_keeps_its_largest_blocks_and_more_at_random(finished, tiny):
    source = dict(sparse_layers(load_model(finished).model))
    fewer, _ = model_of(of_model(tiny, finished, "sparsity.sparsity=0.9"))
    more, _ = model_of(of_model(tiny, finished, "sparsity.sparsity=0.5"))
    for name, layer in sparse_layers(more):
        assert torch.equal(layer.to_dense(), source[name].to_dense())  # all of them, and zeros
        added = sorted(set(layer.pattern.keys().tolist()) - set(source[name].pattern.keys().tolist()))
        assert added[-1] - added[0] > 2 * len(added)  # not the first free ones
    for name, layer in sparse_layers(fewer):
        mine = source[name].to_dense()
        assert layer.values.shape[0] < source[name].values.shape[0]
        assert torch.equal(layer.to_dense(), torch.where(layer.to_dense() != 0, mine, torch.zeros(())))
    dense, _ = model_of(of_model(tiny, finished, DENSE))
    for name, layer in source.items():
        assert torch.equal(own_weights(dense)[f"{name}.weight"], layer.to_dense())


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        ("best", "best"),
        ("branches/after_step_00000001/checkpoints", "branches/after_step_00000001"),
        ("branches/after_step_00000001/checkpoints", "branches/after_step_00000001/checkpoints"),
        ("branches/after_step_00000001/checkpoints", "branches/after_step_00000001/checkpoints/step_00000002"),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_a_runs_checkpoints_is_the_run(linked, kept, named, finished, tiny, tmp_path):
    """As `best/`, which `checkpoint.keep_best` makes, and what a run went back from; also as a link to another disk."""
    expected = load_model(finished).model.state_dict()
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "tokenizer.json", tmp_path / "run")
    place = tmp_path / "run" / kept
    shutil.copytree(finished / "checkpoints", tmp_path / "disk" if linked else place)
    if linked:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(tmp_path / "disk")
    config = of_model(tiny, tmp_path / "run" / named)
    assert config.data.tokenizer == str(tmp_path / "run" / "tokenizer.json")
    found = starting.start(config, assemble.open_data(config, progress=False)).state
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_what_is_kept_beside_a_branchs_checkpoints_is_none_of_its(finished, tiny, tmp_path):
    """Its sizes would be another model's than those of the weights, which are read from checkpoints/."""
    shutil.copy(finished / "tokenizer.json", tmp_path)
    branch = tmp_path / "branches" / "after_step_00000001"
    shutil.copytree(finished / "checkpoints", branch / "checkpoints")
    (branch / "step_00000009").mkdir()
    for place in (branch, branch / "step_00000009"):
        (place / "state.json").write_text(json.dumps({"config": {"model": {"layers": 7}}}))
    assert of_model(tiny, branch).model.layers == tiny().model.layers


def test_sizes_are_those_of_the_checkpoint_that_weights_are_read_from(finished, tiny, tmp_path):
    """A copy of another name in checkpoints/ came last by its letters, and no other part of the program reads it."""
    shutil.copy(finished / "tokenizer.json", tmp_path)
    own = Path(shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints"))
    for name in ("step_00000009.bak", "step_9", "step_99999999x"):
        (own / name).mkdir()
        (own / name / "state.json").write_text(json.dumps({"config": {"model": {"layers": 7}}}))
    newest = Path(shutil.copytree(checkpoint.find(finished), own / "step_100000000"))
    assert checkpoint.find(own) == newest
    assert of_model(tiny, own).model.layers == tiny().model.layers


def test_a_tokenizer_above_a_run_is_not_its_own(finished, tiny, tmp_path):
    """Of a run of an older version, which kept none, the folder's above would be taken unsaid."""
    shutil.copy(finished / "tokenizer.json", tmp_path)
    place = tmp_path / "runs" / "old" / "checkpoints"
    shutil.copytree(finished / "checkpoints", place)
    with pytest.raises(ConfigError, match=r"old: expected a run with its tokenizer\.json, found none"):
        of_model(tiny, place)


def test_another_engine_starts_from_a_run(finished, tiny):
    ipu = ("engine.name=ipu", "precision.compute=float16", "train.micro_batch_size=1", "train.stop_at=1")
    trainer = Trainer(of_model(tiny, finished, *ipu))
    expected = load_model(finished).model.state_dict()
    for name, tensor in trainer.engine.state()["model"].items():
        assert torch.equal(tensor.half(), expected[name].half() if tensor.is_floating_point() else tensor), name


def test_a_tokenizer_with_other_words_for_the_ids_is_told(bert, tiny, finished, tmp_path):
    """Each word silently began with the embedding of another."""
    folder, words = bert("BertModel"), load_model(finished).text.vocabulary()
    for name, mine, said in (
        ("same.txt", words, []),
        ("other.txt", [*words[:5], *words[:4:-1]], ["ids stand for other words in"]),
    ):
        (tmp_path / name).write_text("\n".join(mine) + "\n", encoding="utf-8")
        _, lines = model_of(of_model(tiny, folder, DENSE, f"data.tokenizer={tmp_path / name}"))
        assert [x for x in said if any(x in line for line in lines)] == said
        assert any("other words" in line for line in lines) == bool(said)
    assert f"{sum(a != b for a, b in zip(words, mine)):,} ids" in lines[-1]


def message_of(tiny: Any, init: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        of_model(tiny, init, *overrides)
    return "; ".join(caught.value.errors)


def test_what_cannot_be_started_from_is_refused_in_one_line(bert, tiny, finished, tmp_path, monkeypatch):
    folder = bert("BertModel")
    assert "model.layers: expected 1, as of model.init" in message_of(tiny, folder, "model.layers=2")
    assert "expected a folder, or a name on the hub" in message_of(tiny, "./nowhere")
    (tmp_path / "empty").mkdir()
    assert "expected a BERT with config.json, or a run, found neither" in message_of(tiny, tmp_path / "empty")
    settings = json.loads((folder / "config.json").read_text())
    for key, value, message in (
        ("hidden_act", "relu", "expected hidden_act 'gelu', found 'relu'"),
        ("type_vocab_size", 1, "expected type_vocab_size 2, found 1"),
        ("hidden_size", "big", "expected a whole number for hidden_size, found 'big'"),
        ("model_type", "roberta", "expected model_type 'bert'"),
    ):
        (folder / "config.json").write_text(json.dumps({**settings, key: value}))
        assert message in message_of(tiny, folder)
    (folder / "config.json").write_text(json.dumps(settings))
    config = of_model(tiny, folder, DENSE)
    whole = load_file(folder / "model.safetensors")
    for change, message in (
        ({"pooler.dense.bias": torch.zeros(3)}, r"pooler\.dense\.bias: expected shape \[48\], found \[3\]"),
        ({"encoder.layer.0.output.dense.bias": None}, r"found no bert\.encoder\.layer\.0\.output\.dense\.bias"),
        ({"embeddings.word_embeddings.weight": torch.zeros(9, 48)}, "each of the 1000 ids, found 9"),
        ({QUERY: whole[QUERY].to(torch.int8)}, "query.weight: expected one of torch.float32, .*, found torch.int8"),
        ({QUERY: whole[QUERY].bool()}, "found torch.bool"),
        ({QUERY: whole[QUERY].to(torch.float8_e4m3fn)}, "found torch.float8_e4m3fn"),
        ({QUERY: whole[QUERY].double() * 1e300}, f"model.init {folder}: .*query.weight: expected numbers that float32"),
        (
            {QUERY: torch.full((48, 48), math.nan)},
            f"model.init {folder}: .*query.weight: expected numbers that float32",
        ),
        ({QUERY: whole[QUERY].flatten()}, r"query, key and value weight of one shape, found \[\[2304\], \[48, 48\]"),
        ({QUERY: torch.zeros(())}, "query, key and value weight of one shape"),
    ):
        save_file({n: t for n, t in {**whole, **change}.items() if t is not None}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            model_of(config)
    (folder / "model.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        model_of(config)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"a pickle, which can run any code and is never loaded; .* convert it"):
        model_of(config)
    other = tmp_path / "other.json"
    other.write_text((finished / "tokenizer.json").read_text().replace('"the"', '"xqz"'))
    with pytest.raises(ValueError, match="expected text in the words that it was trained with, found other ones"):
        model_of(of_model(tiny, finished, f"data.tokenizer={other}"))


def test_a_name_on_the_hub_is_asked_for_file_by_file(bert, tiny, monkeypatch):
    folder = bert("BertModel")
    asked = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        if not (folder / file).is_file():
            raise huggingface_hub.errors.EntryNotFoundError("404")
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    config = of_model(tiny, "someone/bert", DENSE)
    assert (config.model.hidden_size, config.data.tokenizer) == (48, "someone/bert")
    assert read_bert("someone/bert")[0].keys() == read_bert(str(folder))[0].keys()
    assert asked == [("someone/bert", name) for name in
                     ("config.json", "model.safetensors")]  # fmt: skip

    def offline(name: str, file: str) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand not in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ValueError, match="found neither for 'someone/bert': no connection and not in the cache"):
        hub_files.find_file("someone/bert", "config.json")
