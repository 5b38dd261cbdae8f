"""A run that goes on when what it began from is gone, is another one in the command, or lies in its own folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from run_history import assert_same_state

from ipu_bert import cli, evaluate
from ipu_bert.json_file import read_object

pytestmark = pytest.mark.usefixtures("blank_pictures")

Program = Callable[..., int]


@pytest.fixture
def program(tiny: Any, tmp_path: Path) -> Program:
    """The command line with a config of `tiny_settings` that leaves the model's sizes open; call it with overrides."""
    path = Path(tiny().run.dir).parent / "tiny.yaml"
    written = yaml.safe_load(path.read_text())
    written["model"] = {"dropout": 0.1}
    mine = path.with_name("open.yaml")
    mine.write_text(yaml.safe_dump(written))
    return lambda *overrides: cli.main(["--config", str(mine), "engine.threads=1", *overrides])


@pytest.fixture
def first(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "first"))


def told(capsys: pytest.CaptureFixture[str], kind: str) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(kind)]


def test_what_a_run_began_from_may_be_gone(program, first, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = (f"run.dir={folder}", f"model.init={first}")
    assert program(*arguments, "train.stop_at=2") == 0
    shutil.copytree(folder, tmp_path / "whole")
    assert program(*arguments, "train.stop_at=4", f"run.dir={tmp_path / 'whole'}", "--resume") == 0
    shutil.rmtree(first)
    capsys.readouterr()
    assert program(*arguments, "train.stop_at=3", "--resume", "auto", "--dry-run") == 0
    assert program(*arguments, "train.stop_at=3", "--resume", "auto") == 0
    (line,) = told(capsys, "gave way: data.tokenizer")
    assert line.startswith(f"gave way: data.tokenizer: {folder / 'tokenizer.json'}, which the run keeps, since {first}")
    assert cli.main(["--config", str(folder / "config.yaml"), "--resume", "train.stop_at=4"]) == 0
    assert_same_state(*(path / "checkpoints/step_00000004" for path in (tmp_path / "whole", folder)))
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "whole")]) == 0  # whose config has the tokenizer that is gone


def test_only_a_run_that_began_with_a_tokenizer_has_one_of_its_own(program, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    sizes = ("model.layers=2", "model.hidden_size=64", "model.heads=2", "model.max_positions=64")
    assert program(*sizes, f"run.dir={folder}", "data.tokenizer=typo.json", "--resume", "train.stop_at=3") == 2
    assert told(capsys, "error") == [
        "error: typo.json: cannot be read as a tokenizer: No such file or directory (os error 2)"
    ]


def test_a_copy_of_the_tokenizer_is_the_tokenizer(program, first, tmp_path):
    arguments = (f"run.dir={tmp_path / 'run'}", f"model.init={first}")
    assert program(*arguments, "train.stop_at=2") == 0
    copy = shutil.copy(first / "tokenizer.json", tmp_path / "copy.json")
    spelled = tmp_path / "run" / ".." / "run" / "tokenizer.json"
    for step, tokenizer in ((3, copy), (4, spelled)):
        goes_on = (*arguments, f"data.tokenizer={tokenizer}", "data.vocab_size=700", "--resume")
        assert program(*goes_on, f"train.stop_at={step}", "--dry-run") == 0
        assert program(*goes_on, f"train.stop_at={step}") == 0


def test_another_start_has_no_effect_on_a_run_that_goes_on(program, first, tmp_path, capsys):
    folder, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(first, other)
    assert program(f"run.dir={folder}", f"model.init={first}", "train.stop_at=2") == 0
    for step, said in (
        (3, {f"model.init={other}": f"from {first}", "sparsity.init_pattern=random": "with magnitude"}),
        (4, {}),
    ):
        capsys.readouterr()
        assert program(f"run.dir={folder}", *said, "--resume", f"train.stop_at={step}") == 0
        expected = [f"no effect: {setting}, since the run began {origin}" for setting, origin in said.items()]
        lines = told(capsys, "no effect")
        assert [line for line in lines if "init" in line] == expected
        for config in (yaml.safe_load((folder / "config.yaml").read_text()), state_of(folder, step)["config"]):
            assert (config["model"]["init"], config["sparsity"]["init_pattern"]) == (str(first), "magnitude")
        assert not (folder / "pattern_start_end.png").exists()  # it would show a start that was none


def test_a_setting_that_does_nothing_makes_no_other_run(program, tmp_path, capsys):
    folder = tmp_path / "run"
    assert program(f"run.dir={folder}", "train.stop_at=2") == 0
    shutil.copytree(folder, tmp_path / "whole")
    assert program(f"run.dir={tmp_path / 'whole'}", "--resume", "train.stop_at=3") == 0
    capsys.readouterr()
    assert program(f"run.dir={folder}", "--resume", "train.stop_at=3", "optim.dense_lr=0.5") == 0
    assert told(capsys, "no effect: optim") == ["no effect: optim.dense_lr=0.5, since optim.lr is 0.001"]
    assert_same_state(*(tmp_path / name / "checkpoints/step_00000003" for name in ("whole", "run")))


def state_of(folder: Path, step: int) -> dict[str, Any]:
    return read_object(folder / f"checkpoints/step_{step:08d}/state.json")


def test_a_run_that_began_at_random_goes_on_so(program, first, finished, capsys):
    sizes = ("model.layers=2", "model.hidden_size=64", "model.heads=2", "model.max_positions=64")
    assert program(*sizes, f"run.dir={first}", f"model.init={finished}", "--resume", "train.stop_at=3") == 0
    assert told(capsys, "no effect: model") == [
        f"no effect: model.init={finished}, since the run began from random weights"
    ]
    assert state_of(first, 3)["config"]["model"]["init"] == ""


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/step_00000002"])
def test_a_start_in_the_runs_own_folder_is_refused(program, first, inside, capsys):
    """It was moved aside: the same command found no model once the run had been killed before its first checkpoint."""
    for more in ((), ("--dry-run",), ("--resume", "auto")):
        if more == ("--resume", "auto"):
            (first / "checkpoints").rename(first.with_name("elsewhere"))  # nothing to go on from
            if inside:
                continue
        assert program(f"run.dir={first}/../{first.name}", f"model.init={first / inside}", *more) == 2
        (line,) = told(capsys, "error")
        assert line.startswith(f"error: model.init: expected a model outside of run.dir {first}/../first, whose")
    assert not first.with_name("first.1").exists()


@pytest.mark.parametrize("inside", ["", "data"])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_prepared_text_in_the_runs_own_folder_is_refused_before_it_is_made(
    inside, there, more, program, first, capsys, monkeypatch
):
    """All of it was prepared, and then the folder was none for a run, by reason of the text in it."""
    run = first if there else first.with_name("new")
    monkeypatch.setattr("ipu_bert.assemble.open_data", None)
    assert program(f"run.dir={run}", f"data.dir={run}/../{run.name}/{inside}", *more) == 2
    (line,) = told(capsys, "error")
    assert line.startswith(
        f"error: data.dir: expected a folder outside of run.dir {run}, which a new run has to itself"
    )
    assert there or not run.exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_folder_of_something_else_is_told_before_the_text_is_prepared(more, program, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    monkeypatch.setattr("ipu_bert.assemble.open_data", None)
    for found in ("data", "data and 1 more"):
        assert program(f"run.dir={tmp_path / 'mine'}", *more) == 2
        (line,) = told(capsys, "error")
        assert line.endswith(
            f"mine: expected a new or empty folder or an earlier run's, found other files in it: {found}"
        )
        (tmp_path / "mine" / "thesis.txt").write_text("mine")


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--resume", "auto")])
@pytest.mark.parametrize(
    "path", ["{run}/mine.txt", "[{away}/other.txt, {run}/../first/mine.txt]", "{run}/*.txt", "{away}/**/*.txt", "{run}"]
)
def test_text_in_the_runs_own_folder_is_refused_before_it_is_moved(path, more, program, first, tmp_path, capsys):
    """It was moved aside with the earlier run, which neither --resume nor evaluate found a text for any more."""
    away = tmp_path / "away"
    away.mkdir()
    for text in (first / "mine.txt", away / "other.txt"):
        text.write_text("One sentence. And another one.\n\n" * 9)
    (away / "link").symlink_to(first)
    shutil.rmtree(first / "checkpoints")
    assert program(f"run.dir={first}", f"data.path={path.format(run=first, away=away)}", *more) == 2
    (line,) = told(capsys, "error")
    assert line.startswith(f"error: data.path: expected text outside of run.dir {first}, whose earlier run a new one")
    name = "metrics.jsonl" if path == "{run}" else "mine.txt"
    assert line.endswith(f"{name}'; name a new folder with run.dir=FOLDER")
    assert not first.with_name("first.1").exists()


def test_text_above_the_runs_own_folder_is_read(program, first, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"Sentence {n}. And another one.\n\n" for n in range(200)))
    (first / "mine.txt").touch()
    wanted = (f"data.path={tmp_path}", f"data.dir={tmp_path / 'data'}", "data.vocab_size=200")
    assert program(*wanted, f"run.dir={first}", "train.stop_at=1", "--dry-run") == 0
