"""The sparse form through transformers' own doors: Auto classes, pipeline, Trainer; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import make_shape, sparse_model
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from ipu_bert import export_run
from ipu_bert.hub.auto import SparseBertForSequenceClassification, SparseBertModel, save_sparse
from ipu_bert.hub.dense import save_pretrained
from ipu_bert.hub.weights import dense_state
from ipu_bert.model import sparse_layers
from ipu_bert.trained import load_model


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    assert export_run.main([str(finished), str(tmp_path / "sparse"), "--sparse"]) == 0
    return tmp_path / "sparse"


@pytest.fixture
def small(tmp_path, seed) -> Path:
    """A small model in both forms."""
    model = sparse_model(make_shape(), 0.5, 8, seed=seed)
    save_sparse(model, tmp_path / "sparse", pad_token_id=0)
    save_pretrained(model, tmp_path / "dense", pad_token_id=0)
    return tmp_path


def test_logits_are_the_runs_own(finished, folder, seed):
    model = load_model(finished).model.eval()
    ids = torch.randint(5, 900, (3, 20), generator=torch.Generator().manual_seed(seed))
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    mask[0, 15:], types[:, 8:] = 0, 1
    with torch.no_grad():
        expected = model(ids, types, mask, torch.arange(20).expand(ids.shape))[0]
        hidden, pooled = model.bert(ids, types, mask)
        found = AutoModelForMaskedLM.from_pretrained(folder)(ids, mask, types, labels=ids)
        encoded = AutoModel.from_pretrained(folder)(ids, mask, types)
    assert torch.equal(found.logits, expected)
    assert torch.equal(encoded.last_hidden_state, hidden)
    assert torch.equal(encoded.pooler_output, pooled)
    every = -expected.log_softmax(-1).gather(-1, ids[..., None])
    assert float(found.loss) == pytest.approx(float(every.mean()), rel=1e-5)


def test_what_is_saved_again_is_the_same(finished, folder, tmp_path):
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    again = dense_state(AutoModelForMaskedLM.from_pretrained(tmp_path / "again"))
    expected = dense_state(load_model(finished).model)
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    written = [load_file(place / "model.safetensors") for place in (folder, tmp_path / "again")]
    assert all(torch.equal(tensor, written[1][name]) for name, tensor in written[0].items() if "encoder" in name)
    assert not [path for path in (tmp_path / "again").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert all(isinstance(tensor, torch.Tensor) for tensor in load_file(tmp_path / "again/model.safetensors").values())


def test_pipeline_fills_masks(finished, folder, tmp_path):
    assert export_run.main([str(finished), str(tmp_path / "dense")]) == 0
    text = "The people of the [MASK] States."
    sparse, dense = (pipeline("fill-mask", model=str(path))(text) for path in (folder, tmp_path / "dense"))
    assert sparse[0]["token"] == dense[0]["token"]
    assert [x["score"] for x in sparse] == pytest.approx([x["score"] for x in dense], abs=1e-5)


def test_trainer_trains_a_classifier_on_it(folder, tmp_path, capsys):
    """Two classes told apart by one word: from chance to right, blocks at the same places, in a few steps."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [("war " if label else "peace ") * 3 for label in (0, 1)] * 8
    rows = [{**tokenizer(text), "labels": number % 2} for number, text in enumerate(texts)]
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    assert "starts at random: classifier.weight, classifier.bias" in capsys.readouterr().out
    places = {name: layer.pattern.keys() for name, layer in sparse_layers(model)}
    before = {name: layer.values.detach().clone() for name, layer in sparse_layers(model)}
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=40, per_device_train_batch_size=16, learning_rate=3e-3, report_to=[],
        save_strategy="no", use_cpu=True, seed=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, data_collator=transformers.DataCollatorWithPadding(tokenizer)
    )
    assert not trainer.model_accepts_loss_kwargs  # the loss is a mean: Trainer itself divides by accumulated steps
    trainer.train()
    trainer.save_model(str(tmp_path / "tuned"))
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    for name, layer in sparse_layers(tuned):
        assert torch.equal(layer.pattern.keys(), places[name])
        assert not torch.equal(layer.values, before[name])
    tokenizer.save_pretrained(tmp_path / "tuned")
    classify = pipeline("text-classification", model=str(tmp_path / "tuned"))
    assert [found["label"] for found in classify(texts[:2])] == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    ("labels", "outputs", "problem"),
    [
        ([2, 0], 3, None),
        ([2, 0], 3, "single_label_classification"),
        ([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], 3, None),
        ([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], 3, "multi_label_classification"),
        ([[1.0], [0.0]], 1, "multi_label_classification"),
        ([[0.5, -1.0, 2.0], [3.0, 0.0, 1.0]], 3, "regression"),
        ([[1.0], [5.0]], 1, None),
        ([1.0, 5.0], 1, None),
        ([1.0, 5.0], 1, "regression"),
    ],
)
def test_the_loss_of_a_classifier_is_that_of_bert_for_sequence_classification(labels, outputs, problem, small, seed):
    """It was cross-entropy whatever `problem_type` asked for, and labels [B, 1] were spread over [B, B]."""
    options = {"num_labels": outputs, "problem_type": problem}
    sparse, dense = (
        AutoModelForSequenceClassification.from_pretrained(small / form, **options) for form in ("sparse", "dense")
    )
    sparse.classifier.load_state_dict(dense.classifier.state_dict())
    ids = torch.randint(5, 50, (2, 12), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found, expected = (x(ids, labels=torch.tensor(labels)).loss for x in (sparse, dense))
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    assert sparse.config.problem_type == dense.config.problem_type


@pytest.mark.parametrize("door", [AutoModel, SparseBertModel])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bfloat16", torch.bfloat16])
def test_a_dtype_is_obeyed_by_both_its_names(door, name, value, small):
    """Strings and torch_dtype gave float32."""
    model = door.from_pretrained(small / "sparse", **{name: value})
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(small / "again")
    assert door.from_pretrained(small / "again").dtype == torch.bfloat16
    assert door.from_pretrained(small / "sparse", dtype="auto").dtype == torch.float32
    assert door.from_pretrained(small / "sparse", dtype="float8_e4m3fn").dtype == torch.float8_e4m3fn
    with pytest.raises(ValueError, match="dtype: expected a floating dtype of torch or its name, found 'int8'"):
        SparseBertModel.from_pretrained(small / "sparse", dtype="int8")


def test_float64_comes_back_bit_for_bit(small, seed):
    """It was rounded to float32 on the way, whatever was asked for."""
    model, generator = SparseBertModel.from_pretrained(small / "sparse").double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(torch.randn(x.shape, generator=generator, dtype=torch.float64))
        model.bert.pooler.dense.bias[0] = 1e200
    model.save_pretrained(small / "again")
    for options in ({}, {"dtype": torch.float64}):
        found = SparseBertModel.from_pretrained(small / "again", **options).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match=r"pooler\.dense\.bias: expected numbers that float32 holds"):
        SparseBertModel.from_pretrained(small / "again", dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_a_dtype_does_not_hold_is_refused(dtype, small):
    """It was inf."""
    model = SparseBertModel.from_pretrained(small / "sparse")
    narrow = SparseBertModel.from_pretrained(small / "sparse", dtype=dtype)
    assert all(torch.equal(x.to(dtype).float(), y.float()) for x, y in zip(model.parameters(), narrow.parameters()))
    with torch.no_grad():
        model.bert.pooler.dense.bias[0] = torch.finfo(torch.float32).max
    model.save_pretrained(small / "again")
    with pytest.raises(ValueError, match=f"bias: expected numbers that {str(dtype)[6:]} holds, found NaN, inf"):
        SparseBertModel.from_pretrained(small / "again", dtype=dtype)


def test_values_of_the_config_may_be_given_as_the_model_is_loaded(small):
    """The class itself had two labels, whatever was asked for."""
    options = {"num_labels": 5, "hidden_dropout_prob": 0.25}
    for door in (AutoModelForSequenceClassification, SparseBertForSequenceClassification):
        model = door.from_pretrained(small / "sparse", **options)
        assert (model.classifier.out_features, model.dropout.p) == (5, 0.25)


FOR_BOTH_DOORS = [
    ("device_map", "cpu"), ("output_loading_info", True), ("state_dict", {}), ("variant", "fp16"), ("proxies", {}),
    ("key_mapping", {"a": "b"}), ("quantization_config", {"bits": 4}), ("hidden_dropout", 0.0),
    ("output_hidden_states", True), ("output_attentions", True),
]  # fmt: skip
# AutoModel reads such a file, and refuses such attention, before it comes to the sparse form.
FOR_OURS = [("gguf_file", "a"), ("attn_implementation", "flash_attention_2")]


@pytest.mark.parametrize(
    ("door", "name", "value"),
    [(AutoModel, *one) for one in FOR_BOTH_DOORS] + [(SparseBertModel, *one) for one in FOR_BOTH_DOORS + FOR_OURS],
)
def test_an_argument_that_nothing_heeds_is_refused_by_name(door, name, value, small):
    with pytest.raises(ValueError, match=f"from_pretrained: the sparse form has nothing for {name}: leave out$"):
        door.from_pretrained(small / "sparse", **{name: value})


def test_what_the_hub_is_asked_with_is_handed_to_its_client(small, monkeypatch):
    """The weights were those of the newest revision, whatever was asked for."""
    asked = []
    monkeypatch.setattr(
        "ipu_bert.hub.source.find_file",
        lambda where, name, **hub: asked.append((name, hub)) or small / "sparse" / name,
    )
    SparseBertModel.from_pretrained(small / "sparse", revision="v1", token=None)
    assert asked == [("model.safetensors", {"revision": "v1"})]


def test_several_files_are_read_as_one(small, tmp_path):
    """What save_pretrained(max_shard_size=...) had made could not be loaded."""
    model = AutoModelForMaskedLM.from_pretrained(small / "sparse")
    model.save_pretrained(tmp_path / "parts", max_shard_size="20kB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "parts").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="safe_serialization"):
        model.save_pretrained(tmp_path / "pickled", safe_serialization=False)


@pytest.mark.parametrize("door", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_arguments_of_a_call_are_heeded_or_refused(door, small):
    model = door.from_pretrained(small / "sparse")
    ids, backwards = torch.arange(5, 17)[None], torch.arange(12).flip(0)[None]
    with torch.no_grad():
        named = model(ids, output_hidden_states=None, output_attentions=False, return_dict=True)
        assert torch.equal(model(ids, return_dict=False)[0], named[0])
        assert type(model(ids, return_dict=False)) is tuple
        places = [model(ids, position_ids=x)[0] for x in (backwards, torch.arange(12).expand(1, -1))]
    assert torch.allclose(places[1], named[0], atol=1e-6)
    assert not torch.allclose(places[0], named[0], atol=1e-3)
    for name in ("output_hidden_states", "output_attentions"):
        with pytest.raises(ValueError, match=f"forward: the sparse form has nothing for {name}"):
            model(ids, **{name: True})
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(1, 12, 32))
    with pytest.raises(TypeError, match="head_mask"):
        model(ids, head_mask=torch.ones(2))
    model.config.output_hidden_states = True
    with pytest.raises(ValueError, match="output_hidden_states"):
        model(ids)


def test_position_ids_mean_what_they_mean_to_bert(small):
    ids, backwards = torch.arange(5, 17)[None], torch.arange(12).flip(0)[None]
    with torch.no_grad():
        found, expected = (
            AutoModel.from_pretrained(small / form)(ids, position_ids=backwards).last_hidden_state
            for form in ("sparse", "dense")
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("block_size", "most"), [(16, 0.115), (1, 0.14)])
def test_the_encoder_takes_about_its_density(block_size, most, tmp_path):
    """0.9 sparse: a byte of position for each block's values (4 bytes at 1x1: 0.125 of dense), and biases and norms."""
    shape = make_shape(layers=2, hidden_size=160, heads=2, intermediate_size=640, vocab_size=8, max_positions=8)
    model = sparse_model(shape, 0.9, block_size)
    save_sparse(model, tmp_path / "sparse", pad_token_id=0)
    save_pretrained(model, tmp_path / "dense", pad_token_id=0)
    sparse, dense = (load_file(tmp_path / kind / "model.safetensors") for kind in ("sparse", "dense"))
    sizes = [
        sum(t.numel() * t.element_size() for name, t in tensors.items() if "encoder" in name)
        for tensors in (sparse, dense)
    ]
    assert 0.1 < sizes[0] / sizes[1] < most


@pytest.mark.parametrize("sparsity", [0.5, 0.99, 0.9995])
def test_places_come_back_from_the_file_however_far_apart(sparsity, tmp_path, seed):
    shape = make_shape(hidden_size=160, intermediate_size=640)
    model = sparse_model(shape, sparsity, 1, seed=seed)
    save_sparse(model, tmp_path, pad_token_id=0)
    steps = [t for name, t in load_file(tmp_path / "model.safetensors").items() if name.endswith("steps")]
    assert {t.dtype for t in steps} == {torch.uint8}
    layers = [layer for _, layer in sparse_layers(model)]
    positions = sum(layer.out_features * layer.in_features for layer in layers)
    assert sum(t.numel() for t in steps) <= sum(layer.values.numel() for layer in layers) + positions / 255
    found, expected = dense_state(AutoModelForMaskedLM.from_pretrained(tmp_path)), dense_state(model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if "seq_relationship" not in name)


def test_files_with_rows_and_columns_still_load_and_a_state_dict_takes_both(finished, folder):
    """What versions before packed positions wrote."""
    run, packed = load_model(finished).model, load_file(folder / "model.safetensors")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.load_state_dict(packed)  # as Trainer goes on from its checkpoint
    save_file(run.state_dict(), folder / "model.safetensors")
    old = AutoModelForMaskedLM.from_pretrained(folder)
    for name, tensor in dense_state(run).items():
        assert torch.equal(dense_state(model)[name], tensor)
        assert torch.equal(dense_state(old)[name], tensor)


def in_any_order(folder: Path, seed: int) -> None:
    """Make a sparse form's file one of the older form, with slots in any order."""
    model, generator = AutoModelForMaskedLM.from_pretrained(folder), torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, layer in sparse_layers(model):
        order = torch.randperm(len(layer.rows), generator=generator)
        state.update({f"{name}.{key}": state[f"{name}.{key}"][order] for key in ("rows", "cols", "values")})
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("history", ["as exported", "an older file", "moved blocks"])
def test_slots_come_back_in_their_order(history, small, seed):
    if history == "an older file":
        in_any_order(small / "sparse", seed)
    model = AutoModelForMaskedLM.from_pretrained(small / "sparse")
    for _, layer in sparse_layers(model) if history == "moved blocks" else ():
        free = (layer.to_dense()[: layer.out_features // layer.segments : 8, ::8] == 0).nonzero()
        layer.reallocate(torch.tensor([0]), free[-1:, 0], free[-1:, 1])
    model.save_pretrained(small / "again")
    loaded = AutoModelForMaskedLM.from_pretrained(small / "again").state_dict()
    taken = AutoModelForMaskedLM.from_pretrained(small / "sparse")
    written = load_file(small / "again/model.safetensors")
    taken.load_state_dict(written, strict=False)  # as Trainer goes on from its checkpoint
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
        assert torch.equal(taken.state_dict()[name], tensor), name
    assert any(name.endswith(".rows") for name in written) == (history != "as exported")


@pytest.mark.parametrize("older", [False, True])
def test_trainer_goes_on_with_the_moments_of_each_block(older, small, tmp_path, seed):
    """From a file of the older form it went on with those of other blocks: slots were saved in another order."""
    if older:
        in_any_order(small / "sparse", seed)
    ids = torch.randint(5, 50, (16, 12), generator=torch.Generator().manual_seed(seed))
    rows = [{"input_ids": line, "labels": number % 2} for number, line in enumerate(ids)]

    def trained(go_on: str | None) -> dict[str, torch.Tensor]:
        transformers.set_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(small / "sparse", num_labels=2)
        arguments = transformers.TrainingArguments(
            str(tmp_path / "out"), max_steps=6, save_steps=3, per_device_train_batch_size=4, learning_rate=5e-3,
            report_to=[], use_cpu=True, seed=1, disable_tqdm=True,
        )  # fmt: skip
        transformers.Trainer(model, arguments, train_dataset=rows).train(resume_from_checkpoint=go_on)
        return {name: layer.to_dense() for name, layer in sparse_layers(model)}

    whole, resumed = trained(None), trained(str(tmp_path / "out/checkpoint-3"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_positions_that_cannot_be_are_refused(folder):
    good = load_file(folder / "model.safetensors")
    name = next(name for name in good if name.endswith(".steps"))
    for wrong in (good[name] * 0, good[name][1:], torch.cat([good[name], good[name]])):
        save_file({**good, name: wrong}, folder / "model.safetensors")
        with pytest.raises(ValueError, match="expected"):
            AutoModel.from_pretrained(folder)


def test_what_cannot_be_loaded_is_one_line(folder):
    good = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(good[:99])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"found no model\.safetensors"):
        AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(good)
    config = json.loads((folder / "config.json").read_text())
    config["blocks"]["bert.encoder.layer.0.output.dense"][1] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"values: expected \[\d+, 8, 8\], as config\.json has it, found"):
        AutoModel.from_pretrained(folder)
