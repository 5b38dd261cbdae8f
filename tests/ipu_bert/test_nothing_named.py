"""What a script hands over of a variable that is not set is refused by every program: '' is no folder and no source."""

from __future__ import annotations

import importlib

import pytest

PREPARE = "ipu_bert.data.command_line parse"


@pytest.mark.parametrize(
    ("program", "options", "name"),
    [
        ("ipu_bert.evaluate main", [""], "run"),
        ("ipu_bert.pareto main", [""], "RUN"),
        ("ipu_bert.cli main", ["--config", "quickstart", "--resume", ""], "--resume"),
        ("ipu_bert.gradient_range main", ["--config", "quickstart", "--run", ""], "--run"),
        ("ipu_bert.study.__main__ main", ["pareto_small", "--report", "--runs", ""], "--runs"),
        ("ipu_bert.study.__main__ main", ["pareto_small", "--report", "--results", ""], "--results"),
        (PREPARE, ["--source", ""], "--source"),
        (PREPARE, ["--column", "", "--paths", "text.jsonl"], "--column"),
        (PREPARE, ["--encoding", "", "--paths", "text.txt"], "--encoding"),
        (PREPARE, ["--language", ""], "--language"),
        (PREPARE, ["--tokenizer", ""], "--tokenizer"),
        (PREPARE, ["--out", ""], "--out"),
    ],
)
def test_nothing_is_no_name(program, options, name, finished, monkeypatch, capsys) -> None:
    """In a run's folder most of them meant that run; no source was the presidents' messages."""
    monkeypatch.chdir(finished)
    module, function = program.split()
    with pytest.raises(SystemExit, match="2"):
        getattr(importlib.import_module(module), function)(options)
    said = capsys.readouterr().err
    assert f"argument {name}" in said
    assert ": expected a path or a name, found ''\n" in said
