"""The table of starts: splits that share nothing, runs that are done once, and what the table says of what is there."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from ipu_bert.bench import starts


@pytest.fixture
def reviews(tmp_path, monkeypatch) -> Path:
    """Forty snippets told apart by a word, and eight messages of ten paragraphs, two of each era."""
    rows = [f"{i}\t{0 if i % 10 == 9 else i % 2 - 0.5}\tit is {'good' if i % 2 else 'bad'} {i}" for i in range(40)]
    (tmp_path / "reviews.txt").write_text("\r\n".join(rows) + "\r\n", encoding="utf-8")
    messages = [[(f"message {m} paragraph {p} era{m % 4}", str(m % 4)) for p in range(10)] for m in range(8)]
    monkeypatch.setattr(starts, "eras", lambda: messages)
    monkeypatch.setattr(starts, "SIZES", {"train": 20, "test": 10})
    return tmp_path / "reviews.txt"


def test_training_and_test_rows_share_no_text_and_no_message(reviews, tmp_path):
    for task in starts.TASKS:
        train, test = starts.split_of(task, reviews)
        assert (len(train), len(test)) == (20, 10)
        assert not {text for text, _ in train} & {text for text, _ in test}
    assert not {text.split()[1] for text, _ in train} & {text.split()[1] for text, _ in test}  # of eras
    assert len(starts.sentiment(reviews)) == 36  # without those rated 0
    assert set(starts.sentiment(reviews)) >= {("it is bad 0", "negative"), ("it is good 1", "positive")}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"1\tabc\ttext", "expected a number as rating, found 'abc'"),
        (b"1\tnan\ttext", "expected a number as rating, found 'nan'"),
        (b"1\t1\t\xff", "expected UTF-8, found byte 0xff"),
        (b"1\t1", "expected number, rating and text with tabs between, found 2 columns"),
    ],
)
def test_a_wrong_line_of_the_reviews_is_named(reviews, line, words):
    reviews.write_bytes(b"1\t1\tgood\n\n" + line + b"\n")
    with pytest.raises(ValueError, match=f"^{re.escape(f'{reviews}, line 3: {words}')}$"):
        starts.sentiment(reviews)


def test_too_few_reviews_are_refused(reviews, monkeypatch):
    """Some were both learned from and tested on."""
    monkeypatch.setattr(starts, "SIZES", {"train": 26, "test": 10})
    train, test = starts.split_of("reviews", reviews)
    assert len({text for text, _ in train} | {text for text, _ in test}) == 36
    monkeypatch.setattr(starts, "SIZES", {"train": 27, "test": 10})
    with pytest.raises(ValueError, match=r"reviews.txt: expected 37 rows or more rated above or below 0, found 36$"):
        starts.split_of("reviews", reviews)


STOPPED = """#!/bin/sh
trap 'echo saved > {told}; exit 75' TERM
kill -TERM $PPID
while :; do sleep 0.02; done
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_pre_training_is_stopped_with_the_command_that_began_it(reviews, tmp_path, monkeypatch, capsys):
    program = tmp_path / "python"
    program.write_text(STOPPED.format(told=tmp_path / "told"))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nobody answers the signal"))
    try:
        status = starts.main(command(tmp_path, reviews))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "told").read_text() == "saved\n"
    assert status == 75
    assert capsys.readouterr().err == "stopped; the same command goes on\n"


def test_ctrl_c_within_a_fine_tuning_is_no_error(reviews, tmp_path, monkeypatch, capsys):
    """It was `expected a fine-tuning that ends with 0`, with status 2."""
    monkeypatch.setattr(starts, "fine_tune", lambda argv: 130)
    monkeypatch.setattr(starts, "pretrain", lambda work, method: None)
    with pytest.raises(SystemExit) as ended:
        starts.main(command(tmp_path, reviews))
    assert (ended.value.code, capsys.readouterr().err) == (130, "")


def command(folder: Path, reviews: Path) -> list[str]:
    """The arguments, with everything in a folder."""
    return [str(folder / "work"), "--reviews", str(reviews), "--minilm", "minilm", "--results", str(folder / "out")]


def test_what_is_finished_is_not_done_again_and_the_table_says_what_there_is(reviews, tmp_path, monkeypatch):
    done = []

    def fine_tune(argv: list[str]) -> int:
        if len(done) == 9:
            raise KeyboardInterrupt
        done.append(argv[1])
        Path(argv[1]).mkdir(parents=True)
        measures = {"accuracy": 0.5 + 0.1 * int(argv[argv.index("--seed") + 1])}
        Path(argv[1], "finetune.json").write_text(json.dumps({"measures": measures}))
        return 0

    monkeypatch.setattr(starts, "fine_tune", fine_tune)
    monkeypatch.setattr(starts, "pretrain", lambda work, method: None)
    assert starts.main(command(tmp_path, reviews)) == 130
    assert len(done) == 9
    lines = (tmp_path / "out/starts.md").read_text().splitlines()
    assert "| from scratch, dense | 0.600 ± 0.100 | 0.600 ± 0.100 |" in lines
    assert "| MiniLM as it is | not run | not run |" in lines
    done.append("")  # so that it goes on
    assert starts.main(command(tmp_path, reviews)) == 0
    assert len(set(done)) == len(done) == 1 + len(starts.ROWS) * len(starts.TASKS) * len(starts.SEEDS)
    found = json.loads((tmp_path / "out/starts.json").read_text())["tasks"]["reviews"]
    assert found["MiniLM as it is"]["seeds"] == [{"accuracy": 0.5}, {"accuracy": 0.6}, {"accuracy": 0.7}]
    assert 0.0 < found["majority"]["seeds"][0]["accuracy"] < 1.0
