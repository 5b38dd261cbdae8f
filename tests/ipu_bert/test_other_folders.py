"""Runs that go on in another folder than their own, and folders that hold another run or something else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from run_history import SHORT, history, steps, train

import run_pretraining
from ipu_bert import checkpoint
from ipu_bert.record.metrics import METRICS_FILE, read_metrics

pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_a_run_does_not_go_on_in_the_folder_of_another(tiny, tmp_path):
    other = train(tiny(*SHORT, "train.stop_at=2", f"run.dir={tmp_path / 'other'}"))
    folder = train(tiny(*SHORT, "train.stop_at=4", "run.name=existing"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    origin = other / "checkpoints" / "step_00000002"
    with pytest.raises(
        ValueError, match=f"run.dir {folder}: expected the run that {origin} is of, or a new folder, found"
    ):
        train(tiny(*SHORT), origin)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    elsewhere = train(tiny(*SHORT, f"run.dir={tmp_path / 'new'}"), origin)
    assert steps(elsewhere / "checkpoints") == [2, 4, 6]  # and a copy of what it began with
    assert steps(other / "checkpoints") == [2]


def test_a_folder_of_something_else_is_no_place_to_go_on_either(tiny, tmp_path):
    origin = checkpoint.find(train(tiny("train.stop_at=1", f"run.dir={tmp_path / 'other'}")))
    config = tiny()
    Path(config.run.dir).mkdir()
    (Path(config.run.dir) / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="found another run or other files"):
        train(config, origin)
    assert os.listdir(config.run.dir) == ["thesis.tex"]


def test_a_run_that_was_moved_says_where_it_goes_on_or_begins(program, tmp_path, capsys):
    """Its config says where it was: a new run began there, and another one went on there, without a word."""
    assert program("train.stop_at=2") == 0
    run, moved = tmp_path / "run", tmp_path / "moved"
    run.rename(moved)
    config = ["--config", str(moved / "config.yaml"), "train.stop_at=2"]
    place = f"this one is in {run}, as it says there, unless run.dir={moved}"
    told = f"{moved}/config.yaml is of the run in {moved}; {place}"
    for more, begun in ([["--resume", "auto"], True], [["--resume", str(moved)], False]):
        capsys.readouterr()
        assert run_pretraining.main([*config, *more]) == 0
        found = capsys.readouterr()
        assert [line for line in found.err.splitlines() if "run.dir" in line] == [told]
        line = f"goes on from {moved}/checkpoints/step_00000002 in another folder, {run}"
        assert (line in found.out.splitlines()) != begun
        shutil.rmtree(run)
    for place, own in (("moved", moved), ("other", moved)):
        assert run_pretraining.main([*config, f"run.dir={tmp_path / place}", "--resume", str(own)]) == 0
        found = capsys.readouterr()
        assert "is of the run in" not in found.err
        assert ("in another folder" in found.out) == (place == "other")
    assert program("train.stop_at=2") == 0
    assert run_pretraining.main(["--config", str(run / "config.yaml"), "--resume", "auto"]) == 0
    found = capsys.readouterr()
    assert "is of the run in" not in found.err
    assert "in another folder" not in found.out


@pytest.mark.parametrize("linked", [False, True])
def test_a_run_that_goes_on_in_another_folder_takes_its_records_along(linked, tiny, tmp_path):
    """Its report counted updates and losses since then, beside the steps of the whole run. Over a link it still did."""
    folder = tmp_path / "run"
    if linked:
        folder.mkdir()
        (tmp_path / "disk").mkdir()
        (folder / "checkpoints").symlink_to(tmp_path / "disk")
    assert train(tiny(*SHORT)) == folder
    moved = train(tiny(*SHORT, f"run.dir={tmp_path / 'moved'}"), folder / "checkpoints" / "step_00000004")
    assert history(moved) == history(folder)
    assert [r["step"] for r in read_metrics(moved / METRICS_FILE) if r["kind"] == "resume"] == [4]
    train(tiny(*SHORT), folder / "checkpoints" / "step_00000002")
    branch = folder / "branches" / "after_step_00000002" / "checkpoints" / "step_00000004"
    part = train(tiny(*SHORT, f"run.dir={tmp_path / 'part'}"), branch)  # it has records after step 2 only
    assert read_metrics(part / METRICS_FILE)[0] == {**read_metrics(part / METRICS_FILE)[0], "kind": "resume", "step": 4}
