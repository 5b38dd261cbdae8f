"""The command line: what its words mean together, and that who reads along changes nothing of the run."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from compiler import needs_kernels
from run_history import steps

import run_pretraining
from ipu_bert import checkpoint, cli
from ipu_bert.data import prepare
from ipu_bert.ranks import Ranks
from sparse_ops import native
from sparse_ops.arguments import Parser

ROOT = Path(run_pretraining.__file__).parent
pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_readers_that_have_gone_change_nothing_of_a_run(program, tiny, tmp_path, monkeypatch):
    """A run, and its way back under other conditions; that nothing is printed in another way, ruff sees."""
    for stream in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(f"sys.{stream}", os.fdopen(writer, "w", encoding="utf-8"))
    run = tmp_path / "run"
    assert program("train.stop_at=4") == 0
    back = str(run / "checkpoints" / "step_00000002")
    assert program("train.stop_at=3", "engine.kernel=torch", "--resume", back) == 0
    assert (run / "report.md").exists()
    assert steps(run / "checkpoints") == [2, 3]
    assert program("--dry-run") == 0
    prepare._bar("text", 1, progress=True).close()


def test_a_rank_that_has_not_looked_for_a_checkpoint_judges_no_place(program, tmp_path, monkeypatch, capsys):
    """After a kill just before a run's config.yaml a plan to go on was refused by rank 1 alone."""

    class Second(Ranks):
        index = 1

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    assert program("--dry-run") == 2
    assert "found other files in it: notes.txt" in capsys.readouterr().err
    monkeypatch.setattr(cli, "join", Second)
    assert program("--dry-run") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("moment", "name", "status", "line"),
    [
        ("importing", "SIGINT", 130, "stopped"),
        ("importing", "SIGUSR1", 75, "stopped by SIGUSR1;"),
        ("parsing", "SIGINT", 130, "stopped"),
        ("within argparse", "SIGINT", 130, "stopped"),
    ],
)
def test_a_signal_before_the_program_has_begun_is_one_line(moment, name, status, line, program, monkeypatch, capsys):
    """A scheduler's ended it with 138, which no job that waits for 75 is begun again by."""

    class Stop:
        def find_spec(self, module: str, *_: object) -> None:
            if module == "ipu_bert.cli":
                signal.raise_signal(signal.Signals[name])

    def parser() -> None:
        signal.raise_signal(signal.Signals[name])

    def usage(_: Parser) -> str:
        """Asked for before argparse has kept what it restores at its end: such a Ctrl-C was its traceback."""
        signal.raise_signal(signal.Signals[name])
        return "usage: "

    if moment == "importing":
        monkeypatch.delattr("ipu_bert.cli", raising=False)
        monkeypatch.delitem(sys.modules, "ipu_bert.cli", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Stop(), *sys.meta_path])
    elif moment == "parsing":
        monkeypatch.setattr("ipu_bert.cli._parser", parser)
    else:
        monkeypatch.setattr(Parser, "format_usage", usage)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs without it
    try:
        assert program() == status
    finally:
        signal.signal(signal.SIGINT, before)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)


def test_who_waits_for_other_ranks_ends_by_a_signal_at_once(program, monkeypatch):
    """A handler in Python runs once torch's call is over: SIGTERM was not heard for as long as a rank was missing."""
    found = []

    def join() -> None:
        found.append(signal.getsignal(signal.SIGTERM))
        raise KeyboardInterrupt

    monkeypatch.setattr("ipu_bert.cli.join", join)
    assert program() == 130
    assert found == [signal.SIG_DFL]


def test_json_is_of_a_plan(program, tmp_path, capsys):
    assert program("--json") == 2
    assert (
        capsys.readouterr().err == "error: --json: expected --dry-run, --measure or --throughput with it, found none\n"
    )
    assert not (tmp_path / "run").exists()


def planned(capsys) -> dict[str, object]:
    return json.loads(capsys.readouterr().out)


def test_the_last_of_two_values_wins_wherever_resume_stands(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checkpoint, "find", lambda path: path)
    monkeypatch.setattr(checkpoint, "read_info", lambda path: {"step": 2})
    monkeypatch.setattr("ipu_bert.cli.check_goes_on", lambda *_: None)
    for arguments in (
        ("train.stop_at=5", "--resume", "train.stop_at=4"),
        ("--resume", "train.stop_at=5", "train.stop_at=4"),
        ("--resume", "latest", "train.stop_at=5", "train.stop_at=4"),
    ):
        assert program("--dry-run", "--json", *arguments) == 0
        plan = planned(capsys)
        assert (plan["stop_at"], plan["goes_on_from"]) == (4, str(tmp_path / "run"))


def test_a_path_that_is_not_there_belongs_to_resume_whatever_signs_it_has(program, tmp_path, capsys):
    """It was taken for an override, and the run for one whose newest checkpoint was asked for."""
    for path in (str(tmp_path / "lr=0.1" / "x"), "runs/lr=0.1"):
        assert program("--dry-run", "--resume", path) == 2
        assert capsys.readouterr().err.startswith(f"error: checkpoint: expected {path} to be")
    assert program("--dry-run", "--resume", f"data.path={'x' * 300}") == 2
    assert capsys.readouterr().err.startswith(f"error: checkpoint: expected {tmp_path / 'run'} to be")


def test_an_option_given_twice_is_told(program, capsys):
    """The last one counted, without a word: another run than the first named."""
    assert program("--dry-run", "--config", "quickstart", "train.stop_at=4") == 0
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("no effect: --config ")
    assert first.endswith("tiny.yaml, since --config quickstart comes after it")
    assert not [line for line in others if "comes after" in line]


def test_all_commands_tell_it_each_time_they_read_a_line(capsys):
    parser = Parser()
    parser.add_argument("--number", type=int)
    parser.add_argument("--names", "--words", nargs="+")
    for line, told in (
        ("--number 7", ""),
        ("--number 7 --number 7", ""),
        ("--number 7 --number 8", "no effect: --number 7, since --number 8 comes after it\n"),
        ("--names a b --words c", "no effect: --names a b, since --words c comes after it\n"),
    ):
        for _ in range(2):
            found = parser.parse_args(line.split())
            assert str(found.number or found.names[0]) == line.split()[-1]
            assert capsys.readouterr().err == told
    plain = {
        path.relative_to(ROOT).as_posix()
        for folder in ("ipu_bert", "sparse_ops")
        for path in (ROOT / folder).rglob("*.py")
        if "argparse.ArgumentParser(" in path.read_text(encoding="utf-8")
    }
    assert plain == {"sparse_ops/build.py"}  # no option of its has a value


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_of_fewer_threads_than_asked_for_says_so_at_its_start(program, monkeypatch, capsys):
    monkeypatch.setattr("sparse_ops.openmp.use_threads", lambda _: "threads: expected 2, found 1: OMP_THREAD_LIMIT=1")
    assert program("train.stop_at=1") == 0
    line = "engine.threads: expected 2, found 1: OMP_THREAD_LIMIT=1\n"
    assert capsys.readouterr().err.count(line) == 1


def test_a_plan_is_of_the_steps_until_the_stop(program, capsys):
    assert program("--dry-run", "--json") == 0
    whole = planned(capsys)
    assert program("--dry-run", "--json", "train.stop_at=3") == 0
    part = planned(capsys)
    assert (part["steps"], part["stop_at"], part["sequences"], part["tokens"]) == (6, 3, 3 * 4, 3 * 4 * 32)
    assert (
        part["pattern_updates"] == [step for step in whole["pattern_updates"] if step <= 3] != whole["pattern_updates"]
    )


def test_a_plan_to_go_on_needs_a_checkpoint(program, tmp_path, capsys):
    assert program("--dry-run", "--resume", str(tmp_path / "no")) == 2
    assert f"error: checkpoint: expected {tmp_path / 'no'} to be" in capsys.readouterr().err
    assert program("--dry-run", "--resume", "auto") == 0


@pytest.mark.usefixtures("blank_pictures")
def test_a_plan_goes_on_only_where_the_run_would(program, tmp_path, capsys):
    """It said that it goes on, and the run itself was refused."""
    assert program("train.stop_at=2") == 0
    for there in (True, False):  # the text that is prepared
        data = [] if there else [f"data.dir={tmp_path / 'elsewhere'}"]
        for refused, said in (
            (["optim.lr=0.25"], "is of another run: optim.lr: expected 0.25, found"),
            (["train.stop_at=1"], "expected a step of at most 1, found 2"),
        ):
            for command in (["--dry-run"], []) if there else (["--dry-run"],):
                capsys.readouterr()
                assert program(*command, "--resume", "auto", *refused, *data) == 2
                assert said in capsys.readouterr().err.splitlines()[-1]
        assert program("--dry-run", "--json", "--resume", "auto", *data) == 0
        assert planned(capsys)["goes_on_from"] == str(tmp_path / "run" / "checkpoints" / "step_00000002")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE: expected a whole number, as torchrun sets it, found 'two'"),
        ("RANK", "-1", "RANK: expected a whole number, as torchrun sets it, found '-1'"),
        ("RANK", "2", "RANK: expected a number below WORLD_SIZE=2, as torchrun sets it, found 2"),
        ("MASTER_PORT", "", "MASTER_PORT: expected a whole number, as torchrun sets it, found ''"),
        ("MASTER_PORT", "70000", "ranks: expected to meet at localhost:70000: "),
    ],
)
def test_ranks_that_cannot_be_are_one_line(program, monkeypatch, capsys, name, value, said):
    right = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for key, text in {**right, name: value}.items():
        monkeypatch.setenv(key, text)
    assert program("--dry-run") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {said}")


@pytest.mark.parametrize("wrong", [pytest.param("level", marks=needs_kernels), "native"])
def test_kernels_that_cannot_be_had_are_told_before_the_text_is_prepared(program, monkeypatch, tmp_path, capsys, wrong):
    if wrong == "level":
        monkeypatch.setenv("SPARSE_OPS_LEVEL", "mmx")
        said = "SPARSE_OPS_LEVEL: expected one of "
    else:
        monkeypatch.setattr(native, "why_not", lambda: "no C++ compiler")
        said = "engine.kernel: expected auto or torch here, found native: no C++ compiler"
    assert program("engine.kernel=native", f"data.dir={tmp_path / 'text'}") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {said}")
    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize("inside", ["", "/below/it"])
@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--resume", "auto"), ("--throughput",)])
@pytest.mark.parametrize("key", ["run.dir", "data.dir"])
def test_a_file_in_the_place_of_a_folder_is_told_by_the_settings_name(key, more, inside, program, tmp_path, capsys):
    """A run ended in `Not a directory`, and a plan did not see it."""
    (tmp_path / "file").touch()
    assert program(f"{key}={tmp_path / 'file'}{inside}", *more) == 2
    line = f"error: {key}: expected a folder, or nothing yet, found the file '{tmp_path / 'file'}'\n"
    assert capsys.readouterr().err == line


def test_a_file_in_the_place_of_the_folder_of_all_runs_is_told(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    assert program("run.dir=''") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("found the file 'runs'")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("language", "xx1", "expected auto or an ISO 639 code, as de, found 'xx1'"),
        ("encoding", "utf-9", "expected a name that Python knows, as utf-8 or cp1251, found 'utf-9'"),
    ],
)
def test_what_the_text_refuses_is_called_as_its_setting_is(key, value, expected, more, program, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("One sentence. And another one.\n\n" * 9)
    assert program(f"data.path={text}", f"data.{key}={value}", *more) == 2
    assert capsys.readouterr().err == f"error: data.{key}: {expected}\n"


def test_too_small_a_vocabulary_is_called_as_its_setting_is(program, tmp_path, capsys):
    letters = "".join(chr(0x4E00 + number) + " " for number in range(300))
    (tmp_path / "text.txt").write_text("\n\n".join(f"{letters} {number}." for number in range(9)))
    wanted = (f"data.path={tmp_path / 'text.txt'}", f"data.dir={tmp_path / 'data'}", "data.vocab_size=128")
    assert program(*wanted) == 2
    assert "error: data.vocab_size: expected at least " in capsys.readouterr().err


def test_an_error_about_a_name_with_escape_codes_does_not_colour_the_terminal(program, tmp_path, capsys):
    (tmp_path / "\x1b[31mred.txt").touch()
    assert program(f"data.path={tmp_path}/*.txt") == 2
    assert "\\x1b[31mred.txt: expected text, found an empty file (0 bytes)\n" in capsys.readouterr().err
