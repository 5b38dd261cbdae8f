"""Checkpoints: atomic, newest by number, every damage refused with the file named."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ipu_bert import checkpoint, same_run
from ipu_bert.checkpoint import CheckpointError
from sparse_ops import files

GROUPS = {"model": {"w": torch.arange(6.0).view(2, 3)}, "random": {"torch": torch.get_rng_state()}}


def save(folder: Path, step: int, keep: int = 0) -> Path:
    return checkpoint.save(folder, step, GROUPS, {"config_hash": "x"}, keep)


def test_what_is_saved_is_loaded(tmp_path):
    groups, info = checkpoint.load(save(tmp_path, 12))
    assert torch.equal(groups["model"]["w"], GROUPS["model"]["w"])
    assert torch.equal(groups["random"]["torch"], GROUPS["random"]["torch"])
    assert (info["step"], info["config_hash"]) == (12, "x")


def test_who_may_read_one_file_of_it_may_read_all(tmp_path):
    """Weights were for their owner alone, as safetensors makes files."""
    modes = {path.stat().st_mode for path in save(tmp_path, 1).iterdir()}
    (tmp_path / "plain").write_text("")
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_the_newest_is_found_by_number_and_old_ones_go(tmp_path):
    for step in (95, 1000, 120_000_000):
        save(tmp_path, step, keep=2)
    assert [step for step, _ in checkpoint.complete(tmp_path)] == [1000, 120_000_000]
    assert checkpoint.find(tmp_path).name == "step_120000000"


def test_a_path_means_itself_a_run_or_its_checkpoints(tmp_path):
    saved = save(tmp_path / "checkpoints", 3)
    assert checkpoint.find(saved) == checkpoint.find(tmp_path) == checkpoint.find(tmp_path / "checkpoints") == saved
    with pytest.raises(CheckpointError, match=r"expected .*elsewhere to be or to hold a complete checkpoint"):
        checkpoint.find(tmp_path / "elsewhere")


def test_a_copy_that_is_kept_beside_a_runs_checkpoints_is_none_of_them(tmp_path):
    """It was taken for the newest of the run, by evaluate, export and model.init, and --resume was refused for ever."""
    old, newest = (save(tmp_path / "checkpoints", step) for step in (2, 4))
    shutil.copytree(old, tmp_path / old.name)
    assert checkpoint.find(tmp_path) == newest
    shutil.copytree(old, tmp_path, dirs_exist_ok=True)  # what is in it, without its folder
    assert checkpoint.find(tmp_path) == newest
    assert checkpoint.find(tmp_path / old.name) == tmp_path / old.name
    shutil.rmtree(newest)
    shutil.rmtree(old)
    with pytest.raises(CheckpointError, match=r"expected .* to be or to hold a complete checkpoint, found none"):
        checkpoint.find(tmp_path)
    os.rmdir(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").symlink_to(tmp_path / "not mounted")
    with pytest.raises(OSError, match="is its disk mounted"):
        checkpoint.find(tmp_path)


def test_one_that_a_running_run_removes_while_it_is_read_is_not_called_damaged(tmp_path, monkeypatch):
    """A newer one is there then; a run that is always faster is given up, and damage is damage."""
    save(tmp_path, 1)
    real = checkpoint.sha256_of

    def saving(times):
        def read(path):
            if times and path.parent.name[0] != ".":  # not what is just being saved
                times.pop()
                save(tmp_path, 1 + checkpoint.complete(tmp_path)[-1][0], keep=1)
            return real(path)

        monkeypatch.setattr(checkpoint, "sha256_of", read)

    saving([1, 2, 3])
    found, groups, info = checkpoint.load_newest(tmp_path)
    assert (found.name, info["step"]) == ("step_00000004", 4)
    assert torch.equal(groups["model"]["w"], GROUPS["model"]["w"])
    saving([1] * 99)
    with pytest.raises((CheckpointError, OSError)):
        checkpoint.load_newest(tmp_path)
    saving([])
    (checkpoint.find(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(checkpoint.DamagedCheckpointError, match=r"expected model\.safetensors, found no such file"):
        checkpoint.load_newest(tmp_path)


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3)
    checkpoint.save(tmp_path, 3, {"model": {"w": torch.zeros(1)}}, {}, 0)
    assert checkpoint.load(checkpoint.find(tmp_path))[0]["model"]["w"].tolist() == [0.0]
    assert sorted(os.listdir(tmp_path)) == ["step_00000003"]


def test_a_write_that_fails_leaves_the_older_ones(tmp_path, monkeypatch):
    saved = save(tmp_path, 3)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 4, keep=1)
    assert checkpoint.find(tmp_path) == saved
    assert os.listdir(tmp_path) == ["step_00000003"]
    checkpoint.load(saved)


def test_links_to_another_disk_and_files_in_the_way_are_removed_as_what_they_are(tmp_path):
    """A link that was to be pruned ended the run, and a file named as a step every start after it."""
    (tmp_path / "far").mkdir()
    for step in (1, 2):
        os.rename(save(tmp_path / "here", step), tmp_path / "far" / str(step))
        (tmp_path / "here" / f"step_{step:08d}").symlink_to(tmp_path / "far" / str(step))
    (tmp_path / "here" / "step_00000003").touch()
    (tmp_path / "here" / ".step_00000009.1.tmp").touch()
    save(tmp_path / "here", 2)
    save(tmp_path / "here", 3, keep=1)
    checkpoint.clean(tmp_path / "here")
    assert os.listdir(tmp_path / "here") == ["step_00000003"]
    for step in (1, 2):
        assert checkpoint.find(tmp_path / "far" / str(step)).is_dir()


def test_a_folder_that_a_killed_process_left_is_not_a_checkpoint(tmp_path):
    saved = save(tmp_path, 3)
    (tmp_path / ".step_00000004.1.tmp").mkdir()
    (tmp_path / "step_00000005").mkdir()
    assert checkpoint.find(tmp_path) == saved


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: os.truncate(path / "model.safetensors", 40),
            r"model.safetensors: expected \d+ bytes, found 40: it is cut",
        ),
        (lambda path: (path / "random.safetensors").unlink(), "expected random.safetensors, found no such file"),
        (lambda path: flip(path / "model.safetensors"), "model.safetensors: its SHA-256 is not the one"),
        (lambda path: (path / "state.json").write_text("{"), "state.json"),
        (
            lambda path: edit(path / "state.json", format=99),
            "expected format 1, found 99; use the version that",
        ),
        (lambda path: (path / "state.json").write_text("[1]"), "expected a JSON object, found list"),
        (lambda path: (path / "state.json").write_text("[" * 99_999), "state.json: "),
        (lambda path: edit(path / "state.json", files=None), "expected files of type dict, found None"),
        (lambda path: edit(path / "state.json", files={"model.safetensors": 7}), "'model.safetensors': 7"),
        (lambda path: edit(path / "state.json", files={"../x.safetensors": {"bytes": 1, "sha256": ""}}), "beside it"),
        (lambda path: edit(path / "state.json", step="3"), "expected step of type int, found '3'"),
        (lambda path: edit(path / "state.json", elapsed_seconds=[]), "expected elapsed_seconds of type float"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    path = save(tmp_path, 3)
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_every_byte_of_state_json_counts(tmp_path, seed):
    """One bit of each byte flipped, and the file cut or longer by a byte."""
    path = save(tmp_path, 3)
    data, draw = (path / "state.json").read_bytes(), random.Random(seed)
    flipped = [data[:i] + bytes([byte ^ 1 << draw.randrange(8)]) + data[i + 1 :] for i, byte in enumerate(data)]
    for damaged in [*flipped, data[:-1], data + b"\n"]:
        (path / "state.json").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.json: "):
            checkpoint.read_info(path)
    (path / "state.json").write_bytes(data)
    checkpoint.load(path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_pickle_is_in_a_checkpoint(tmp_path):
    assert sorted(os.listdir(save(tmp_path, 3))) == ["model.safetensors", "random.safetensors", "state.json"]


def test_another_run_is_refused_with_every_difference(tmp_path):
    with pytest.raises(CheckpointError, match=r"a: expected 1, found 2; b: expected none, found 3"):
        same_run.check_same_run(tmp_path, {"a": 1, "c": 4}, {"a": 2, "b": 3, "c": 4})


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTEMPTY])
def test_an_old_checkpoint_that_cannot_be_removed_is_told_once_and_left(number, tmp_path, monkeypatch, capsys):
    """The run ended, and every start after it: as with NFS, where a file that others read leaves one in its folder."""
    save(tmp_path, 3)
    rmtree = checkpoint.shutil.rmtree

    def stuck(path, **options):
        if not options:
            raise OSError(number, os.strerror(number), "model.safetensors")
        rmtree(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", stuck)
    save(tmp_path, 4, keep=1)
    (left,) = tmp_path.glob(".*")
    for _ in range(2):
        checkpoint.clean(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{left}: could not be removed, and is left there: {os.strerror(number)}"

    assert checkpoint.find(tmp_path).name == "step_00000004"
    monkeypatch.undo()
    checkpoint.clean(tmp_path)
    assert os.listdir(tmp_path) == ["step_00000004"]


def test_a_checkpoint_that_cannot_be_renamed_is_told_and_left(tmp_path, monkeypatch, capsys):
    first, replace = save(tmp_path, 3), os.replace

    def refused(source, target):
        if source == first:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    for step in (4, 5):
        save(tmp_path, step, keep=1)
    checkpoint.keep_only(tmp_path / "step_00000005")
    line = f"{first}: could not be removed, and is left there: Operation not permitted"
    assert capsys.readouterr().err.splitlines() == [line]
    assert [step for step, _ in checkpoint.complete(tmp_path)] == [3, 5]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are of another kind")
def test_a_read_only_checkpoint_is_gone_on_from_and_pruned(as_user, capsys):
    """Of a read-only archive the copy was read-only, too, and what is in it could not be removed: the run ended."""
    archived = save(as_user / "archive", 3)
    for path in (*archived.iterdir(), archived, archived.parent):
        path.chmod(path.stat().st_mode & ~0o222)
    run = as_user / "run"
    checkpoint.adopt(archived, 3, run, before=lambda: None)
    (run / "step_00000003").chmod(0o555)  # and where somebody protects it, or an older version copied it
    save(run, 4, keep=1)
    assert os.listdir(run) == ["step_00000004"]
    shutil.copytree(archived, run / ".step_00000003.7.tmp")
    checkpoint.clean(run)
    assert os.listdir(run) == ["step_00000004"]
    assert checkpoint.load(archived)[1]["step"] == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "act",
    [
        lambda origin, folder: checkpoint.adopt(origin, 3, folder, lambda: pytest.fail("it is not there")),
        lambda _, folder: save(folder, 3),
    ],
)
def test_a_full_disk_names_the_checkpoint_that_was_to_be_there(act, tmp_path, monkeypatch):
    """A list of Python's stood there, or the hidden name of what is built aside."""
    origin = save(tmp_path / "old", 3)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        act(origin, tmp_path)
    assert files.in_words(caught.value) == f"{tmp_path / 'step_00000003'}: No space left on device"
    assert os.listdir(tmp_path) == ["old"]
