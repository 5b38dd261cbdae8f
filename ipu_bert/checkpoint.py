"""Checkpoints: safetensors and JSON in one folder per step, written aside, checksummed, renamed when complete."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Mapping

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ipu_bert import checkpoint_info, moving, sealed_json
from ipu_bert.checkpoint_info import FORMAT
from ipu_bert.config.values import is_unicode
from ipu_bert.json_file import read_object
from ipu_bert.run_layout import STATE, STEP, complete, newest
from sparse_ops.files import known_as, naming, sha256_of, sync, usual_mode

_PATIENCE = 5  # checkpoints of a running run that may go while they are read
_ASIDE = re.compile(r"\.(step_\d+)\.\d+\.(tmp|old)")

Groups = Mapping[str, Mapping[str, Tensor]]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or belongs to something else."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint folder, `path`, that is not as it was written; `where`: its damaged file, or itself."""

    def __init__(self, path: Path, where: Path, problem: str) -> None:
        self.path = path
        super().__init__(f"checkpoint {where}: {problem}")


def save(folder: Path, step: int, groups: Groups, info: Mapping[str, Any], keep: int) -> Path:
    """Write `folder`/step_<step>/ with one safetensors file per group and state.json; returns its path.

    It appears by a rename when everything is on disk, so a killed process or a full disk leaves the checkpoints before
    it as they were. Afterwards all but the newest `keep` up to this step are removed (0: none).
    Raises CheckpointError, and leaves what is there, for numbers that are not finite: no run could go on from them.
    """
    _check_finite(folder, step, groups)
    _make(folder)
    final = _place(folder, step)
    aside = moving.aside(final)
    try:
        _write(aside, final, step, groups, info)
        if final.exists():  # the same step again: the old one goes when the new one stands
            os.replace(final, aside.with_suffix(".old"))
        os.replace(aside, final)
        sync(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    moving.remove(aside.with_suffix(".old"))
    prune(folder, step, keep)
    return final


def adopt(origin: Path, step: int, folder: Path, before: Callable[[], object]) -> Path:
    """A copy of a checkpoint as `folder`/step_<step>, if it is not that: what a run goes on from is its own then.

    before: called when the copy is on disk, just before it appears. Raises CheckpointError where another one of the
    step is there, as after going back under other conditions, and OSError that names the copy on a full disk.
    """
    _make(folder)
    final = _place(folder, step)
    if final.exists():
        if read_info(final)["files"] != read_info(origin)["files"]:
            raise CheckpointError(
                f"checkpoint {origin}: expected {final} to be the same one, found another: go on in a new folder, with "
                "run.dir=FOLDER"
            )
        before()
    else:
        moving.copy(origin, final, before)
    return final


def copy_alone(origin: Path, folder: Path, info: Mapping[str, Any]) -> Path:
    """A copy of a whole checkpoint as the one of `folder`, with more in its info; returns its path.

    Raises OSError that names the copy on a full disk.
    """
    state = read_info(origin)
    _make(folder)
    final = _place(folder, state["step"])
    text, aside = sealed_json.sealed({**state, **info}), moving.aside(final)

    def seal() -> None:
        with known_as(final, aside):
            (aside / STATE).write_text(text, encoding="utf-8")
            sync(aside / STATE)
        if final.exists():  # as in `save`
            os.replace(final, aside.with_suffix(".old"))

    moving.copy(origin, final, before=seal)
    moving.remove(aside.with_suffix(".old"))
    keep_only(final)
    return final


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to a step (0: none); what cannot be removed is told and left."""
    own = [path for number, path in complete(folder) if number <= step]
    for old in own[:-keep] if keep else ():
        moving.take_away(old)


def keep_only(path: Path) -> None:
    """Remove the complete checkpoints beside this one; what cannot be removed is told and left."""
    for _, other in complete(path.parent):
        if other != path:
            moving.take_away(other)


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, made where they are missing, are on one disk: what has room in one has it in the other."""
    for folder in (one, other):
        _make(folder)
    return one.stat().st_dev == other.stat().st_dev


def try_out(folder: Path, step: int, groups: Groups, info: Mapping[str, Any]) -> None:
    """Write a checkpoint aside, read it back and remove it: what `save` could not do is found before any work is done.

    Raises OSError or ValueError, one line, as `save` and `load` would, or when something is read that was not written.
    """
    _make(folder)
    final = _place(folder, step)
    aside = moving.aside(final)
    try:
        _write(aside, final, step, groups, info)
        read_info(aside)
        for group, tensors in groups.items():
            with safe_open(str(aside / f"{group}.safetensors"), "pt") as file:  # one tensor at a time: no second state
                differing = [name for name, tensor in tensors.items() if not _same_bits(file.get_tensor(name), tensor)]
            if differing:
                raise CheckpointError(f"checkpoint {folder}: {group} {differing[0]} is not read as it was written")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by group and the info of a checkpoint folder.

    Raises DamagedCheckpointError when a byte of it is not as written.
    """
    state = verify(path)
    return {(path / name).stem: _tensors(path, path / name) for name in state["files"]}, state


def load_newest(where: Path) -> tuple[Path, dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `find` finds, and what `load` reads of it.

    A run that trains there may remove it meanwhile; then what is newest is taken instead. Raises as `find` and `load`.
    """
    patience = _PATIENCE
    while True:
        found = find(where)
        try:
            return (found, *load(found))
        except (DamagedCheckpointError, FileNotFoundError):
            patience -= 1
            if found.is_dir() or not patience:
                raise


def _tensors(path: Path, file: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(file))
    except Exception as error:  # safetensors raises many kinds for a header that is none
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        raise DamagedCheckpointError(
            path, file, f"cannot be read as safetensors: {' '.join(str(error).split())}"
        ) from None


def verify(path: Path) -> dict[str, Any]:
    """The info of a checkpoint folder whose every byte was compared with it; raises DamagedCheckpointError."""
    state = read_info(path)
    for name, expected in state["files"].items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpointError(path, path, f"expected {name}, found no such file")
        if file.stat().st_size != expected["bytes"]:
            found = file.stat().st_size
            raise DamagedCheckpointError(path, file, f"expected {expected['bytes']} bytes, found {found}: it is cut")
        if sha256_of(file) != expected["sha256"]:
            raise DamagedCheckpointError(path, file, f"its SHA-256 is not the one in {STATE}: it is damaged")
    return state


def read_info(path: Path) -> dict[str, Any]:
    """The info of a checkpoint folder alone; DamagedCheckpointError when that cannot be read."""
    file = path / STATE
    try:
        state = read_object(file)
    except FileNotFoundError:
        raise DamagedCheckpointError(path, path, f"expected a folder with {STATE}, found none") from None
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(path, file, str(error)) from None
    problem = checkpoint_info.problem(state)
    if STEP.fullmatch(path.name) and _step_of(path) != state.get("step"):
        problem = problem or f"expected step {_step_of(path)} in {path.name}, found {state['step']}"
    if problem:
        raise DamagedCheckpointError(path, file, problem)
    if state["format"] != FORMAT:
        found = f"found {state['format']}; use the version that wrote it"
        raise CheckpointError(f"checkpoint {file}: expected format {FORMAT}, {found}")
    unknown = sorted(state.keys() - checkpoint_info.KNOWN)  # one of them may be the checksum's
    if unknown or not sealed_json.is_whole(file, state):
        raise DamagedCheckpointError(
            path,
            file,
            f"expected no {unknown[0]!r:.60} in it" if unknown else "its SHA-256 is not the one in it: it is damaged",
        )
    return state


def find(where: Path) -> Path:
    """As `newest`. Raises CheckpointError when there is none, or the path is not UTF-8, which safetensors needs."""
    if not is_unicode(str(where)):
        raise CheckpointError(f"checkpoint {str(where)!r}: expected a path in UTF-8, found other bytes")
    found = newest(where)
    if found is None:
        raise CheckpointError(f"checkpoint: expected {where} to be or to hold a complete checkpoint, found none")
    return found


def intact_before(path: Path) -> Path | None:
    """The newest checkpoint beside `path` that is older and of which every byte is as written."""
    steps = {found: step for step, found in complete(path.parent)}
    for older in sorted((x for x in steps if steps[x] < _step_of(path)), key=steps.__getitem__, reverse=True):
        with contextlib.suppress(CheckpointError):
            verify(older)
            return older
    return None


def clean(folder: Path) -> None:
    """Remove what killed processes left in a folder of checkpoints; the caller holds the run's lock.

    What cannot be removed is told and left.
    """
    newest = max((step for step, _ in complete(folder)), default=0)
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        match = _ASIDE.fullmatch(path.name)
        whole = (path / STATE).is_file()
        if match and match[2] == "old" and whole and not (folder / match[1]).exists():
            os.replace(path, folder / match[1])  # killed between the renames of `save`: it is still the one that counts
        elif match or (not whole and _step_of(path) < newest):  # half removed by an older version
            moving.remove(path)


def _step_of(path: Path) -> int:
    """The step that a checkpoint's name tells; later than all where it is named otherwise."""
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else sys.maxsize


def _make(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)


def _place(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def _write(aside: Path, final: Path, step: int, groups: Groups, info: Mapping[str, Any]) -> None:
    """All files of a checkpoint, on disk; `final` is what messages call it."""
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with known_as(final, aside):
            aside.mkdir()
            files = _write_groups(aside, groups)
    except SafetensorError as error:  # its message has no file name
        raise OSError(f"checkpoint {final}: could not be written: {error}") from None
    state = {"format": FORMAT, "step": step, "files": files, **info}
    for where, value in checkpoint_info.not_finite(state):
        raise CheckpointError(f"checkpoint {final}: expected a finite number to write, found {where} = {value}")
    with known_as(final, aside), naming(final):
        (aside / STATE).write_text(sealed_json.sealed(state), encoding="utf-8")
        sync(aside / STATE)


def _write_groups(aside: Path, groups: Groups) -> dict[str, dict[str, Any]]:
    """One safetensors file per group, on disk; what state.json says of each."""
    files = {}
    for group, tensors in groups.items():
        path = aside / f"{group}.safetensors"
        with usual_mode(path):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        sync(path)
    return files


def _check_finite(folder: Path, step: int, groups: Groups) -> None:
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                kept = complete(folder)
                newest = f"the newest checkpoint is {kept[-1][1]}" if kept else "no checkpoint had been saved"
                raise CheckpointError(
                    f"step {step}: expected finite numbers to save, found NaN or inf in {group} {name}: the run has "
                    f"diverged; {newest}"
                )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and every bit, NaN too."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, other = (t.detach().contiguous().reshape(-1).view(torch.uint8).numpy() for t in (a, b))
    return np.array_equal(one, other)  # several times as fast as torch.equal
