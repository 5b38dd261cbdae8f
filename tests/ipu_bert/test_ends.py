"""How commands end, and what they do not begin: errors in one line, a checkpoint that lies about its size."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
from full_disk import needs_full_disk

from ipu_bert import assemble, checkpoint, cli, evaluate, export_run
from ipu_bert.sealed_json import sealed
from sparse_ops.ends import with_one_line


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("x: expected 1,\nfound 2"), 2, "error: x: expected 1, found 2"),
        (OSError(28, "No space left on device", "/data/file"), 2, "error: /data/file: No space left on device"),
        (ValueError("a\x1b[31m\udce9: expected 1"), 2, r"error: a\x1b[31m\udce9: expected 1"),
        (MemoryError("3 GB"), 2, "error: out of memory: 3 GB"),
        (RuntimeError("can't start new thread"), 2, "error: out of threads: can't start new thread"),
        (BaseException("ThreadPoolBuildError {...}"), 2, "error: out of threads: ThreadPoolBuildError {...}"),
        (RuntimeError("can't allocate memory: 3 GB"), 2, "error: out of memory: can't allocate memory: 3 GB"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_a_user_can_cause_is_one_line(error, status, line, capsys):
    def act() -> None:
        raise error

    assert with_one_line(act) == status
    assert capsys.readouterr().err == line + "\n"


def test_a_fault_of_ours_is_not_hidden(capsys):
    def act() -> None:
        raise RuntimeError("index 7 is out of range")

    with pytest.raises(RuntimeError, match="index 7"):
        with_one_line(act)
    assert with_one_line(lambda: 3) == 0
    assert capsys.readouterr().err == ""


def test_a_package_of_others_that_is_missing_or_broken_is_named(tmp_path, monkeypatch, capsys):
    """It was a traceback of every command that imports what it needs when it needs it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_one.py").write_text("raise ImportError('another\\nversion')")
    (tmp_path / "incomplete.py").write_text("import no_such_package.part")
    for name, package, why in (
        ("broken_one", "broken_one", "another version"),
        ("incomplete", "incomplete", "No module named 'no_such_package'"),
        ("no_such_package.part", "no_such_package", "No module named 'no_such_package'"),
    ):
        assert with_one_line(lambda name=name: sparse_ops_imports(name)) == 2
        line = f"error: expected the package {package}, found that it cannot be imported: {why}\n"
        assert capsys.readouterr().err == line
    for name in ("sparse_ops.no_such_module", "ipu_bert.no_such_module"):  # a fault of ours
        with pytest.raises(ImportError, match="no_such_module"):
            with_one_line(lambda name=name: sparse_ops_imports(name))


def sparse_ops_imports(name: str) -> None:
    """As an import in a function of the project."""
    exec(f"import {name}", {"__name__": "sparse_ops.module"})


@pytest.mark.parametrize("command", ["evaluate", "export_run"])
def test_a_checkpoint_that_lies_about_its_size_is_refused_before_a_model_is_built(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = Path(shutil.copytree(checkpoint.find(finished), tmp_path / "step_00000099"))
    state = json.loads((path / "state.json").read_text())
    state["config"]["model"]["layers"], state["step"] = 300, 99
    (path / "state.json").write_text(sealed(state))

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(assemble, "make_model", never)
    main = {"evaluate": evaluate.main, "export_run": export_run.main}[command]
    assert main([str(path), *([str(tmp_path / "out")] if command == "export_run" else [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: checkpoint {path}: model.safetensors: expected the " in line


@needs_full_disk
@pytest.mark.parametrize("command", ["evaluate", "dry run", "config"])
def test_half_an_answer_is_none(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """As `--json > FILE` on a full disk."""
    commands = {
        "evaluate": lambda: evaluate.main([str(finished), "--batches", "1", "--json"]),
        "dry run": lambda: cli.main(["--config", str(finished / "config.yaml"), "--dry-run", "--json"]),
        "config": lambda: runpy.run_module("ipu_bert.config", run_name="__main__"),
    }
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stdout", full)
        try:
            status = commands[command]()
        except SystemExit as end:
            status = end.code
    assert status == 2
    assert capsys.readouterr().err == "error: standard output: No space left on device\n"
