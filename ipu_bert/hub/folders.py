"""Folders of a model that appear whole, and how they are pushed to the hub."""

from __future__ import annotations

import os
import re
import shutil
from argparse import ArgumentTypeError
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import psutil

from ipu_bert.config.values import is_unicode
from ipu_bert.data.errors import one_line
from sparse_ops.files import is_worked_in, known_as, naming, sync

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
PREDICTIONS, MEASURES = "predictions.csv", "finetune.json"  # of a fine-tuned model
_NAMES = {WEIGHTS, CONFIG, CARD, PREDICTIONS, MEASURES, *TOKENIZER_FILES}


def check_place(final: Path) -> None:
    """Raises ValueError where a model's folder cannot go, and OSError where none can be made, as on a read-only disk.

    It cannot where `final` is a file, is below one, is a mount point, is not UTF-8, is what this program works in or
    holds other files than those of a whole model: a README.md or vocab.txt alone is the user's. Whatever takes long is
    not begun for such a place.
    """
    wanted = "expected a new or empty folder or an earlier model's"
    if not is_unicode(str(final)):
        raise ValueError(f"{str(final)!r}: {wanted}, with a path in UTF-8, found other bytes")
    real = _real(final)
    there = next(path for path in (real, *real.parents) if path.exists())
    if not there.is_dir():
        where = "a file" if there == real else f"{there}, which is no folder"
        raise ValueError(f"{final}: {wanted}, found {where}")
    if is_worked_in(real):  # a new one takes its name: the shell would stand in one that is removed
        raise ValueError(f"{final}: {wanted}, found the one that this program works in; name a folder in it")
    # Of the real one: `new/../old` is not there before `new` is, but is `old`.
    names = {path.name for path in real.iterdir()} if real.exists() else set()
    others = sorted(names - _NAMES if {WEIGHTS, CONFIG} <= names else names)
    if others:
        raise ValueError(f"{final}: {wanted}, found {others[0]} in it")
    if os.path.ismount(real):  # it would be found out when everything is done: such a folder cannot be renamed
        raise ValueError(f"{final}: {wanted}, found the root of a disk or a volume; name a folder in it")
    trial = (real.parent if there == real else there) / _beside(real, "tmp").name
    shutil.rmtree(trial, ignore_errors=True)
    with known_as(final, trial):
        trial.mkdir()
        trial.rmdir()


def _real(final: Path) -> Path:
    """What a link stands for, which stays one, and its disk the model's. Raises ValueError for a circle of links."""
    real = Path(os.path.realpath(final))
    if real.is_symlink():
        raise ValueError(f"{final}: expected a folder, or nothing yet, found links that lead nowhere")
    return real


def _beside(final: Path, end: str) -> Path:
    return final.with_name(f".{final.name}.{os.getpid()}.{end}")


def _settle(final: Path) -> None:
    """Undo what processes that were killed had half done: an earlier model gets its name back, the rest is removed."""
    others = {*psutil.pids()} - {os.getpid()}
    for path in final.parent.iterdir():
        match = re.fullmatch(rf"\.{re.escape(final.name)}\.(\d+)\.(tmp|old)", path.name)
        if match and int(match[1]) not in others:
            if match[2] == "old" and not final.exists():
                os.replace(path, final)
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A new folder beside `final` to write a model's files into; it takes the place of `final` when the block ends.

    When the block fails nothing is left of it. An earlier model in `final` is replaced.
    Raises ValueError as `check_place` does, before anything is written, and OSError for a full disk.
    """
    check_place(final)
    final = _real(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    _settle(final)
    aside, old = _beside(final, "tmp"), _beside(final, "old")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with known_as(final, aside), naming(final):
            aside.mkdir()
            yield aside
            for path in aside.iterdir():
                sync(path)
            sync(aside)
        if final.exists():
            os.replace(final, old)
        os.replace(aside, final)
        sync(final.parent)
    except Exception as error:
        if "(os error " not in str(error):  # safetensors and tokenizers have kinds of their own for it
            raise
        raise OSError(f"{final}: could not be written: {one_line(error)}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not final.exists():  # the second rename failed
            os.replace(old, final)
        shutil.rmtree(old, ignore_errors=True)


def repository(name: str) -> str:
    """A name that a repository of the hub can have, as an argument of a command. Raises ArgumentTypeError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        possible = "/" in name  # without a user's it names one of the hub's own models
    except HFValidationError:
        possible = False
    if not possible:
        raise ArgumentTypeError(f"expected a name on the hub as USER/MODEL, found {name!r:.100}")
    return name


def push(folder: Path, name: str) -> str:
    """Upload a model's folder to the repository `name` of the hub, made private where there is none; returns its URL.

    Raises ValueError, one line, when the hub cannot be reached, refuses, or has no token of the user.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model")
    except Exception as error:  # the hub's client, and what it sends with, raise many kinds
        raise ValueError(f"--push-to {name}: expected a repository that takes {folder}: {one_line(error)}") from error
    return str(url)
