"""A few kills of training; `make chaos` has hundreds, and of everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).with_name("chaos.py")


@pytest.mark.skipif(sys.platform != "linux", reason="loads a library before libc")
def test_killed_runs_end_like_the_unbroken_one(seed: int):
    root = str(CHAOS.parent.parent.parent)
    command = [sys.executable, str(CHAOS), "3", "--seed", str(seed), "--jobs", "train"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 findings" in done.stdout
