"""Disk space as the dry run says it, against checkpoints that runs have written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ipu_bert import assemble, checkpoint
from ipu_bert.settings import Config
from ipu_bert.sizes import disk
from ipu_bert.sizes.dry_run import render
from ipu_bert.trainer import Trainer


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["sparsity.method=dense", "model.layers=3"],
        ["sparsity.block_size=1"],
        ["sparsity.layers=['*.qkv']", "sparsity.method=static", "sparsity.block_size=4", "model.hidden_size=128"],
    ],
    ids=lambda overrides: overrides[0] if overrides else "as it is",
)
def test_a_checkpoint_is_as_large_as_the_plan_says(tiny, overrides, monkeypatch):
    monkeypatch.setattr("ipu_bert.trainer.write_outcome", lambda *_: None)
    config = tiny(*overrides, "train.stop_at=1")
    folder = checkpoint.find(Trainer(config).run())
    written = sum(file.stat().st_size for file in folder.iterdir())
    planned = assemble.plan(config)["disk"]
    assert abs(planned["checkpoint_bytes"] - written) < 4096
    assert planned["checkpoint_bytes"] > 700_000  # against which 4 KB is little
    data = Path(assemble.open_data(config, progress=False).directory)
    files = [file for file in data.iterdir() if file.name not in ("manifest.json", "cost.json")]
    assert planned["prepared_bytes"] == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    ("last", "every", "keep", "expected"),
    [
        (10, 0, 2, 1),  # only at the end
        (10, 5, 0, 2),  # after 5 and 10, all kept
        (11, 5, 0, 3),  # and after 11
        (100, 5, 2, 3),  # two kept and one being written
        (10, 5, 7, 2),  # never so many
    ],
)
def test_checkpoints_at_a_time_by_hand(tiny, last, every, keep, expected):
    config = tiny(f"train.steps={last}", f"checkpoint.every={every}", f"checkpoint.keep={keep}", "sparsity.updates=1")
    found = assemble.plan(config)["disk"]
    assert found["checkpoints"] == expected
    assert found["checkpoints_bytes"] == expected * found["checkpoint_bytes"]


def test_the_best_checkpoint_is_counted_as_it_is_written(tiny, monkeypatch):
    """At most: every folder of a checkpoint that is there, whole or not, whenever one is done."""
    most = 0
    config = tiny("train.steps=8", "checkpoint.every=2", "checkpoint.keep=2", "checkpoint.keep_best=true")
    config.eval.every = 1
    replace = checkpoint.os.replace

    def counting(source, target):
        nonlocal most
        most = max(most, sum((path.parent / path).is_dir() for path in Path(config.run.dir).glob("*/*step_*")))
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", counting)
    monkeypatch.setattr("ipu_bert.trainer.write_outcome", lambda *_: None)
    trainer = Trainer(config)
    losses = iter(range(100, 0, -1))  # always better
    monkeypatch.setattr(trainer, "_evaluate", lambda metrics: {"mlm_loss": float(next(losses))})
    trainer.run()
    assert assemble.plan(config)["disk"]["checkpoints"] == most == 4


def plan_with(config: Config, free: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    return render(assemble.plan(config))


def test_a_warning_where_checkpoints_do_not_fit(tiny, tmp_path, monkeypatch):
    config = tiny("data.dir=" + json.dumps(str(tmp_path / "not" / "yet")))
    need = assemble.plan(config)["disk"]["checkpoints_bytes"]
    assert "the checkpoints do not fit" not in plan_with(config, need, monkeypatch)
    assert "warning     the checkpoints do not fit" in plan_with(config, need - 1, monkeypatch)
    assert "prepared text not known until it is prepared" in plan_with(config, need, monkeypatch)


def test_free_space_is_that_of_the_folder_or_the_nearest_there_is(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=7))
    assert disk.free_bytes(str(tmp_path / "a" / "b")) == disk.free_bytes(str(tmp_path)) == 7
    assert asked == [tmp_path, tmp_path]
    monkeypatch.undo()
    free = disk.free_bytes(str(tmp_path))
    assert free is not None
    assert 0 < free <= shutil.disk_usage(tmp_path).total

    def failing(path: Path) -> None:
        raise OSError

    monkeypatch.setattr(disk.shutil, "disk_usage", failing)
    assert disk.free_bytes(str(tmp_path)) is None
