"""A run's folder belongs to one process at a time."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Callable, Iterator, TextIO
from unittest.mock import MagicMock

import pytest
import torch
import yaml

from ipu_bert import checkpoint, moving
from ipu_bert.config import Config, as_dict
from ipu_bert.run_folder import RunFolder
from ipu_bert.run_place import Origin
from ipu_bert.trainer import Trainer
from sparse_ops import files


@pytest.mark.parametrize("resumed", [False, True])
def test_a_second_process_is_refused_until_the_first_lets_go(tiny, resumed):
    config = tiny()
    with RunFolder(config, None) as folder:
        (mine,) = saved(folder, 0)
        folder.metrics.write({"kind": "start", "step": 0})
        before = (folder.path / "metrics.jsonl").read_bytes()
        message = f"run.dir {config.run.dir}: another process is training there; choose another run.dir"
        with pytest.raises(ValueError, match=re.escape(message)):
            RunFolder(config, mine if resumed else None)
        assert (folder.path / "metrics.jsonl").read_bytes() == before
        assert [path.name for path in Path(config.run.dir).parent.iterdir() if path.is_dir()] == ["run"]
    with RunFolder(config, mine) as folder:
        assert yaml.safe_load((folder.path / "config.yaml").read_text()) == as_dict(config)


def test_nobody_begins_in_a_folder_that_is_being_moved_aside(tiny, monkeypatch):
    """The lock was given up before: what another process had begun by then was moved away under it."""
    with RunFolder(tiny(), None) as folder:
        saved(folder, 1)
    rename, refused = Path.rename, []

    def beside_another(path: Path, aside: Path) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            with pytest.raises(ValueError, match="another process is training there"):
                RunFolder(tiny(), None)
        refused.append(path)
        return rename(path, aside)

    monkeypatch.setattr(Path, "rename", beside_another)
    RunFolder(tiny(), None).__exit__(None, None, None)
    assert refused == [folder.path]
    assert [step for step, _ in checkpoint.complete(folder.path.with_name("run.1") / "checkpoints")] == [1]


def test_the_lock_of_a_folder_that_was_moved_aside_meanwhile_is_none(tiny, monkeypatch):
    """Opened before the other process moved it, and held once that had let it go."""
    with RunFolder(tiny(), None) as folder:
        (mine,) = saved(folder, 1)
    lock = files.lock

    def slow(path: Path, wait: bool) -> TextIO:
        found = lock(path, wait)
        folder.path.rename(folder.path.with_name("aside"))
        folder.path.mkdir()
        return found

    monkeypatch.setattr(files, "lock", slow)
    with pytest.raises(ValueError, match="another process is training there"):
        RunFolder(tiny(), mine)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", ".lock"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tiny, name):
    config = tiny()
    with RunFolder(config, None) as folder:
        (mine,) = saved(folder, 0)
    path = folder.path / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="expected a file, found a folder, a pipe or a device"):
        RunFolder(config, mine)


def saved(folder: RunFolder, *steps: int) -> list[Origin]:
    """Empty checkpoints of a run after these steps."""
    for step in steps:
        checkpoint.save(folder.checkpoints, step, {}, {}, keep=0)
    return [Origin(path, step, skipped=0) for step, path in checkpoint.complete(folder.checkpoints)]


def test_a_run_has_its_own_page_at_wandb_until_it_goes_back(tiny, tmp_path, monkeypatch):
    """The name of runs is the same all the time; what is told apart is their folders."""
    wandb = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    def opened(origin: Origin | None, *overrides: str, steps: tuple[int, ...] = ()) -> tuple[str, list[Origin]]:
        with RunFolder(tiny("log.wandb=true", "run.name=same", *overrides), origin) as folder:
            return wandb.init.call_args.kwargs["id"], saved(folder, *steps)

    first, _ = opened(None, steps=(1,))
    second, (early, late) = opened(None, steps=(1, 2))
    other, _ = opened(None, f"run.dir={tmp_path / 'other'}")
    elsewhere, _ = opened(early, f"run.dir={tmp_path / 'elsewhere'}")
    assert len({first, second, other, elsewhere}) == 4
    assert opened(late)[0] == second
    back, _ = opened(early)
    assert back not in {first, second, other, elsewhere}
    assert opened(early)[0] == back
    assert (tmp_path / "run.1" / "wandb_id").read_text() == first
    assert (tmp_path / "run" / "branches" / "after_step_00000001" / "wandb_id").read_text() == second


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    ("setting", "module"), [("log.wandb=true", "wandb"), ("log.tensorboard=true", "torch.utils.tensorboard")]
)
def test_a_package_that_is_missing_is_found_out_before_the_folder_is_touched(
    setting, module, resumed, tiny, tmp_path, monkeypatch
):
    """The earlier run had been moved aside by then, or the run had gone back."""
    with RunFolder(tiny("checkpoint.keep=0"), None) as folder:
        early, _, _ = saved(folder, 1, 2, 3)
    monkeypatch.setitem(sys.modules, module, None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"the package '{module.rpartition('.')[2]}' is not installed"):
        RunFolder(tiny(setting, "checkpoint.keep=1"), early if resumed else None)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("blank_pictures")
def test_the_report_of_what_a_run_went_back_from_is_with_it(tiny, tmp_path):
    """It stood in the run's folder, of steps that the run had left, until the next one was written over it."""
    trainer = Trainer(tiny("checkpoint.every=1", "checkpoint.keep=0", "sparsity.updates=2", "train.steps=4"))
    run = trainer.run()
    kept = {"config.yaml", "metrics.jsonl", "tokenizer.json", ".lock", "checkpoints"}
    report = {path.name: path.read_bytes() for path in run.iterdir() if path.name not in kept}
    assert len(report) == 5
    step = dict(checkpoint.complete(run / "checkpoints"))
    with RunFolder(tiny("checkpoint.keep=0"), Origin(step[4], 4, skipped=0)):
        assert report.keys() == {path.name for path in run.iterdir()} - kept
    with RunFolder(tiny(), Origin(step[2], 2, skipped=0)):
        assert {path.name for path in run.iterdir()} == {*kept, "branches"}
    branch = run / "branches" / "after_step_00000002"
    assert {name: (branch / name).read_bytes() for name in report} == report


def test_a_link_to_another_disk_stays_one(tiny, tmp_path):
    (tmp_path / "large" / "run").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "large" / "run")
    for _ in range(2):
        RunFolder(tiny(), None).__exit__(None, None, None)
    assert (tmp_path / "run").is_symlink()
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == ["run", "run.1"]
    assert not (tmp_path / "run.1").exists()
    assert (tmp_path / "large" / "run" / "config.yaml").exists()


def test_the_folder_that_the_program_works_in_is_not_moved(tiny, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    RunFolder(tiny("run.dir=."), None).__exit__(None, None, None)
    for name in (".", "../work"):
        with pytest.raises(ValueError, match=re.escape("found the one that this program works in")):
            RunFolder(tiny(f"run.dir={name}"), None)


def test_a_folder_that_cannot_be_moved_aside_is_named_with_a_way_on(tiny, monkeypatch):
    """As a mount point: "Device or resource busy", of a folder that nobody had named."""
    with RunFolder(tiny(), None) as folder:
        saved(folder, 1)

    def busy(path: Path, aside: Path) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy", str(path), None, str(aside))

    monkeypatch.setattr(Path, "rename", busy)
    message = f"""run.dir {folder.path}: expected a folder whose earlier run can be moved aside, found one that cannot \
become {folder.path}.1: Device or resource busy; name a new one with run.dir=FOLDER, or go on with --resume"""
    with pytest.raises(ValueError, match=re.escape(message)):
        RunFolder(tiny(), None)
    assert [step for step, _ in checkpoint.complete(folder.checkpoints)] == [1]


def test_a_folder_that_is_there_once_another_is_made_is_looked_into(tiny, tmp_path):
    """`new/../old` was taken for a new folder: a run was put over what was in `old`."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty folder or an earlier run's, found other files in it"):
        RunFolder(tiny(f"run.dir={tmp_path / 'new' / '..' / 'old'}"), None)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "old" / "thesis.txt").read_text() == "mine"


def test_a_branch_goes_on_in_a_new_folder(tiny, tmp_path):
    with RunFolder(tiny(), None) as folder:
        early, _ = saved(folder, 1, 2)
    RunFolder(tiny(), early).__exit__(None, None, None)
    branch = tmp_path / "run" / "branches" / "after_step_00000001" / "checkpoints" / "step_00000002"
    with pytest.raises(ValueError, match="which this run has put aside, found the run itself; name a new one"):
        RunFolder(tiny(), Origin(branch, 2, skipped=0))


def listing(folder: Path) -> dict[str, bytes]:
    """What files are below a folder, by way of links, too."""
    return {
        str(Path(where, name).relative_to(folder)): Path(where, name).read_bytes()
        for where, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name != ".lock"
    }


@pytest.fixture(params=["disk", "mount"])
def afar(request, tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder that nothing can be renamed from or to: of another disk, or a mount of the same one."""
    if request.param == "disk":
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            if os.stat(folder).st_dev == tmp_path.stat().st_dev:
                pytest.skip("it is on the same disk")
            yield Path(folder)
        return
    folder, replace = tmp_path / "mount", os.replace

    def within(source: Path, target: Path) -> None:
        if len({folder in Path(os.path.realpath(path)).parents for path in (source, target)}) == 2:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source), None, str(target))
        replace(source, target)

    folder.mkdir()
    monkeypatch.setattr(os, "replace", within)
    yield folder


def went_on(tiny: Callable[..., Config], afar: Path, *links: str) -> tuple[Path, list[Origin]]:
    """A run after three steps, the last its best, of which these folders are links to another disk."""
    with RunFolder(tiny("checkpoint.keep=0"), None) as folder:
        folder.metrics.write({"kind": "start", "step": 0})
        for name in links:
            (afar / name).mkdir()
            (folder.path / name).symlink_to(afar / name)
        checkpoint.save(folder.best, 3, {"model": {"w": torch.ones(1)}}, {}, keep=1)
        starts = saved(folder, 1, 2, 3)
        (folder.path / "report.md").write_text("of step 3")
    return folder.path, starts


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="a disk beside that of temporary files")
@pytest.mark.parametrize("links", [("checkpoints",), ("best",), ("branches",), ("checkpoints", "best", "branches")])
def test_a_run_goes_back_over_links_to_another_disk(links, afar, tiny, capsys):
    """It ended at its first checkpoint, when the report had been moved, and left one more branch at each try."""
    run, (early, *_) = went_on(tiny, afar, *links)
    before = listing(run)
    RunFolder(tiny("checkpoint.keep=0"), early).__exit__(None, None, None)
    branch = "branches/after_step_00000001/"
    moved = {name: data for name, data in before.items() if "step_0000000" in name and "step_00000001" not in name}
    moved["report.md"] = before["report.md"]
    after = listing(run)
    records = after.pop(f"{branch}metrics.jsonl")
    assert records == b""
    assert after == {**{k: v for k, v in before.items() if k not in moved}, **{branch + k: v for k, v in moved.items()}}
    assert all((run / name).is_symlink() for name in links)
    assert capsys.readouterr().err == ""
    RunFolder(tiny("checkpoint.keep=0"), early).__exit__(None, None, None)
    assert os.listdir(run / "branches") == ["after_step_00000001"]


def judged(folder: RunFolder, step: int, batches: int, loss: float) -> Path:
    """A best checkpoint."""
    info = {"config": {"eval": {"batches": batches}}, "heldout_loss": loss}
    return checkpoint.save(folder.best, step, {"model": {"w": torch.ones(1)}}, info, keep=0)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="a disk beside that of temporary files")
@pytest.mark.parametrize("links", [("best",), ("branches",), ("best", "branches")])
def test_a_best_one_by_other_batches_is_put_aside_over_links_to_another_disk(links, afar, tiny, capsys, monkeypatch):
    """It was removed, unsaid, when the first best one by these batches was saved. Killed before it was moved, too."""
    with RunFolder(tiny(), None) as folder:
        for name in links:
            (afar / name).mkdir()
            (folder.path / name).symlink_to(afar / name)
        best, (origin,) = judged(folder, 2, 8, 5.0), saved(folder, 3)
    before = listing(best)
    for batches, keeps in ((8, "true"), (1, "false")):
        options = (f"eval.batches={batches}", f"checkpoint.keep_best={keeps}")
        RunFolder(tiny(*options), origin).__exit__(None, None, None)
        assert listing(best) == before
    asked = tiny("eval.batches=1", "checkpoint.keep_best=true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving, "move", MagicMock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            RunFolder(asked, origin)
    assert listing(best) == before
    capsys.readouterr()
    RunFolder(asked, origin).__exit__(None, None, None)
    (line,) = capsys.readouterr().out.splitlines()
    branch = Path(line.partition("not judged by 1 batches, as this run is: it is in ")[2].partition(" now")[0])
    assert branch.parent == folder.path / "branches"
    assert listing(branch / "best" / "step_00000002") == before
    assert os.listdir(folder.best) == []
    assert [step for step, _ in checkpoint.complete(folder.checkpoints)] == [3]
    assert all((folder.path / name).is_symlink() for name in links)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="a disk beside that of temporary files")
@pytest.mark.parametrize("afar", ["disk"], indirect=True)
def test_going_back_to_a_full_disk_changes_nothing(afar, tiny, monkeypatch):
    run, (early, *_) = went_on(tiny, afar, "checkpoints")
    before, copies, sync = listing(run), [], moving.sync

    def full(path: Path) -> None:
        if path.is_file():
            copies.append(path)
            if len(copies) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(moving, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        RunFolder(tiny("checkpoint.keep=0"), early)
    assert len(copies) == 2
    assert listing(run) == before
    assert os.listdir(run / "branches") == []
