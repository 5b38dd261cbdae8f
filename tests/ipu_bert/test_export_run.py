"""A run's model for transformers, through the command a user types: Auto classes, pipeline, card, hub."""

from __future__ import annotations

import json
import math
import os
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, BertForPreTraining, pipeline

from ipu_bert import assemble, checkpoint, export_run
from ipu_bert.hub.folders import TOKENIZER_FILES, check_place, whole_folder
from ipu_bert.record.context import Context
from ipu_bert.record.metrics import dumps, read_metrics
from ipu_bert.record.verdict import FOUND
from ipu_bert.sizes.config_json import shape_from_config
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer

TEXT = "The people of these United States; Café, and peace."


def export(run: Path, folder: Path, *options: str) -> Path:
    assert export_run.main([str(run), str(folder), *options]) == 0
    return folder


def test_transformers_loads_an_exported_run_and_agrees(tiny, finished, tmp_path, capsys):
    config = tiny()
    folder = export(finished, tmp_path / "exported")
    assert "positions from 32 on have not been trained" in capsys.readouterr().out

    data = assemble.open_data(config, progress=False)
    batch = assemble.make_stream(config, data, "heldout").batch(0)
    theirs = BertForPreTraining.from_pretrained(folder).eval()
    model = load_model(finished).model
    with torch.no_grad():
        expected = theirs(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        found, nsp = model.eval()(batch.input_ids, batch.token_type_ids, batch.attention_mask, batch.masked_positions)
        hidden = model.bert(batch.input_ids, batch.token_type_ids, batch.attention_mask)[0]
        encoded = (
            AutoModel.from_pretrained(folder)
            .eval()(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            .last_hidden_state
        )
    rows = torch.arange(len(batch.input_ids))[:, None]
    torch.testing.assert_close(found, expected.prediction_logits[rows, batch.masked_positions], rtol=0, atol=1e-5)
    torch.testing.assert_close(nsp, expected.seq_relationship_logits, rtol=0, atol=1e-5)
    places = batch.attention_mask.bool()  # what stands at padding is nobody's
    torch.testing.assert_close(encoded[places], hidden[places], rtol=0, atol=1e-5)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == data.vocab_size


def test_auto_tokenizer_and_pipeline_work_on_the_folder(finished, tmp_path):
    folder = export(finished, tmp_path / "exported")
    kept = load_model(finished).text
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 32  # the trained length, of 64 positions
    assert tokenizer(TEXT).input_ids == kept.tokenizer().encode(TEXT).ids
    assert tokenizer.convert_ids_to_tokens(tokenizer(TEXT).input_ids)[0] == "[CLS]"
    assert tokenizer.mask_token_id == kept.special_ids()["[MASK]"]
    assert (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1] == kept.vocabulary()
    fill = pipeline("fill-mask", model=str(folder))
    (best, *_) = fill("The people of the [MASK] States.")
    with torch.no_grad():
        ids = torch.tensor([tokenizer("The people of the [MASK] States.").input_ids])
        places = torch.tensor([[ids[0].tolist().index(tokenizer.mask_token_id)]])
        logits = load_model(finished).model.eval()(ids, torch.zeros_like(ids), torch.ones_like(ids), places)[0]
    assert best["token"] == int(logits[0, 0].argmax())
    assert best["score"] == pytest.approx(float(logits[0, 0].softmax(-1).max()), abs=1e-5)


def test_vocab_txt_gives_the_same_words_to_transformers_bert_tokenizer(finished, tmp_path):
    from transformers import BertTokenizer

    folder = export(finished, tmp_path / "exported")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    rules = {key: settings[key] for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}
    theirs = BertTokenizer(vocab=str(folder / "vocab.txt"), **rules)
    assert theirs(TEXT).input_ids == AutoTokenizer.from_pretrained(folder)(TEXT).input_ids


@pytest.mark.parametrize("sparse", [False, True])
def test_padding_is_known_by_the_id_that_it_has(finished, tmp_path, sparse):
    """transformers trains no row of the embedding where it is looked up by pad_token_id."""
    trained = load_model(finished)
    tokenizer = json.loads(trained.text.tokenizer_json)
    vocab = tokenizer["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    vocab["[PAD]"], vocab[last] = vocab[last], vocab["[PAD]"]
    next(token for token in tokenizer["added_tokens"] if token["content"] == "[PAD]")["id"] = vocab["[PAD]"]
    text = replace(trained.text, tokenizer_json=json.dumps(tokenizer).encode())
    export_run.export(replace(trained, text=text), tmp_path / "exported", sparse)
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["pad_token_id"] == AutoTokenizer.from_pretrained(tmp_path / "exported").pad_token_id == vocab["[PAD]"]
    assert shape_from_config({**config, "model_type": "bert"}) == trained.model.shape  # taken as model.init


def test_the_card_says_what_was_recorded(finished, tmp_path):
    text = (export(finished, tmp_path / "exported") / "README.md").read_text()
    _, front, page = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["bert", "masked-lm", "block-sparse", "dynsparse"],
    }
    recorded = [r for r in read_metrics(finished / "metrics.jsonl") if r["kind"] == "eval"][-1]
    beside = json.loads((finished / "report.json").read_text())["heldout"]
    frequencies, others = beside["word_frequencies_loss"], beside["other_words_loss"]
    assert f"| masked LM | {recorded['mlm_loss']:.4f} | {frequencies:.4f} (word frequencies)" in page
    assert f"| masked LM, other words around | {others:.4f} | | |" in page
    assert "the model has NOT beaten word frequencies" in page  # after two steps
    assert "Positions 32 to 63 have never been trained" in page
    # 2 layers of 12 x 64^2, a fifth of each weight in blocks of 8x8: 4 x 13, 51 and 51 blocks.
    assert f"{2 * 154 * 64:,} of them are the values of {2 * 154:,} blocks of 8x8, in the place of 98,304" in page
    assert str(tmp_path) not in text  # nobody's folders


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_card_says_what_became_of_positions_that_were_not_trained(decay, tiny, tmp_path):
    """It said that they are as they were before training, from which weight decay has taken a share at each step."""
    run = Trainer(tiny("train.stop_at=4", f"optim.weight_decay={decay}")).run()
    trained = load_model(run)
    start = assemble.make_model(trained.config, trained.model.shape.vocab_size)
    before, after = (model.bert.embeddings.position_embeddings.weight[32:] for model in (start, trained.model))
    rates = [r["lr"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"]
    assert len(rates) == 4
    left = math.prod(1.0 - rate * decay for rate in rates)
    assert (left < 1.0) == (decay > 0.0)
    torch.testing.assert_close(after, left * before, rtol=1e-6, atol=0.0)
    assert torch.equal(after, before) == (decay == 0.0)
    page = (export(run, tmp_path / "exported") / "README.md").read_text()
    more = ", but for weight decay, which has made them smaller, all in one proportion" if decay else ""
    assert f"their rows of the position embedding are random, as they were before training{more}. The" in page


def test_the_card_of_a_run_whose_records_do_not_say_what_frequencies_reach(finished, tmp_path):
    """Those of older versions: what they reach on the whole text is told as that."""
    known = Context(6.25, 0.01, 6.5, 9700)
    for number, (context, loss, named, says) in enumerate(
        [
            (None, -0.5, "{entropy:.4f} (word frequencies, whole held-out text)", "was not recorded"),
            (None, 0.5, "{entropy:.4f} (word frequencies, whole held-out text)", "NOT beaten"),
            (known, 6.0, "6.5000 (word frequencies)", None),
            (known, 6.22, "6.5000 (word frequencies)", "Not clearly: that"),
            (known, 6.25, "6.5000 (word frequencies)", "Not yet: nothing shows"),
            (replace(known, other_words_share=0.16), 6.25, "6.5000 (word frequencies)", "fewer than half of the words"),
            (replace(known, other_words_share=0.16), 6.0, "6.5000 (word frequencies)", None),
            (replace(known, other_words_error=math.nan), 6.0, "6.5000 (word frequencies)", "cannot be said"),
            (known, 6.5, "6.5000 (word frequencies)", "NOT beaten"),
        ]
    ):
        run = tmp_path / str(number)
        shutil.copytree(finished, run)
        entropy = load_model(run).text.unigram_entropy
        loss += 0.0 if context else entropy
        means = {"mlm_loss": loss, "mlm_accuracy": 0.1, "nsp_loss": 0.7, "nsp_accuracy": 0.5}
        record = {"kind": "eval", "step": 2, **means, **(context.as_record() if context else {})}
        (run / "metrics.jsonl").write_text(dumps(record) + "\n")
        page = (export(run, tmp_path / f"exported{number}") / "README.md").read_text()
        assert f"| masked LM | {loss:.4f} | {named.format(entropy=entropy)} | 10.0 % |" in page
        assert ("| masked LM, other words around | 6.2500 |" in page) == (context is not None)
        told = [words for words in (*FOUND.values(), "reads context was not recorded.") if f"{words}**" in page]
        assert len(told) == (says is not None)
        assert all(says in words for words in told)


def on_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a model of the hub, in the hub's own cache."""
    folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    for path, text in ((folder / "refs" / "main", "abc"), (folder / "snapshots" / "abc" / "config.json", "{}")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("init", "named", "known"),
    [
        ("me/bert", "me/bert", True),
        ("runs/mine", "mine", False),  # a run's folder, elsewhere: it looks like a name on the hub
        ("/home/me/runs/mine/checkpoints/step_00000012", "mine/checkpoints/step_00000012", False),
        ("/home/me/runs/mine/best", "mine/best", False),
        ("/home/me/runs/mine/checkpoints/..", "mine", False),
        ("/home/me/kept/step_up", "step_up", False),
    ],
)
def test_the_card_says_with_which_model_the_run_began(init, named, known, finished, tmp_path, monkeypatch):
    """It named it nowhere, and said that the model has learned from its text alone."""
    on_hub("me/bert", tmp_path, monkeypatch)
    trained = load_model(finished)
    config = deepcopy(trained.config)
    config.model.init = init
    export_run.export(replace(trained, config=config), tmp_path / "exported", sparse=False)
    text = (tmp_path / "exported" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1]).get("base_model") == (named if known else None)
    for words in (
        f"Training began with the weights of `{named}`, not with random ones.",
        f"What `{named}` had learned before, from which text, is not in these numbers.",
        f"- It has learned from its text and from what `{named}` was trained on, with",
        f"- The licence of `{named}`, which is not known here",
        f"their rows of the position embedding are as `{named}` had them, but for weight decay, which has made",
        "sparsity.init_pattern: magnitude\n",
    ):
        assert words in text, words
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["model.init"] == named
    assert "from its text alone" not in text
    assert "/home" not in text
    plain = (export(finished, tmp_path / "plain") / "README.md").read_text()
    assert "It has learned from its text alone, with" in plain
    assert "began with" not in plain


def test_a_broken_export_leaves_what_was_there(finished, tmp_path, monkeypatch, capsys):
    folder = export(finished, tmp_path / "exported")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"config.json", "model.safetensors", "README.md", *TOKENIZER_FILES}

    def fail(_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_run, "render_card", fail)
    for target in (folder, tmp_path / "new"):
        assert export_run.main([str(finished), str(target)]) == 2
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir() if "exported" in path.name or "new" in path.name) == [
        "exported"
    ]
    export(finished, folder)  # over an earlier one
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    capsys.readouterr()
    for target, message in ((folder, "found notes.txt in it"), (tmp_path / "file", "found a file")):
        assert export_run.main([str(finished), str(target)]) == 2
        assert message in capsys.readouterr().err
    assert (folder / "notes.txt").read_text() == "mine"


def test_the_earlier_folder_comes_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    folder, replace = tmp_path / "model", export_run.files.os.replace
    folder.mkdir()
    (folder / "config.json").write_text("old")
    (folder / "model.safetensors").write_text("old")

    def failing(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp") and Path(source).is_dir():
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("ipu_bert.hub.folders.os.replace", failing)
    with pytest.raises(OSError, match="Input/output"), whole_folder(folder) as aside:
        (aside / "config.json").write_text("new")
    assert (folder / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


class FakeHub:
    """The two calls of HfApi that a push makes, and what they were asked for."""

    asked: list[tuple[object, ...]]

    def __init__(self, problem: Exception | None) -> None:
        self.asked, self._problem = [], problem

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        if self._problem:
            raise self._problem
        self.asked.append(("create", repo_id, private, exist_ok))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        self.asked.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
        return SimpleNamespace()


def test_a_push_uploads_the_folder(finished, tmp_path, monkeypatch, capsys):
    hub = FakeHub(None)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    export(finished, tmp_path / "exported", "--push-to", "me/model")
    names = sorted(["config.json", "model.safetensors", "README.md", *TOKENIZER_FILES])
    assert hub.asked == [("create", "me/model", True, True), ("upload", "me/model", names)]
    assert "pushed to https://hub.example/me/model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (ConnectionError("no route\nto host"), "no route to host"),
        (huggingface_hub.errors.HFValidationError("Repo id must be in the form"), "Repo id must be in the form"),
        (huggingface_hub.errors.LocalTokenNotFoundError("Token is required"), "Token is required"),
    ],
    ids=["offline", "name", "token"],
)
def test_a_hub_that_refuses_is_one_line(finished, tmp_path, monkeypatch, capsys, problem, said):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeHub(problem))
    assert export_run.main([str(finished), str(tmp_path / "exported"), "--push-to", "me/model"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --push-to me/model: expected a repository that takes")
    assert line.endswith(said)
    assert (tmp_path / "exported" / "config.json").exists()  # the export itself is done


@pytest.mark.parametrize("where", ["checkpoints", "branches/other/best"])
def test_what_a_run_recorded_of_a_checkpoint_over_a_link_or_put_aside_is_known(where, finished, tmp_path):
    run = tmp_path / "run"
    step = checkpoint.find(finished)
    shutil.copytree(step, tmp_path / "disk" / step.name)
    (run / where).parent.mkdir(parents=True)
    (run / where).symlink_to(tmp_path / "disk")
    for name in ("metrics.jsonl", "tokenizer.json"):
        shutil.copy(finished / name, run)
    folder = export(run / where / step.name, tmp_path / "exported")
    assert "No evaluation of this step was recorded" not in (folder / "README.md").read_text()


def test_a_checkpoint_without_its_run_says_that_no_loss_is_known(finished, tmp_path):
    shutil.copytree(checkpoint.find(finished), tmp_path / "alone")
    folder = export(tmp_path / "alone", tmp_path / "exported")
    assert "No evaluation of this step was recorded" in (folder / "README.md").read_text()


def test_a_run_that_is_not_there_ends_in_one_line(tmp_path: Path, capsys):
    assert export_run.main([str(tmp_path / "no"), str(tmp_path / "exported")]) == 2
    assert "found none" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("bytes_of", ["run", "folder"])
def test_a_path_that_is_not_utf8_is_refused_by_its_name(finished, tmp_path, capsys, bytes_of):
    """safetensors cannot open it, and the intact checkpoint was called damaged."""
    other = Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"\xff"))
    shutil.copytree(checkpoint.find(finished), other)
    paths = {"run": [other, tmp_path / "out"], "folder": [finished, other]}[bytes_of]
    assert export_run.main([str(path) for path in paths]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert r"x\udcff'" in line
    assert line.endswith("a path in UTF-8, found other bytes")


def test_a_folder_below_a_file_is_refused_with_what_was_expected(finished, tmp_path, capsys):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "a" / "b"
    assert export_run.main([str(finished), str(folder)]) == 2
    said = f"error: {folder}: expected a new or empty folder or an earlier model's, found {tmp_path / 'file'}, which is"
    assert capsys.readouterr().err == f"{said} no folder\n"


def test_a_link_stays_and_what_it_stands_for_is_written(tmp_path):
    """As one to a larger disk: a folder that is there, and one that is not yet."""
    (tmp_path / "there").mkdir()
    for name in ("there", "not_yet"):
        (tmp_path / f"to_{name}").symlink_to(tmp_path / name)
        with whole_folder(tmp_path / f"to_{name}") as aside:
            (aside / "config.json").write_text(name)
        assert (tmp_path / f"to_{name}").is_symlink()
        assert (tmp_path / name / "config.json").read_text() == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["not_yet", "there", "to_not_yet", "to_there"]


@pytest.mark.parametrize("place", ["n" * 250, "circle", "new/" + "n" * 250])
def test_a_place_where_no_folder_can_be_made_is_refused_before_the_work(tmp_path, place):
    """A fine-tuning took its hours first."""
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    problem = rf"File name too long: '{tmp_path / place}'|{tmp_path / place}: .* found links that lead nowhere"
    with pytest.raises((OSError, ValueError), match=problem):  # and not the hidden name of a trial
        check_place(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["circle"]


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("method", ["dynsparse", "static"])
def test_the_card_of_a_model_whose_weights_are_all_dense_tells_of_no_sparsity(method, tiny, tmp_path):
    """With sparsity 0 the method's name was in the card and in the tags that the hub finds models by."""
    run = Trainer(tiny("train.stop_at=1", "sparsity.sparsity=0", f"sparsity.method={method}")).run()
    assert "All its weights are dense." in (run / "report.md").read_text()
    _, front, page = (export(run, tmp_path / "exported") / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["bert", "masked-lm"]
    assert "pre-trained with dense weights." in page
    assert "sparse" not in page.split("## Settings")[0]
