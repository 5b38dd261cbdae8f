"""What has finished on files that hold another text now is not taken for what they would give."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ipu_bert import assemble
from ipu_bert.study import __main__ as command
from ipu_bert.study.definition import Study, read_study
from ipu_bert.study.results import Results, RunResult, collect
from ipu_bert.study.source import Sources, source_of_run

STUDY = """
base: tiny
settings: {train.steps: 12, train.stop_at: 2, sparsity.updates: 2, data.path: TEXT}
rows: {dense: {settings: {sparsity.method: dense}}, dynamic: {}}
"""


@pytest.fixture
def text(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "text"))


@pytest.fixture
def study(tiny, text, tmp_path) -> Study:
    tiny()
    (tmp_path / "mine.yaml").write_text(STUDY.replace("TEXT", str(text)))
    return read_study(str(tmp_path / "mine.yaml"))


@pytest.fixture
def result(study, finished) -> RunResult:
    """Of the first cell, from a run on another copy of the same files."""
    found = collect(study.cells[0], finished)
    assert found is not None
    return found


def changed(text: Path) -> None:
    path = next(text.iterdir())
    path.write_text(path.read_text() + "One more sentence.\n")


def test_files_that_have_changed_since_a_run_read_them_are_told(study, result, text):
    config, kept = study.cells[0].config, result.settings["source"]
    assert len(kept) == 64
    assert Sources().changed(config, kept) == ""
    changed(text)
    line = f"expected the files of data.path={text} as its run has read them, found them changed since"
    assert Sources().changed(config, kept) == line
    assert Sources().changed(config, None) == "", "an older version kept nothing"
    (next(text.iterdir())).write_bytes(b"\0\1\2")
    assert str(next(text.iterdir())) in Sources().changed(config, kept)
    shutil.rmtree(text)
    assert Sources().changed(config, kept) == "", "as on another machine"


def test_a_long_list_of_files_is_compared_by_its_checksum(study, finished, text, monkeypatch):
    monkeypatch.setattr("ipu_bert.data.source.MOST_LISTED", 10)
    config = study.cells[0].config
    assemble.open_data(config, progress=False)
    kept = source_of_run(config, assemble.find_data(config)[1].identity["text"])
    assert Sources().changed(config, kept) == ""
    changed(text)
    assert Sources().changed(config, kept).endswith("found them changed since")


def test_a_text_is_looked_at_once(study, result, monkeypatch):
    looked, sources = [], Sources()
    monkeypatch.setattr("ipu_bert.study.source._source_now", lambda corpus: looked.append(corpus) or "now")
    assert [sources.changed(cell.config, "now") for cell in study.cells] == ["", ""]
    assert len(looked) == 1


def test_a_run_whose_text_was_prepared_anew_since_says_nothing_of_its_files(study, finished, text):
    """What it has read is gone."""
    changed(text)
    found = collect(study.cells[0], finished)
    assert found is not None
    assert found.settings["source"] is None


@pytest.mark.parametrize("option", [[], ["--dry-run"], ["--time"]])
def test_every_command_refuses_what_has_finished_on_another_text(study, result, text, tmp_path, capsys, option):
    results = Results(tmp_path / "results" / "mine")
    results.add(result)
    changed(text)
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    assert command.main([study.asked, *folders, *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {results.path}: dense: expected the files of data.path={text} as its run has read")
    assert line.endswith("; bring back what has changed, or begin anew with --results and --runs in new folders")


def test_a_page_of_what_there_is_can_still_be_made(study, result, text, tmp_path, capsys):
    """It needs no text, and says that what was read is no longer there."""
    Results(tmp_path / "results" / "mine").add(result)
    changed(text)
    assert command.main([study.asked, "--results", str(tmp_path / "results"), "--report"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"dense: expected the files of data.path={text} as its run has read" in line


def test_what_another_study_has_of_such_files_is_left_there(study, result, text, tmp_path):
    Results(tmp_path / "results" / "theirs").add(replace(result, row="their name of it"))
    mine = Results(tmp_path / "results" / "mine")
    assert list(mine.of_other_studies(study.cells)) == [study.cells[0].key]
    changed(text)
    assert mine.of_other_studies(study.cells) == {}
