"""Judging a checkpoint by its own held-out text and by any other, through the command a user types."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ipu_bert import assemble, checkpoint, evaluate
from ipu_bert.data.batches import unmasked
from ipu_bert.data.kept_text import KeptText
from ipu_bert.data.other_text import TextFiles
from ipu_bert.engines.base import EvalResult
from ipu_bert.record.context import RECORDED, Context
from ipu_bert.record.metrics import MEANS, read_metrics
from ipu_bert.sealed_json import sealed
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")

TEXT = "The people of this nation work. We thank the Congress for peace.\n\nWar was long; the Union is strong."


@pytest.fixture
def run(tiny) -> Path:
    return Trainer(tiny("train.stop_at=3", "checkpoint.every=1", "checkpoint.keep=0", "eval.every=1")).run()


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps({"text": f"{TEXT} In {year} it was so."}) + "\n" for year in range(1790, 1796)))
    return path


def found(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert evaluate.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [folder, *folder.rglob("*")]}


def test_the_process_is_made_ready(run, capsys, monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(evaluate, "make_ready", lambda: asked.append(True))
    found(capsys, run)
    assert asked == [True]


def test_another_text_in_the_place_of_the_runs_is_no_held_out_text_of_it(tiny, tmp_path, monkeypatch, capsys):
    """With a tokenizer of its own a run's vocabulary is the same whatever its text has become."""
    words = tmp_path / "vocab.txt"
    words.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{x}" for x in "abcdefgh")])
    )
    for here, letters in (("one", "abcd"), ("two", "efgh")):
        (tmp_path / here).mkdir()
        lines = (json.dumps({"text": f"{letters[i % 4]} {letters[:2]}. {letters[2:]} {i % 7}."}) for i in range(40))
        (tmp_path / here / "mine.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path / "one")
    texts = ["data.source=files", "data.path=mine.jsonl", f"data.tokenizer={words}", f"data.dir={tmp_path / 'data'}"]
    run = Trainer(tiny("train.stop_at=1", *texts)).run()
    assert found(capsys, run)["text"] == "held-out text of the run"
    monkeypatch.chdir(tmp_path / "two")
    assert evaluate.main([str(run)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "expected the text that it was trained with, found another one in " in line


def test_any_checkpoint_is_judged_as_its_run_did_and_the_run_is_untouched(run, capsys):
    before = state_of(run)
    recorded = {r["step"]: r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "eval"}
    for path, step in ((run, 3), (run / "checkpoints" / "step_00000002", 2)):
        judged = found(capsys, path)
        assert judged["step"] == step
        for key in (*MEANS, *RECORDED):
            assert judged[key] == recorded[step][key]
    assert judged["sequences"] == 2 * 4  # eval.batches x train.batch_size
    report = json.loads((run / "report.json").read_text())
    assert judged["unigram_entropy"] == report["heldout"]["unigram_entropy"]
    assert {key: recorded[3][key] for key in RECORDED} == {key: report["heldout"][key] for key in RECORDED}
    assert judged["word_frequencies_loss"] != pytest.approx(judged["unigram_entropy"], abs=0.01)
    more = found(capsys, run, "--batches", 10**6)
    assert 8 < more["sequences_in_text"] <= more["sequences"] < more["sequences_in_text"] + 4  # one pass, no more
    assert state_of(run) == before


def test_any_text_is_judged_with_the_runs_tokenizer(run, text, tiny, capsys):
    judged = found(capsys, run, "--text", text, "--batches", 99)
    assert judged["text"] == str(text)
    assert judged["sequences_in_text"] <= judged["sequences"]
    assert judged["mlm_loss"] < math.log(1000) + 0.5  # not far from the even guess after three steps
    # Word frequencies alone, by hand: add-one frequencies of the training split.
    data = assemble.open_data(tiny(), progress=False)
    tokenizer = data.tokenizer()
    documents = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    ids = [i for document in documents for i in tokenizer.encode(document, add_special_tokens=False).ids]
    seen = Counter(data.split("train").tokens.tolist())
    predictable = data.vocab_size - 4
    total = sum(seen.values()) + predictable
    expected = -sum(math.log((seen[i] + 1) / total) for i in ids) / len(ids)
    assert judged["unigram_entropy"] == pytest.approx(expected, rel=1e-12)
    split = TextFiles(KeptText.of(data, True), [str(text)], assemble.corpus(tiny())).split("heldout")
    assert split.tokens.tolist() == ids
    assert (split.sentences[-1], split.documents[-1]) == (len(ids), len(split.sentences) - 1)
    assert len(split.documents) == len(documents) + 1
    # For a reader.
    assert evaluate.main([str(run), "--text", str(text)]) == 0
    page = capsys.readouterr().out
    assert "step 3, in float32" in page
    assert "other words around: the model's loss on the same predictions when each word around them" in page


def test_a_text_is_read_as_the_text_of_the_run(tiny, tmp_path):
    """Its sentences are lines where the run's were, and the name of a special token is not one."""
    config = tiny("data.line_is_sentence=true")
    data = assemble.open_data(config, progress=False)
    path = tmp_path / "lines.txt"
    path.write_text("war. and peace\nthe [MASK] people\n\nwork. work. work\n")
    split = TextFiles(KeptText.of(data, True), [str(path)], assemble.corpus(config)).split("heldout")
    assert len(split.sentences) == 3 + 1
    special = set(data.special_ids().values())
    assert not special & set(split.tokens.tolist()) - {data.special_ids()["[UNK]"]}


def test_words_that_do_not_suit_the_tokenizer_are_noted(run, tmp_path, capsys):
    """As a run says of its own text; Chinese was "below word frequencies alone" by an English run, and no more."""
    shown = {
        "中文" * 20 + "。": ["100.0 % of the tokens are [UNK]: is the vocabulary one for this text?"],
        "the war " + "a" * 101 + ".": [
            "25.0 % of the tokens are [UNK]: is the vocabulary one for this text?",
            "33 % of the words have more than 100 letters and become [UNK]",
        ],
        "q7z9 x8k5": ["4.0 pieces a word: is the vocabulary for this text, and large enough?"],
        "the war .": [],
    }
    for number, (sentence, lines) in enumerate(shown.items()):
        path = tmp_path / f"{number}.txt"
        path.write_text(f"{sentence}\n{sentence}\n\n" * 60, encoding="utf-8")
        assert found(capsys, run, "--text", path)["notes"] == lines
    assert evaluate.main([str(run), "--text", str(tmp_path / "0.txt")]) == 0
    assert f"note: {shown[next(iter(shown))][0]}" in capsys.readouterr().out


def test_words_that_are_never_asked_for_are_noted(run, tmp_path, capsys):
    """A sequence of 32 asks for rint(4.8) = 5 tokens, and a word of more pieces is passed over."""
    path = tmp_path / "long.txt"
    path.write_text("the war q7z9x8k5 .\nthe war .\n\n" * 60)
    pieces = load_model(run).text.tokenizer().encode("q7z9x8k5", add_special_tokens=False).tokens
    assert len(pieces) > 5
    judged = found(capsys, run, "--text", path)
    (note,) = judged["notes"]
    share, _, rest = note.partition(" % of the text's tokens are in words of more pieces than ")
    assert "never predicted" in rest
    trained = load_model(run)
    stream = evaluate._stream(trained.config, TextFiles(trained.text, [str(path)], assemble.corpus(trained.config)))
    long = text = 0
    for number in range(512):
        batch = stream.share(
            number // stream.options.batch_size, number % stream.options.batch_size, stream.options.batch_size
        )
        for row, filled in zip(unmasked(batch)[0].tolist(), batch.attention_mask.sum(1).tolist()):
            words = [trained.text.tokenizer().id_to_token(token) for token in row[:filled]]
            runs = [len(list(run)) for is_long, run in itertools.groupby(words, pieces.__contains__) if is_long]
            long += sum(run for run in runs if run > round(0.15 * filled))  # where it is cut it may be short enough
            text += sum(word not in ("[CLS]", "[SEP]") for word in words)
    assert float(share) == pytest.approx(100 * long / text, abs=0.05)


def test_other_words_are_told_with_how_sure_they_are(run):
    judged = evaluate.evaluate(load_model(run), [], None)
    loss = judged.result.means()["mlm_loss"]
    for context, said in (
        (Context(loss + 0.5, 0.0625, 6.5, 9700), f"{loss + 0.5:.4f} with other words around (+0.5000 ± 0.0625); word"),
        (Context(loss - 0.5, math.nan, 6.5, 9700), f"{loss - 0.5:.4f} with other words around (-0.5000); word"),
    ):
        assert said + " frequencies: 6.5000\n" in evaluate.render(replace(judged, context=context))


def test_what_cannot_be_judged_ends_in_one_line(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    (tmp_path / "short.txt").write_text("One document of one line.")
    nowhere, other = tmp_path / "nowhere", tmp_path / "other"
    shutil.copytree(checkpoint.find(run), other)
    state = json.loads((other / "state.json").read_text())
    state["config"]["optim"]["lr"], state["config"]["model"]["heads"] = "fast", 3
    (other / "state.json").write_text(sealed(state))
    changed = SimpleNamespace(identity={"tokenizer": "0", "text": "0"}, directory="elsewhere")
    for arguments, message in (
        ([nowhere], f"expected {nowhere} to be or to hold a complete checkpoint, found none"),
        ([run, "--text", "/no/such.txt"], "no text found at '/no/such.txt'"),
        ([run, "--text", tmp_path / "blank.jsonl"], "expected text, found no word"),
        ([run, "--text", tmp_path / "short.txt"], "corpus too small: expected at least 2 documents"),
        ([other], "found 3; optim.lr: expected a number or auto, found 'fast'"),
        ([run], "expected the vocabulary that it was trained with, found another one"),
    ):
        if arguments == [run]:  # the text has changed since: losses would be of other words
            monkeypatch.setattr(assemble, "open_data", lambda config, progress: changed)
        capsys.readouterr()
        assert evaluate.main([str(argument) for argument in arguments]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert errors[0].startswith("error: ")
        assert message in errors[0]


def test_a_checkpoint_of_the_ipu_engine_is_judged_in_float32(tiny, capsys):
    """FP16.16 rounds a logit by about 2^-11 of its size, far less than 1 % of a loss of 7 nats."""
    settings = ("engine.name=ipu", "precision.compute=float16", "train.micro_batch_size=1", "train.stop_at=1")
    run = Trainer(tiny(*settings)).run()
    recorded = [r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "eval"][-1]
    judged = found(capsys, run)
    assert judged["compute"] == "float32"
    assert judged["mlm_loss"] == pytest.approx(recorded["mlm_loss"], rel=0.01)


def test_a_run_is_judged_with_its_own_threads(run, tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    trained = load_model(run)
    assert asked == []  # whoever starts from a run's weights keeps to its own
    trained.config.engine.threads = 3
    evaluate.evaluate(trained, [], 1)
    assert asked == [3]


def test_text_in_which_nothing_can_be_masked_is_refused():
    """As of a tokenizer that cuts every word into more pieces than a sequence may have to predict."""
    with pytest.raises(ValueError, match="expected positions to predict, found none: every word held out has"):
        EvalResult(0.0, 0, 0, 1.0, 2, 1).means()


@pytest.mark.parametrize("count", ["9" * 5000, "-1", "0", "x", "\u0663", ""])
def test_a_count_that_is_none_is_a_short_line(capsys, count):
    with pytest.raises(SystemExit):
        evaluate.main(["run", f"--batches={count}"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search("--batches: expected a whole number of at (least 1|most 1000000), found ", line)
    assert len(line) < 200
