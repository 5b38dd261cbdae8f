"""Ctrl-C while a command is still importing what it needs: a line, and the process ends by the signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_imports import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("ipu_bert", "sparse_ops")
    for path in (ROOT / package).rglob("*.py")
    if path.name == "__main__.py" or re.search(r"^if __name__ == ", path.read_text(encoding="utf-8"), re.MULTILINE)
}
COMMANDS = sorted(name.replace(".__main__", "") for name in MODULES)
FINDER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs without it

class Finder:
    def find_spec(self, module, *_):
        if module in ("numpy", "tokenizers", "torch", "yaml"):
            {act}

sys.meta_path.insert(0, Finder())
"""


def ended(folder: Path, act: str, commands: list[str]) -> dict[str, tuple[int, str]]:
    """Status and standard error of each command, all at once, where importing what it needs does `act`."""
    (folder / "sitecustomize.py").write_text(FINDER.format(act=act))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    running = {
        name: subprocess.Popen([sys.executable, "-m", name, "--help"], cwd=folder, env=env, stderr=subprocess.PIPE)
        for name in commands
    }
    said = {name: process.communicate()[1].decode() for name, process in running.items()}
    return {name: (process.returncode, said[name]) for name, process in running.items()}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_every_command_that_is_being_imported_hears_it(tmp_path: Path) -> None:
    assert {"ipu_bert.evaluate", "ipu_bert.study", "sparse_ops.tune", "sparse_ops.bench"} <= set(COMMANDS)
    found = ended(tmp_path, "signal.raise_signal(signal.SIGINT)", COMMANDS)
    by_signal = dict.fromkeys(COMMANDS, (-signal.SIGINT, "stopped\n"))
    assert found == {**by_signal, "ipu_bert": (130, "stopped\n")}  # which answers by itself


def test_any_other_error_stays_a_traceback(tmp_path: Path) -> None:
    for status, said in ended(tmp_path, "raise RuntimeError(7)", ["ipu_bert.evaluate", "sparse_ops.tune"]).values():
        assert status == 1
        assert "Traceback" in said
        assert said.endswith("RuntimeError: 7\n")


def test_the_program_without_a_package_that_works_is_one_line(tmp_path: Path) -> None:
    for name, (status, line) in {
        "numpy": (2, "error: ipu-bert needs a package that cannot be imported: numpy: another version\n"),
        "ipu_bert": (1, "ImportError: another version\n"),  # a fault of ours
    }.items():
        found = ended(tmp_path, f"raise ImportError('another version', name='{name}')", ["ipu_bert"])["ipu_bert"]
        assert (found[0], found[1][-len(line) :]) == (status, line)
        assert ("Traceback" in found[1]) == (status == 1)


def test_a_program_that_imports_the_library_has_its_own_way() -> None:
    program = "import sys, ipu_bert, sparse_ops; assert sys.excepthook is sys.__excepthook__"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
