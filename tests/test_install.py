"""What `pip install .` takes along: every package, and every file that is read at run time."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed_and_every_file_in_it_taken(project):
    tools = project["tool"]["setuptools"]
    code = {path.parent for name in ("sparse_ops", "ipu_bert") for path in (ROOT / name).rglob("*.py")}
    packages = {str(folder.relative_to(ROOT)).replace("/", "."): folder for folder in code}
    packages["ipu_bert.configs"] = ROOT / "configs"
    assert set(tools["packages"]) == set(packages)
    files = (p for root in ("sparse_ops", "ipu_bert", "configs") for p in (ROOT / root).rglob("*") if p.is_file())
    needed = {path for path in files if path.suffix not in (".py", ".pyc", ".so")}
    taken = {p for name, globs in tools["package-data"].items() for glob in globs for p in packages[name].glob(glob)}
    assert needed
    assert needed <= taken


def test_the_console_command_is_the_program(project, monkeypatch, capsys):
    module, name = project["project"]["scripts"]["ipu-bert"].split(":")
    command = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(sys, "argv", ["ipu-bert", "--config", "quickstart", "--dry-run"])
    assert command() == 0
    installed = capsys.readouterr().out
    import run_pretraining

    assert run_pretraining.main(sys.argv[1:]) == 0
    assert capsys.readouterr().out == installed != ""
