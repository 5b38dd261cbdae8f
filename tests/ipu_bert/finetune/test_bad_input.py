"""What cannot be learned from ends in one line that names it, status 2, and leaves what was there."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ipu_bert import export_run
from ipu_bert.data.errors import DataError
from ipu_bert.finetune import work
from ipu_bert.finetune.__main__ import main
from ipu_bert.finetune.examples import Labels
from ipu_bert.finetune.options import Columns
from ipu_bert.finetune.rows import Rows, read_rows
from ipu_bert.finetune.train import in_units_of

GOOD = "text,label\n" + "".join(f"war and peace {i},{i % 2}\n" for i in range(20))


def numbered(first: float, more: float) -> str:
    """Half of the rows with one number and half with another."""
    return "text,label\n" + "".join(f"war and peace {i},{first + i % 2 * more}\n" for i in range(20))


BAD = {
    "no text column": ("a.csv", GOOD.replace("text,", "words,"), [], "row 1: expected a column 'text' (--text)"),
    "no label column": ("a.csv", GOOD, ["--label", "class"], "expected a column 'class' (--label), found 'text'"),
    "no pair column": ("a.csv", GOOD, ["--pair", "second"], "expected a column 'second' (--pair)"),
    "a column twice": ("a.csv", GOOD.replace("text,label", "text,text"), [], "found 'text' twice"),
    "one class": ("a.csv", GOOD.replace(",1\n", ",0\n"), [], "labels of two classes or more, found '0' only"),
    "a label a row": ("a.csv", "text,label\n" + "".join(f"a,{i}\n" for i in range(20)), [], "20 different labels"),
    "empty text": ("a.csv", GOOD + "  ,1\n", [], "row 21: expected text in column 'text', found an empty one"),
    "no text but null": ("a.jsonl", '{"text": null, "label": 1}\n', [], "expected text in column 'text', found None"),
    "empty label": ("a.csv", GOOD + "war,\n", [], "row 21: expected a label in column 'label', found none"),
    "a label that is a list": ("a.jsonl", '{"text": "a", "label": [1]}\n', [], "expected a label in column 'label'"),
    "NaN": ("a.csv", GOOD + "war,nan\n", ["--regression"], "row 21: expected a finite number as label, found 'nan'"),
    "NaN in JSON": ("a.jsonl", '{"text": "a", "label": NaN}\n', [], "row 1: expected a label in column 'label'"),
    "a word as number": ("a.csv", GOOD + "war,x\n", ["--regression"], "row 21: expected a finite number as label"),
    "columns too many": ("a.csv", GOOD + "war,1,2\n", [], "row 21: expected 2 columns, found 3"),
    "quotes that do not end": ("a.csv", GOOD + '"war,1\n', [], "cannot be read as csv"),
    "no JSON": ("a.jsonl", "{\n", [], "row 1: cannot be read as JSON"),
    "JSON that is a list": ("a.jsonl", "[1]\n", [], "expected a JSON object, found list"),
    "wrong encoding": ("a.csv", GOOD.replace("war", "wär"), [], "expected text in utf-8 (--encoding), found byte 12"),
    "unknown encoding": ("a.csv", GOOD, ["--encoding", "klingon"], "expected one that Python knows, found 'klingon'"),
    "another kind": ("a.xlsx", GOOD, [], "expected a file that ends with .csv, .tsv, .jsonl, found '.xlsx'"),
    "nothing": ("a.csv", "text,label\n", [], "expected rows, found none"),
    "a name twice in JSON": ("a.jsonl", '{"text": "a", "label": 1, "label": 0}\n', [], "found 'label' twice"),
    "labels of two kinds": (
        "a.jsonl", '{"text": "a", "label": 1}\n{"text": "a", "label": "1"}\n', [], "found a number and text"
    ),
    "a class written twice": ("a.csv", GOOD + "war,1.0\n", [], "found '1' and '1.0'"),
    "a class with powers": ("a.csv", GOOD + "war,10e-1\n", [], "found '1' and '10e-1'"),
    "half a pair": ("a.jsonl", '{"text": "a\\ud800", "label": 1}\n', [], "found half of a surrogate pair"),
    "half a pair as label": ("a.jsonl", '{"text": "a", "label": "\\ud800"}\n', [], "found half of a surrogate pair"),
    "a number that is only Python's": ("a.csv", GOOD + "war,1_0\n", ["--regression"], "as label, found '1_0'"),
    "beyond float32": ("a.csv", GOOD + "war,1e39\n", ["--regression"], "expected a finite number as label"),
    "times in seconds": ("a.csv", numbered(1.7e9, 100), ["--regression"], "found 50 and steps of 128 at 1.7"),
    "days as numbers": ("a.csv", numbered(20261127, 1), ["--regression"], "found 0.5 and steps of 2 at 2.02611e+07"),
    "below float32's numbers": ("a.csv", numbered(0, 1e-44), ["--regression"], "found 5e-45 and steps of 1.17549e-38"),
    "encoding of nothing": ("a.csv", GOOD, ["--encoding", "undefined"], "a.csv: expected text in undefined"),
    "encoding in bytes": ("a.csv", GOOD, ["--encoding", "\udcff"], "expected one that Python knows"),
    "more updates than steps": ("a.csv", GOOD, ["--updates", "3", "--batch-size", "9"], "makes 2 step(s), found 3"),
    "too few": ("a.csv", "text,label\na,0\nb,1\nc,0\n", [], "expected rows enough to hold out 0.1"),
}  # fmt: skip


CLS, SEP = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]"))
A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
MARKS = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (("[CLS]", 2), ("[SEP]", 3))}
OTHER_TYPES = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 7}}, {"Sequence": {"id": "A", "type_id": 7}}, SEP],
    "pair": [CLS, A, SEP, B, SEP],
    "special_tokens": MARKS,
}
EXPECTED = "expected a new or empty folder or an earlier model's"


def run(start: Path, folder: Path, file: Path, *options: str) -> int:
    return main([str(start), str(folder), "--train", str(file), "--epochs", "1", *options])


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("name", BAD)
def test_one_line_and_nothing_written(name, finished, tmp_path, capsys):
    file, text, options, expected = BAD[name]
    (tmp_path / file).write_text(text, encoding="latin-1")
    assert run(finished, tmp_path / "out", tmp_path / file, *options) == 2
    line = one_line(capsys)
    assert expected in line
    assert "--encoding" in line or file in line
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_as_many_updates_as_steps_are_made(finished, tmp_path):
    """One fewer than asked: the first part of a run begins with the patterns of its start."""
    (tmp_path / "a.csv").write_text(GOOD)
    assert run(finished, tmp_path / "out", tmp_path / "a.csv", "--updates", "2", "--batch-size", "9") == 0


@pytest.mark.parametrize("option", ["--train", "--validation", "--test"])
def test_a_pipe_is_not_waited_for(option, tmp_path, capsys):
    """Nobody may ever write into it."""
    (tmp_path / "a.csv").write_text(GOOD)
    os.mkfifo(tmp_path / "b.csv")
    files = {"--train": tmp_path / "a.csv", option: tmp_path / "b.csv"}
    options = [text for name, file in files.items() for text in (name, str(file))]
    assert main([str(tmp_path), str(tmp_path / "out"), *options]) == 2
    assert one_line(capsys) == f"error: {tmp_path / 'b.csv'}: expected a file, found a folder, a pipe or a device"


def test_labels_that_training_has_not(finished, tmp_path, capsys):
    for name, text in (("a.csv", GOOD), ("b.csv", GOOD + "war,7\n")):
        (tmp_path / name).write_text(text)
    for option in ("--validation", "--test"):
        assert run(finished, tmp_path / "out", tmp_path / "a.csv", option, str(tmp_path / "b.csv")) == 2
        assert "b.csv, row 21: expected a label that the training rows have, found '7'" in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--updates", "3"], "--updates: expected a start with block-sparse weights"),
        (["--sparse"], "--sparse: expected a start with block-sparse weights"),
        (["--sparsity", "0.9999"], "leaves no"),
        (["--lr", "1e30", "--dropout", "0"], "a smaller --lr may help"),
        (
            ["--lr", "1e30", "--batch-size", "32"],
            "the model's answers became infinite or no numbers",
        ),  # in its only step
        (["--lr", "1e30", "--batch-size", "32", "--regression"], "the model's answers became infinite or no numbers"),
        (["--lr", "1", "--text", "label"], "expected different columns, found 'label', 'label'"),
        (["--lr", "1", "--pair", "label"], "expected different columns, found 'text', 'label', 'label'"),
    ],
)
def test_options_that_a_start_cannot_have(options, expected, finished, tmp_path, capsys):
    (tmp_path / "a.csv").write_text(GOOD)
    more = options if "--sparsity" in options or "--lr" in options else ["--sparsity", "0", *options]
    small = [] if "--batch-size" in options else ["--batch-size", "4"]
    assert run(finished, tmp_path / "out", tmp_path / "a.csv", *small, *more) == 2
    assert expected in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--updates", "--epochs", "--patience", "--batch-size", "--max-length", "--threads"])
def test_every_whole_number_has_an_upper_limit(option, tmp_path, capsys):
    """To 10^17 updates there is no end, and so many threads end in a traceback after a minute."""
    with pytest.raises(SystemExit, match="2"):
        main(["start", str(tmp_path / "out"), "--train", "a.csv", option, "1" + 17 * "0"])
    assert f"argument {option}: expected a whole number of at most" in capsys.readouterr().err


def test_starts_that_are_none(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "empty").mkdir()
    for start in (tmp_path / "empty", tmp_path / "nowhere"):
        assert run(start, tmp_path / "out", tmp_path / "a.csv") == 2
        assert start.name in one_line(capsys)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("tokenizer.json", lambda t: t["model"]["vocab"].update(war=99999), "whose ids are below the model's "),
        (
            "tokenizer.json",
            lambda t: t.update(post_processor=OTHER_TYPES),
            "whose types are below the model's 2",
        ),
        *(
            ("tokenizer_config.json", lambda t, n=n: t.update(model_max_length=n), f"model_max_length, found {n!r}")
            for n in (0, 2, -5, 7.5, "x")
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model(file, change, said, finished, tmp_path, capsys):
    """Tracebacks all; of 0 and 2 tokens rows were trained on."""
    (tmp_path / "a.csv").write_text(GOOD)
    assert export_run.main([str(finished), str(tmp_path / "start"), "--sparse"]) == 0
    found = json.loads((tmp_path / "start" / file).read_text())
    change(found)
    (tmp_path / "start" / file).write_text(json.dumps(found))
    capsys.readouterr()
    assert run(tmp_path / "start", tmp_path / "out", tmp_path / "a.csv") == 2
    line = one_line(capsys)
    assert said in line
    assert str(tmp_path / "start") in line


def test_nobody_is_asked_whether_a_tokenizer_s_code_may_run(finished, tmp_path, capsys, monkeypatch):
    (tmp_path / "a.csv").write_text(GOOD)
    assert export_run.main([str(finished), str(tmp_path / "start"), "--sparse"]) == 0
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "start/tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "start/own.py").write_text("class Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    capsys.readouterr()
    assert run(tmp_path / "start", tmp_path / "out", tmp_path / "a.csv") == 2
    assert "expected a tokenizer that AutoTokenizer opens" in one_line(capsys)


def test_a_tokenizer_that_knows_no_word(finished, tmp_path, capsys):
    """Of a folder without a tokenizer's files transformers makes one of five ids: every word was [UNK]."""
    (tmp_path / "a.csv").write_text(GOOD)
    assert export_run.main([str(finished), str(tmp_path / "start")]) == 0
    for path in (tmp_path / "start").iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    capsys.readouterr()
    assert run(tmp_path / "start", tmp_path / "out", tmp_path / "a.csv") == 2
    assert "expected word pieces beside the tokenizer's special tokens, found none" in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("single", "pair", "refused"),
    [
        (None, None, ["", "--pair"]),
        ([A], [A, B], ["", "--pair"]),
        ([CLS, A], [CLS, A, SEP, B], ["", "--pair"]),
        ([A, SEP], [A, SEP, B, SEP], ["", "--pair"]),
        ([CLS, A, SEP], [CLS, A, B, SEP], ["--pair"]),
        ([CLS, A, SEP], [CLS, A, SEP, B, SEP], []),
    ],
)
def test_a_tokenizer_that_puts_no_cls_or_sep(single, pair, refused, finished, tmp_path, capsys):
    """Fine-tuned on all the same: on another first token than the pooled one, and pairs without a border."""
    (tmp_path / "a.csv").write_text(GOOD.replace("text,", "text,second,").replace("peace", "peace,so it was"))
    assert export_run.main([str(finished), str(tmp_path / "start"), "--sparse"]) == 0
    found = json.loads((tmp_path / "start/tokenizer.json").read_text())
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": MARKS}
    found["post_processor"] = single and template
    (tmp_path / "start/tokenizer.json").write_text(json.dumps(found))
    capsys.readouterr()
    for option in ("", "--pair"):
        more = ["--pair", "second"] if option else []
        status = run(tmp_path / "start", tmp_path / f"out{option}", tmp_path / "a.csv", *more)
        assert status == (2 if option in refused else 0)
        if status:
            assert "start: expected a tokenizer that puts [CLS] before a row and [SEP] after" in one_line(capsys)


@pytest.mark.parametrize("names", [{}, {"bos_token": "[CLS]", "eos_token": "[SEP]"}])
def test_a_tokenizer_whose_borders_are_not_declared_is_taken(names, finished, tmp_path, capsys):
    """As PreTrainedTokenizerFast(tokenizer_object=...) saves one: its post-processor puts them all the same."""
    (tmp_path / "a.csv").write_text(GOOD)
    start = tmp_path / "start"
    assert export_run.main([str(finished), str(start)]) == 0
    words = Tokenizer.from_file(str(start / "tokenizer.json"))
    for path in start.glob("*tok*"):
        path.unlink()
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(start)
    assert AutoTokenizer.from_pretrained(start).cls_token is None
    assert run(start, tmp_path / "out", tmp_path / "a.csv") == 0


def test_rows_of_unknown_words_are_told(finished, tmp_path, capsys):
    """Every fourth row of four words is unknown: 4 of 16 tokens; at one token of a hundred nothing is said."""
    rows = [("中文" * 2 if i % 4 == 0 else "the war the war") + f",{i % 2}\n" for i in range(40)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    (tmp_path / "b.csv").write_text("text,label\n" + 33 * "the war the,0\n" + "中,1\n", encoding="utf-8")
    assert run(finished, tmp_path / "out", tmp_path / "a.csv", "--validation", str(tmp_path / "b.csv")) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "[UNK]" in line]
    assert said == ["train: 25.0 % of the tokens are [UNK]: is the vocabulary one for this text?"]


def test_a_folder_of_somebody_else_s_is_left_alone(finished, tmp_path, capsys):
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    assert run(finished, tmp_path / "out", tmp_path / "a.csv") == 2
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [f"error: {tmp_path / 'out'}: {EXPECTED}, found thesis.txt in it"]
    assert "epoch" not in shown.out  # said before anything is trained


def test_an_earlier_model_stays_whole_until_the_new_one_is(finished, tmp_path, monkeypatch):
    """What is killed before the end has written nothing; what fails while it writes leaves nothing."""
    (tmp_path / "a.csv").write_text(GOOD)
    folder = tmp_path / "out"
    assert run(finished, folder, tmp_path / "a.csv") == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "predict", killed)
    assert run(finished, folder, tmp_path / "a.csv", "--seed", "1") == 130
    monkeypatch.undo()
    monkeypatch.setattr("ipu_bert.finetune.result._card", killed)
    assert run(finished, folder, tmp_path / "a.csv", "--seed", "1") == 130
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "out"]


def test_the_start_is_not_replaced(finished, tmp_path, capsys):
    """An earlier model's folder is; the weights that a fine-tuning began from would be gone."""
    (tmp_path / "a.csv").write_text(GOOD)
    assert export_run.main([str(finished), str(tmp_path / "start"), "--sparse"]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "start").iterdir()}
    (tmp_path / "link").symlink_to("start")
    capsys.readouterr()
    for name in ("start", "link"):
        assert run(tmp_path / "start", tmp_path / name, tmp_path / "a.csv") == 2
        assert "expected another folder than the start's" in one_line(capsys)
    assert {path.name: path.read_bytes() for path in (tmp_path / "start").iterdir()} == before


def test_marks_blank_lines_and_thousands_of_columns(tmp_path):
    """A mark before a quoted name belongs to no name; the first line that is not blank has the names."""
    file, columns = tmp_path / "a.csv", Columns("text", None, "label")
    file.write_bytes(b'\xef\xbb\xbf\r\n"text","label"\r\nwar,1\r\n')
    assert read_rows(file, columns, "utf-8", labelled=True).texts == (("war",),)
    file.write_bytes(b'\xef\xbb\xbf"text","label"\nwar,1\n')
    assert read_rows(file, columns, "utf-8", labelled=True).labels == ("1",)
    names = ",".join(f"c{i}" for i in range(20_000))
    file.write_text(f"text,label,{names}\nwar,1{',' * 20_000}\n")
    began = time.process_time()
    read_rows(file, columns, "utf-8", labelled=True)
    assert time.process_time() - began < 1.0  # 9 s where each name is counted in all


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_blank_line_of_one_column_is_a_text(suffix, tmp_path):
    """It was passed over, and every prediction after it had the number of the row before; those at the end are none."""
    file, columns = (tmp_path / "a").with_suffix(suffix), Columns("text", None, "label")
    file.write_text("\ntext\nab cd\n\nef gh\n")
    with pytest.raises(DataError, match=r"a\.(csv|tsv), row 2: expected text in column 'text', found an empty one"):
        read_rows(file, columns, "utf-8", labelled=False)
    file.write_text("\ntext\nab cd\nef gh\n\n\n")
    assert read_rows(file, columns, "utf-8", labelled=False).texts == (("ab cd",), ("ef gh",))


def test_labels_up_to_the_largest_float32_are_numbers(tmp_path):
    rows = Rows(tmp_path / "a.csv", (("war",),) * 2, ("0", "3.4028234663852886e38"))
    assert Labels.of(rows, regression=True).mean == 1.7014117331926443e38


def test_class_names_of_many_digits_are_compared_exactly(tmp_path):
    """As floats the first two were one number written in two ways."""
    names = ["10000000000000000000", "10000000000000000001", "1e400", "9", "word", "1e-99999999999999999999"]
    rows = Rows(tmp_path / "a.csv", (("war",),) * 12, tuple(names * 2))
    assert Labels.of(rows, regression=False).classes == (
        "9", "10000000000000000000", "10000000000000000001", "1e-99999999999999999999", "1e400", "word",
    )  # fmt: skip


def test_a_model_that_cannot_answer_in_its_labels_units():
    model = SimpleNamespace(classifier=torch.nn.Linear(4, 1))
    torch.nn.init.constant_(model.classifier.weight, 2.0)
    with pytest.raises(ValueError, match="expected labels that float32 can answer in"):
        in_units_of(Labels((), 0.0, 3e38), model)


def test_an_option_that_does_nothing_beside_the_others_is_told(tmp_path, capsys):
    """Blocks stayed as they were with --block-size alone, and nothing said so."""
    idle = ["--block-size", "8", "--updates", "1", "--pruning-ratio", "0.3"]
    rows = ["--validation", str(tmp_path / "b.csv"), "--validation-share", "0.2"]
    assert run(tmp_path, tmp_path / "out", tmp_path / "a.csv", *idle, *rows) == 2
    assert capsys.readouterr().err.splitlines()[:-1] == [
        "no effect: --block-size 8, since --sparsity was not given",
        "no effect: --updates 1, since patterns change once less",
        "no effect: --pruning-ratio 0.3, since --updates moves no block",
        "no effect: --validation-share 0.2, since --validation was given",
    ]
    assert run(tmp_path, tmp_path / "out", tmp_path / "a.csv", "--sparsity", "0", "--block-size", "8") == 2
    assert capsys.readouterr().err.splitlines()[0] == "no effect: --block-size 8, since --sparsity 0 is dense"
    busy = ["--block-size", "8", "--pruning-ratio", "0.3", "--sparsity", "0.5", "--updates", "2"]
    assert run(tmp_path, tmp_path / "out", tmp_path / "a.csv", *busy) == 2
    assert "no effect" not in capsys.readouterr().err
