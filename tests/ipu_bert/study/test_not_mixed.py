"""A study that is changed between its runs does not put into one table what cannot be compared."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ipu_bert.config import as_dict
from ipu_bert.signals import stop
from ipu_bert.study import run as runner
from ipu_bert.study.definition import Cell, read_study
from ipu_bert.study.report import write_report
from ipu_bert.study.results import Results, RunResult, collect, deciding, other_settings

STUDY = """
base: tiny
settings: {train.steps: 4, sparsity.updates: 2}
rows: {Dense: {settings: {sparsity.method: dense}}, dynamic: {}}
"""


def cells(tmp_path: Path, **more: str) -> tuple[Cell, ...]:
    (tmp_path / "mine.yaml").write_text(
        STUDY.replace("}\nrows", "".join(f", {k}: {v}" for k, v in more.items()) + "}\nrows")
    )
    return read_study(str(tmp_path / "mine.yaml")).cells


@pytest.fixture
def made(tiny: Any, finished: Path, tmp_path: Path) -> dict[str, RunResult]:
    """A result of each cell of the study, with the numbers of another run."""
    tiny()
    (dense, dynamic) = cells(tmp_path)
    short = replace(dynamic.config, train=replace(dynamic.config.train, stop_at=2))
    found = collect(replace(dynamic, config=short), finished)
    assert found is not None
    assert re.fullmatch("[0-9a-f]{64}", found.settings["text"])

    def of(cell: Cell) -> RunResult:
        last = (replace(found.evaluations[-1], step=4),)
        settings = {**deciding(cell.config), "text": found.settings["text"]}
        return replace(found, key=cell.key, row=cell.row.label, steps=4, evaluations=last, settings=settings)

    return {cell.row.label: of(cell) for cell in (dense, dynamic)}


def test_a_runs_evaluations_by_other_batches_are_left_out(tiny, finished, tmp_path):
    """Where somebody took a study's run on with another `eval.batches`."""
    tiny()
    (_, dynamic) = cells(tmp_path)
    config = replace(dynamic.config, train=replace(dynamic.config.train, stop_at=2))
    run = Path(shutil.copytree(finished, tmp_path / "taken on"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    evaluations = [line for line in lines if '"eval"' in line]
    assert len(evaluations) == 2
    other = [line.replace('"batches": 2', '"batches": 1').replace('"step": 2', '"step": 1') for line in evaluations]
    (run / "metrics.jsonl").write_text("".join([*other, *lines]))
    found, whole = (collect(replace(dynamic, config=config), folder) for folder in (run, finished))
    assert found is not None
    assert whole is not None
    assert found.evaluations == whole.evaluations
    assert [evaluation.step for evaluation in found.evaluations] == [0, 2]
    assert (found.heldout_batches, whole.heldout_batches) == (2, 2)


def test_what_a_guess_comes_to_is_kept_as_the_run_s_report_has_it(tiny, finished, tmp_path):
    """On the words asked for; results of older versions have that of the whole text alone, and are still read."""
    tiny()
    (_, dynamic) = cells(tmp_path)
    short = replace(dynamic.config, train=replace(dynamic.config.train, stop_at=2))
    found = collect(replace(dynamic, config=short), finished)
    assert found is not None
    heldout = json.loads((finished / "report.json").read_text())["heldout"]
    assert found.word_frequencies_loss == heldout["word_frequencies_loss"] != heldout["unigram_entropy"]
    path = kept(tmp_path, found).path
    older = json.loads(path.read_text())
    del older["runs"][0]["word_frequencies_loss"]
    path.write_text(json.dumps(older))
    assert Results(path.parent).by_key == {found.key: replace(found, word_frequencies_loss=None)}
    older["runs"][0]["word_frequencies_loss"] = -1.0
    path.write_text(json.dumps(older))
    with pytest.raises(ValueError, match="word_frequencies_loss"):
        Results(path.parent)


def kept(folder: Path, *runs: RunResult) -> Results:
    results = Results(folder / "results")
    for run in runs:
        results.add(run)
    return Results(folder / "results")


def without(run: RunResult, *keys: str) -> RunResult:
    """As an older version kept it."""
    return replace(run, settings={key: value for key, value in run.settings.items() if key not in keys})


def test_another_text_under_the_same_settings_is_named_and_not_mixed(made, tmp_path):
    one, other = made["Dense"], made["dynamic"]
    found = cells(tmp_path)
    assert len(kept(tmp_path, one, other).finished(found)) == 2
    changed = replace(other, settings={**other.settings, "text": "0" * 64})
    results = kept(tmp_path, one)
    for run in (changed, replace(without(other, "text"), unigram_entropy=other.unigram_entropy + 1e-3)):
        with pytest.raises(ValueError, match=f"{found[1].title}: expected the text of {found[0].title}, found another"):
            results.check(run, found)
    study = read_study(str(tmp_path / "mine.yaml"))
    kept(tmp_path, changed)
    with pytest.raises(ValueError, match="expected the text of"):
        write_report(study, tmp_path / "results")
    assert len(kept(tmp_path, without(other, "text")).finished(found)) == 2
    elsewhere = [found[0], replace(found[1], config=replace(found[1].config, data=replace(found[1].config.data)))]
    elsewhere[1].config.data.path = "another"
    there = kept(tmp_path, replace(changed, key=elsewhere[1].key))
    assert len(there.finished(elsewhere)) == 2, "rows may have texts of their own"


def test_a_run_that_went_on_under_a_setting_that_does_nothing_is_still_its_study_s(tiny, tmp_path):
    """A resume under another dense_lr goes on, where optim.lr is a number; its study refused the run then."""
    tiny()
    cell = cells(tmp_path, **{"optim.lr": "1.0e-3"})[0]
    assert other_settings(cell, {**deciding(cell.config), "optim.dense_lr": 0.5}) == ""
    assert "expected optim.lr=0.001, found" in other_settings(cell, {**deciding(cell.config), "optim.lr": 0.5})
    auto = cells(tmp_path, **{"optim.lr": "auto", "optim.dense_lr": "1.0e-3"})[0]
    assert "found a run with optim.dense_lr=0.5" in other_settings(
        auto, {**deciding(auto.config), "optim.dense_lr": 0.5}
    )


def test_results_of_other_settings_are_refused_and_of_fewer_steps_are_not_finished(made, tmp_path):
    results = kept(tmp_path, *made.values())
    with pytest.raises(ValueError, match=r"Dense: expected eval.batches=3, found a run with eval.batches=2; bring"):
        results.finished(cells(tmp_path, **{"eval.batches": "3"}))
    assert results.finished(cells(tmp_path, **{"train.stop_at": "3"})) == {}
    older = kept(tmp_path, *(without(run, "eval.batches") for run in made.values()))
    assert len(older.finished(cells(tmp_path, **{"eval.batches": "3"}))) == 2, "it was not kept, and is not known"


def test_what_another_study_has_finished_is_not_run_again(made, tmp_path, monkeypatch):
    dense, dynamic = found = cells(tmp_path)
    theirs, damaged = Results(tmp_path / "theirs"), tmp_path / "a damaged one"
    theirs.add(replace(made["Dense"], row="their name of it", grid={"a": "1"}))
    theirs.add(replace(made["dynamic"], steps=3, evaluations=(replace(made["dynamic"].evaluations[-1], step=3),)))
    damaged.mkdir()
    (damaged / "results.json").write_text("{")
    mine = Results(tmp_path / "mine")
    assert mine.of_other_studies(found) == {dense.key: made["Dense"]}, (
        "under this study's name, and finished ones alone"
    )
    assert not mine.path.exists()
    started, said = [], []
    monkeypatch.setattr(runner, "_start", lambda cell, *_: started.append(cell) or "not this time")
    runner.run_cells(found, mine, tmp_path / "runs", 1, said.append)
    assert (started, said[0]) == ([dynamic], "1 of 2 runs are finished; 1 at a time")
    assert Results(mine.path.parent).by_key == {dense.key: made["Dense"]}


def test_a_run_on_another_text_than_that_of_what_is_there_is_not_begun(made, tmp_path, monkeypatch):
    """It was refused once it had come to its end, and so was every one after it."""
    results = Results(tmp_path / "mine")
    results.add(made["Dense"])
    prepared = SimpleNamespace(identity={"text": "0" * 64}, directory="data/other")
    monkeypatch.setattr(runner.assemble, "find_data", lambda config: ("", prepared))
    monkeypatch.setattr(runner, "_start", lambda *_: pytest.fail("it was started"))
    failed = runner.run_cells(cells(tmp_path), results, tmp_path / "runs", 1, lambda line: None)
    (line,) = failed.values()
    assert line.startswith("expected the text of Dense, found another one in data/other; bring back")
    prepared.identity["text"] = made["Dense"].settings["text"]
    monkeypatch.setattr(runner, "_start", lambda *_: "started")
    failed = runner.run_cells(cells(tmp_path), results, tmp_path / "runs", 1, lambda line: None)
    assert list(failed.values()) == ["started"]


def test_what_another_study_has_of_another_text_is_left_there(made, tmp_path):
    theirs, mine = Results(tmp_path / "theirs"), Results(tmp_path / "mine")
    theirs.add(replace(made["Dense"], settings={**made["Dense"].settings, "text": "0" * 64}))
    mine.add(made["dynamic"])
    assert mine.of_other_studies(cells(tmp_path)) == {}


@pytest.mark.parametrize("change", [{"eval": {"batches": 7}}, {"model": {"init": "other"}}, None])
def test_a_folder_with_the_run_of_other_settings_is_not_gone_on_in(tiny, tmp_path, monkeypatch, change):
    tiny()
    (cell, _) = cells(tmp_path)
    folder = tmp_path / "runs" / cell.folder
    folder.mkdir(parents=True)
    plain = as_dict(cell.config)
    for section, values in (change or {}).items():
        plain[section].update(values)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain) if change else "model: {unknown: 1}")
    monkeypatch.setattr(runner, "_start", lambda *_: pytest.fail("it was started"))
    failed = runner.run_cells([cell], Results(tmp_path), tmp_path / "runs", 1, lambda line: None)
    assert list(failed) == [cell.title]
    assert failed[cell.title].startswith(f"{folder / 'config.yaml'}: ")
    (folder / "config.yaml").write_text(yaml.safe_dump(as_dict(cell.config)))
    assert runner._other_run(cell, folder) == ""
    for own, words in ((folder, ""), (folder.parent, "expected data.tokenizer=")):
        plain = as_dict(cell.config)  # as after a resume while the given tokenizer was gone
        plain["data"]["tokenizer"] = str(own / "tokenizer.json")
        (folder / "config.yaml").write_text(yaml.safe_dump(plain))
        found = runner._other_run(cell, folder)
        assert words in found
        assert bool(words) == bool(found)


def test_time_left_is_never_negative_and_follows_no_clock_that_jumps(tiny, tmp_path, monkeypatch):
    """A run that was killed goes on from a step before its newest record."""
    tiny()
    (cell, _) = cells(tmp_path)
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the wall clock was asked"))
    progress = runner._Progress({cell.key: 1.0})
    progress._started -= 100.0
    records = tmp_path / "metrics.jsonl"
    for step, left in ((3, "not known"), (1, "not known"), (2, "about 3 min 20 s left"), (3, "about 50 s left")):
        records.write_text(f'{{"kind": "train", "step": {step}}}\n')
        if step == 3 and left == "not known":
            progress.begins(cell, tmp_path)
        assert left in progress.left()


def test_a_second_signal_leaves_no_run_untold():
    told = []

    def terminate() -> None:
        told.append(1)
        signal.raise_signal(signal.SIGINT)

    runs: Any = [SimpleNamespace(terminate=terminate, wait=lambda _: None) for _ in range(3)]
    stop(runs)
    assert told == [1, 1, 1]


def test_folders_of_runs_differ_where_case_does_not_count(tiny, tmp_path):
    tiny()
    (tmp_path / "mine.yaml").write_text(
        "base: tiny\nrows: {Row: {settings: {run.seed: 1}}, row: {settings: {run.seed: 2}}, ROW!: {}}\n"
    )
    assert len({cell.folder.casefold() for cell in read_study(str(tmp_path / "mine.yaml")).cells}) == 3
