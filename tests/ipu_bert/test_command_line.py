"""The command line: what its words mean together, and that who reads along changes nothing of the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import pytest
from run_history import SHORT, steps

import run_pretraining
from ipu_bert.config import Config
from ipu_bert.data import prepare

pytestmark = pytest.mark.usefixtures("blank_pictures")


@pytest.fixture
def program(tiny: Callable[..., Config], tmp_path: Path) -> Callable[..., int]:
    return lambda *arguments: run_pretraining.main(["--config", str(tmp_path / "tiny.yaml"), *SHORT, *arguments])


def test_readers_that_have_gone_change_nothing_of_a_run(program, tiny, tmp_path, monkeypatch):
    """A run, its way back under other conditions, and what is prepared; that nothing is printed otherwise, ruff sees."""
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
