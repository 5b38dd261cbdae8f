"""A new run does not move aside what another run has in a folder below its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from run_history import assert_same_state, steps

from ipu_bert.config import from_dict
from ipu_bert.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("blank_pictures")


def refusal(run: Path, inner: Path, more: str = "") -> str:
    return (
        f"run.dir {run}: expected an earlier run alone, which a new one moves aside with all that is in its folder, "
        f"found another run in it: {inner}{more}; name a new folder with run.dir=FOLDER, or move that run elsewhere"
    )


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("below", ["phase2", "a/b/c/phase2"])
def test_a_new_run_is_refused_where_another_one_lies_in_its_folder(below, program, tmp_path, monkeypatch, capsys):
    """`--resume auto` of the inner run began at step 0 without a word: what it had saved was in run.1/phase2."""
    run, inner = tmp_path / "run", tmp_path / "run" / below
    assert program("train.stop_at=2") == 0
    assert program(f"run.dir={inner}", "train.stop_at=4") == 0  # a run within another's folder is nobody's trouble
    before = everything(tmp_path)
    monkeypatch.setattr("ipu_bert.assemble.open_data", None)  # told before the text is prepared
    for more in ((), ("--dry-run",), ("--resume", "auto")):
        if "auto" in more:
            (run / "checkpoints").rename(tmp_path / "elsewhere")  # nothing to go on from: a new run
        capsys.readouterr()
        assert program("train.stop_at=2", *more) == 2
        assert capsys.readouterr().err.splitlines() == [f"error: {refusal(run, inner)}"]
    (tmp_path / "elsewhere").rename(run / "checkpoints")
    assert everything(tmp_path) == before
    monkeypatch.undo()
    assert program("--resume", "auto") == 0  # the outer run goes on, and back, beside it
    assert program("--resume", str(run / "checkpoints" / "step_00000002"), "train.stop_at=4") == 0
    assert program(f"run.dir={inner}", "--resume", "auto") == 0
    assert steps(inner / "checkpoints") == [2, 4, 6]
    inner.rename(tmp_path / "away")
    assert program() == 0
    assert steps(tmp_path / "run.1" / "checkpoints") == [2, 4]
    assert_same_state(*(folder / "checkpoints" / "step_00000006" for folder in (run, tmp_path / "away")))


def test_a_run_that_has_just_begun_in_it_is_found_by_its_lock(tiny, tmp_path):
    with RunFolder(tiny(), None) as outer:
        pass
    inner = outer.path / "phase2"
    with RunFolder(tiny(f"run.dir={inner}"), None):
        assert not (inner / "checkpoints").exists()
        with pytest.raises(ValueError, match=f"^{re.escape(refusal(outer.path, inner))}$"):
            RunFolder(tiny(), None)
    # It has let go, and has saved nothing: nothing that goes on is lost.
    RunFolder(tiny(), None).__exit__(None, None, None)
    assert (tmp_path / "run.1" / "phase2" / "config.yaml").exists()


def test_a_branch_that_was_gone_on_in_is_a_run_of_its_own(program, tmp_path, capsys):
    run = tmp_path / "run"
    assert program("train.stop_at=4") == 0
    assert program("--resume", str(run / "checkpoints" / "step_00000002"), "train.stop_at=4") == 0
    (branch,) = (run / "branches").iterdir()
    assert program("--resume", str(branch / "checkpoints" / "step_00000004"), f"run.dir={branch}") == 0
    before = everything(tmp_path)
    capsys.readouterr()
    assert program("train.stop_at=2") == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {refusal(run, branch)}"]
    assert everything(tmp_path) == before


def begun(folder: Path) -> Path:
    """What a run has that goes on, as far as its place is judged."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    return folder


def test_what_is_the_runs_own_a_link_to_it_and_what_cannot_be_read_are_no_other_run(as_user):
    config = from_dict({"run": {"dir": str(as_user / "run")}, "log": {"tensorboard": False}})
    with RunFolder(config, None) as folder:
        pass
    for own in ("checkpoints", "best", "tensorboard"):
        begun(folder.path / own / "copy")
    (folder.path / "branches" / "after_step_00000002" / "checkpoints").mkdir(parents=True)
    (folder.path / "notes").mkdir()
    (folder.path / "notes" / "run").symlink_to(folder.path)
    (folder.path / "gone").symlink_to("nothing")
    (folder.path / "circle").symlink_to("circle")
    (folder.path / "config").mkdir()
    (folder.path / "config" / "config.yaml").touch()  # of whatever
    begun(folder.path / "closed" / "inner")
    (folder.path / "closed").chmod(0)
    (folder.path / "lock").mkdir()
    (folder.path / "lock" / ".lock").touch(0o444)
    RunFolder(config, None).__exit__(None, None, None)
    assert sorted(os.listdir(as_user)) == ["run", "run.1"]
    (as_user / "run.1" / "closed").chmod(0o700)


def test_runs_over_a_link_are_found_and_those_that_what_it_stands_for_holds_are_not(tiny, tmp_path):
    """run.dir=run/linked goes on over the link, which would be in run.1 with all else."""
    with RunFolder(tiny(), None) as folder:
        pass
    begun(tmp_path / "disk" / "inner")
    (folder.path / "all").symlink_to(tmp_path / "disk")
    RunFolder(tiny(), None).__exit__(None, None, None)
    (folder.path / "linked").symlink_to(tmp_path / "disk" / "inner")
    begun(folder.path / "other")
    with pytest.raises(ValueError, match=f"^{re.escape(refusal(folder.path, folder.path / 'linked', ' and 1 more'))}$"):
        RunFolder(tiny(), None)
