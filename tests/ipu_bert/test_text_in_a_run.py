"""What a run says of its text, and that it trains masked LM alone where no sentence pairs can be made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from ipu_bert import assemble
from ipu_bert.data.tokenizer import load_tokenizer
from ipu_bert.evaluate import evaluate
from ipu_bert.ranks import ALONE
from ipu_bert.record.metrics import read_metrics
from ipu_bert.stopwatch import Stopwatch
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer
from ipu_bert.trial import Trial

pytestmark = pytest.mark.usefixtures("blank_pictures")
UDHR = Path(__file__).parent / "data" / "udhr"


def run(config) -> tuple[list, dict, str]:
    """The records of a run, its report.json and its report.md."""
    folder = Trainer(config).run()
    report = (folder / "report.json").read_text(encoding="utf-8")
    return read_metrics(folder / "metrics.jsonl"), json.loads(report), (folder / "report.md").read_text("utf-8")


def test_masked_lm_alone(tiny, tmp_path, capsys):
    rows = "".join(json.dumps({"text": f"word{i} and another{i % 7} only"}) + "\n" for i in range(80))
    (tmp_path / "rows.jsonl").write_text(rows)
    config = tiny(f"data.path={tmp_path / 'rows.jsonl'}", "train.stop_at=2", "data.vocab_size=300")
    records, report, page = run(config)
    for record in records:
        if record["kind"] in ("train", "eval"):
            assert record["nsp_loss"] is None
            assert record["mlm_loss"] > 1.0
    assert report["heldout"]["nsp_loss"] is None
    assert report["data"]["quality"]["pairs"] is False
    judged = evaluate(load_model(Path(config.run.dir)), [], None).to_dict()
    assert (judged["pairs"], judged["nsp_loss"], judged["nsp_accuracy"]) == (False, None, None)
    assert judged["mlm_loss"] == report["heldout"]["mlm_loss"]
    assert "masked LM is trained alone" in page
    assert "coin toss, ln 2" not in page
    assert "masked LM is trained alone" in capsys.readouterr().err
    data = assemble.open_data(config, progress=False)
    engine = assemble.make_engine(config, data.vocab_size, Stopwatch())
    before = [p.detach().clone() for p in engine.model.cls.seq_relationship.parameters()]
    engine.train_step(assemble.make_stream(config, data, "train").batch(0))
    state = engine.state()["optimizer"]
    assert all(torch.count_nonzero(v) == 0 for k, v in state.items() if "seq_relationship" in k)
    assert len(before) == sum(k.startswith("exp_avg.") for k in state if "seq_relationship" in k)


def test_names_beside_the_text_that_are_not_utf8(tiny, corpus, tmp_path, capsys):
    """Left out or empty, they ended the run after its last step, and each resume: report.md could not hold them."""
    folder = tmp_path / "text"
    shutil.copytree(corpus, folder)
    for name, data in ((b"caf\xe9.csv", b"x"), (b"caf\xe8.txt", b""), (b"caf\xea.txt", b"A text. It is short.")):
        (folder / os.fsdecode(name)).write_bytes(data)
    records, report, page = run(tiny(f"data.path={folder}", f"data.dir={tmp_path / 'data'}", "train.stop_at=2"))
    left = rf"{folder}: 1 of its files are not read (1 with .csv): caf\udce9.csv; "
    empty = rf"{folder}/caf\udce8.txt: empty, left out"
    said = capsys.readouterr().err
    for line in (left, empty):
        assert f"text: warning: {line}" in said
        assert f"**About the text:** {line}" in page
    assert report["data"]["quality"]["notes"][1] == empty
    assert records[0]["text"]["warnings"][:2] == report["data"]["quality"]["notes"][:2]


def test_a_chinese_text_in_one_command(tiny, capsys):
    records, report, page = run(tiny(f"data.path={UDHR / 'zh.txt'}", "train.stop_at=2", "train.batch_size=2"))
    quality = report["data"]["quality"]
    assert quality["pairs"]
    assert quality["pieces_a_word"] == pytest.approx(1.0, abs=0.02)  # nearly every letter is a piece
    assert quality["shown"] > 0.4
    said = capsys.readouterr().err
    for line in records[0]["text"]["told"]:
        assert line in said
        assert line in page
    assert report["heldout"]["nsp_loss"] > 0
    plan = assemble.plan(tiny(f"data.path={UDHR / 'zh.txt'}"))
    fewer = "the text gave a vocabulary of 376 word pieces, not the 1,000 of vocab_size"
    assert {**plan["data"]["quality"], "notes": [fewer]} == quality
    assert said.count(f"text: warning: {fewer}\n") == page.count(f"**About the text:** {fewer}.") == 1


@pytest.mark.parametrize("engine", [[], ["engine.name=ipu", "train.micro_batch_size=1"]], ids=["torch", "ipu"])
def test_a_given_tokenizer_tells_the_vocabularys_size_before_the_text_is_prepared(
    engine, tiny, finished, tmp_path, monkeypatch
):
    given = ["data.vocab_size=300", f"data.tokenizer={finished / 'tokenizer.json'}"]
    not_prepared = tiny(f"data.dir={tmp_path / 'data'}", *given, *engine)
    assemble.open_data(tiny(*given, *engine), progress=False)
    planned, plan = assemble.plan(tiny(*given, *engine)), assemble.plan(not_prepared)
    assert [bool(found["data"]["prepared"]) for found in (planned, plan)] == [True, False]
    for key in ("model", "parameters", "memory", "placement"):
        assert plan[key] == planned[key]
    labels = plan["decoded"] - planned["decoded"]  # those of a full sequence, and those that are there
    assert 0 <= labels < 0.1
    heads = plan["flops"]["heads"] - planned["flops"]["heads"]
    assert heads == pytest.approx(6 * 64 * plan["model"]["vocab_size"] * labels)
    sizes = []
    make_engine = assemble.make_engine
    monkeypatch.setattr(
        assemble, "make_engine", lambda c, size, *more: sizes.append(size) or make_engine(c, size, *more)
    )
    Trial(not_prepared, ALONE)
    assert sizes == [plan["model"]["vocab_size"]] == [load_tokenizer(finished / "tokenizer.json").get_vocab_size()]
