"""A study as its user runs it: real runs in processes of their own, a failure, a stop, and nothing done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ipu_bert.config import load_config
from ipu_bert.record.metrics import read_metrics
from ipu_bert.study import __main__ as command
from ipu_bert.study import run as runner
from ipu_bert.study.definition import read_study
from ipu_bert.study.results import Results
from ipu_bert.study.run import run_cells

STUDY = """
about: What these tests need.
base: tiny
settings: {train.steps: 4, sparsity.updates: 2, engine.threads: 1}
rows:
  dense: {settings: {sparsity.method: dense}}
  dynamic: {settings: {}}
  broken: {settings: {data.tokenizer: gone}}
grid: {run.seed: [0]}
compare: [[dynamic, dense]]
figures: [steps, explored, seconds]
"""


@pytest.fixture
def study(tiny, tmp_path) -> Path:
    tiny()
    path = tmp_path / "trial.yaml"
    path.write_text(STUDY)
    return path


class StopError(BaseException):
    """As a signal raises it."""


def test_a_study_goes_on_after_a_stop_and_repeats_nothing(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the row that is broken asks it for a tokenizer, for a minute
    found, said = read_study(str(study)), []
    runs, results = tmp_path / "runs" / "studies" / "trial", tmp_path / "results" / "trial"

    def stop_at_the_second(line: str) -> None:
        said.append(line)
        if line.startswith("starts: dynamic"):
            raise StopError

    with pytest.raises(StopError):
        run_cells(found.cells, Results(results), runs, 1, stop_at_the_second)
    assert len(Results(results).by_key) == 1
    assert said[0] == "0 of 3 runs are finished; 1 at a time"
    dense = runs / found.cells[0].folder
    before = (dense / "metrics.jsonl").stat().st_mtime_ns

    assert command.main([str(study), "--jobs", "2"]) == 1
    err = capsys.readouterr().err
    assert "1 of 3 runs are finished; 2 at a time" in err
    assert "failed: broken, seed 0: exit status 2: error: " in err
    assert "gone" in err.split("failed: broken")[1]
    assert (dense / "metrics.jsonl").stat().st_mtime_ns == before
    kept = Results(results).by_key
    assert {run.row for run in kept.values()} == {"dense", "dynamic"}
    dynamic = next(run for run in kept.values() if run.row == "dynamic")
    records = read_metrics(runs / found.cells[1].folder / "metrics.jsonl")
    evals = [(r["step"], r["mlm_loss"]) for r in records if r["kind"] == "eval"]
    assert [(e.step, e.mlm_loss) for e in dynamic.evaluations] == evals
    assert [u.step for u in dynamic.updates] == [r["step"] for r in records if r["kind"] == "update"] == [2]
    assert dynamic.sequences == 4 * 4

    page = (results / "report.md").read_text()
    assert "2 of 3 runs have finished" in page
    assert f"| dense | 1 of 1 | {kept[found.cells[0].key].mlm_loss:.4f} |" in page
    assert {path.name for path in results.glob("*.svg")} == {"steps.svg", "explored.svg"}
    files = {path.name: path.read_bytes() for path in results.iterdir()}
    assert command.main([str(study), "--report"]) == 0
    assert {path.name: path.read_bytes() for path in results.iterdir()} == files

    monkeypatch.setattr(command, "REPEATS", 1)
    study.write_text(STUDY.replace("  broken: {settings: {data.tokenizer: gone}}\n", ""))
    assert command.main([str(study), "--time"]) == 0
    (machine,) = json.loads((results / "seconds.json").read_text())["machines"]
    assert machine["rows"].keys() == {"dense", "dynamic"}
    assert machine["rows"]["dynamic"]["updates"] == 1
    assert "Seconds a step, all in turn in one process" in (results / "report.md").read_text()
    assert len(list(results.glob("seconds_*.svg"))) == 1


def test_a_plan_says_what_waits_and_a_damaged_result_is_named(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([str(study), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("waits    ") == 3
    assert "3 runs," in out
    assert "none has finished here yet" in out
    assert not (tmp_path / "results").exists()
    assert command.main([str(study), "--report"]) == 2
    assert "expected the result of at least one run of trial, found none" in capsys.readouterr().err
    monkeypatch.setattr(command, "REPEATS", 1)
    study.write_text(STUDY.replace("  broken: {settings: {data.tokenizer: gone}}\n", ""))
    assert command.main([str(study), "--time"]) == 0
    assert (tmp_path / "results" / "trial" / "seconds.json").exists()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        (tmp_path / "results" / "trial" / "seconds.json").write_text("{")
        patch.setattr(command, "measure_seconds", lambda *_: pytest.fail("measured before it is known what is there"))
        assert command.main([str(study), "--time"]) == 2
        assert "seconds.json: expected seconds by machine, found" in capsys.readouterr().err
    damaged = tmp_path / "results" / "trial" / "results.json"
    damaged.parent.mkdir(parents=True, exist_ok=True)
    for text in ('{"runs": [{"key": 1}]}', "[]", '{"runs": 3}', "{"):
        damaged.write_text(text)
        assert command.main([str(study), "--report"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {Path('results/trial/results.json')}: expected the results")


@pytest.mark.parametrize("option", [[], ["--time"]])
def test_a_run_that_outlives_its_study_keeps_another_from_being_begun(study, tmp_path, monkeypatch, capsys, option):
    """As after SIGKILL of the study alone: its runs go on, and what comes out is theirs."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    results = tmp_path / "results" / "trial"
    results.mkdir(parents=True)
    lock = command._only_one(results)
    with monkeypatch.context() as patch:
        patch.setattr(runner.sys, "executable", str(program))
        begun: list[runner._Running] = []
        assert runner._start(read_study(str(study)).cells[0], tmp_path / "runs", begun) == ""
        (left,) = begun
    try:
        lock.close()
        assert (
            command.main([str(study), *option, "--results", str(results.parent), "--runs", str(tmp_path / "no")]) == 2
        )
        expected = f"error: {results}: another process runs this study, or a run that it began goes on\n"
        assert capsys.readouterr().err == expected
    finally:
        left.process.kill()
        left.process.wait()
    command._only_one(results).close()


def test_two_studies_do_not_share_their_runs(study, tmp_path, capsys):
    """Each run of the second failed, and its last words were those of the first one's, in a log that both wrote."""
    with command._only_one(tmp_path / "runs" / "trial"):
        assert command.main([str(study), "--results", str(tmp_path / "b"), "--runs", str(tmp_path / "runs")]) == 2
    folder = tmp_path / "runs" / "trial"
    line = f"error: {folder}: another process runs this study, or a run that it began goes on\n"
    assert capsys.readouterr().err == line
    assert {path.name for path in folder.iterdir()} == {".lock"}


def test_what_an_earlier_process_left_is_not_the_result_of_a_run_that_failed(study, finished, tmp_path):
    """As where its text has changed since: the run refuses to go on."""
    cell = replace(read_study(str(study)).cells[1], config=load_config(str(finished / "config.yaml"), []))
    results = Results(tmp_path / "results")
    for status, problem in ((2, "exit status 2: error: why"), (0, "")):
        run = runner._Running(cell, finished, SimpleNamespace(returncode=status))
        run.log.write_text("error: why\n")
        assert runner._finish(run, results, [cell]).partition(" (all it said")[0] == problem
        assert bool(results.by_key) == (not problem)
    run.log.unlink()
    assert "No such file" in runner._finish(replace(run, process=SimpleNamespace(returncode=2)), results, [cell])
