"""Checkpoints: safetensors and JSON in one folder per step, written aside, checksummed, renamed when complete."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ipu_bert.config import Config, identity
from sparse_ops.files import sha256_of, sync

FORMAT = 1
_STATE = "state.json"
_NAME = re.compile(r"step_(\d+)")

Groups = Mapping[str, Mapping[str, Tensor]]


class CheckpointError(ValueError):
    """A checkpoint that is missing, cut, or belongs to something else."""


def save(folder: Path, step: int, groups: Groups, info: Mapping[str, Any], keep: int) -> Path:
    """Write `folder`/step_<step>/ with one safetensors file per group and state.json; returns its path.

    It appears by a rename when everything is on disk, so a killed process or a full disk leaves the checkpoints before
    it as they were. Afterwards all but the newest `keep` are removed (0: none).
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, aside = folder / f"step_{step:08d}", folder / f".step_{step:08d}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        files = {}
        for group, tensors in groups.items():
            path = aside / f"{group}.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))
            files[path.name] = _describe(path)
            sync(path)
        state = {"format": FORMAT, "step": step, "files": files, **info}
        (aside / _STATE).write_text(json.dumps(state, indent=1, sort_keys=True, allow_nan=False) + "\n")
        sync(aside / _STATE)
        if final.exists():  # the same step again, after a resume: the old one goes when the new one stands
            os.replace(final, aside.with_suffix(".old"))
        os.replace(aside, final)
        sync(folder)
    except SafetensorError as error:  # its message has no file name
        raise OSError(f"checkpoint {final}: could not be written: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(aside.with_suffix(".old"), ignore_errors=True)
    for _, old in complete(folder)[:-keep] if keep else ():
        shutil.rmtree(old)
    return final


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by group and the info of a checkpoint folder; CheckpointError when a byte of it is not as written."""
    try:
        state = json.loads((path / _STATE).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}: expected a folder with {_STATE}, found none") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path / _STATE}: {error}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else state
        raise CheckpointError(f"checkpoint {path / _STATE}: expected format {FORMAT}, found {found}")
    groups = {}
    for name, expected in state["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path}: expected {name}, found no such file")
        if file.stat().st_size != expected["bytes"]:
            found = file.stat().st_size
            raise CheckpointError(f"checkpoint {file}: expected {expected['bytes']} bytes, found {found}: it is cut")
        if _describe(file) != expected:
            raise CheckpointError(f"checkpoint {file}: its SHA-256 is not the one in {_STATE}: it is damaged")
        groups[file.stem] = load_file(str(file))
    return groups, state


def complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the complete checkpoints in a folder, oldest first by number."""
    if not folder.is_dir():
        return []
    named = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in named if match and (path / _STATE).is_file())


def find(where: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest complete one of a run or of a checkpoints folder.

    Raises CheckpointError when there is none.
    """
    if (where / _STATE).is_file():
        return where
    for folder in (where, where / "checkpoints"):
        found = complete(folder)
        if found:
            return found[-1][1]
    raise CheckpointError(f"checkpoint: expected {where} to be or to hold a complete checkpoint, found none")


def check_same_run(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """CheckpointError that lists every setting in which a checkpoint's run differs from this one.

    A setting that was added after the checkpoint was written counts as its default there.
    """
    defaults = {key: value for key, value in identity(Config()).items() if key in expected}
    found = {**defaults, **found}
    differing = [
        f"{key}: expected {expected.get(key)!r}, found {found.get(key)!r}"
        for key in sorted(set(expected) | set(found))
        if expected.get(key) != found.get(key)
    ]
    if differing:
        raise CheckpointError(f"checkpoint {path} is of another run: " + "; ".join(differing))


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
