"""Where a model's folder may go."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from ipu_bert.hub.folders import check_place, whole_folder


def _weights(folder: Path) -> None:
    save_file({"a": torch.zeros(1000)}, str(folder / "a"))


def _tokenizer(folder: Path) -> None:
    Tokenizer(models.WordPiece({"x" * 1000: 0})).save(str(folder / "a"))


def _text(folder: Path) -> None:
    (folder / "a").write_text("x" * 1000)


@pytest.mark.parametrize("write", [_weights, _tokenizer, _text])
def test_a_disk_without_room_is_an_error_of_the_system_that_names_the_folder(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    """safetensors and tokenizers have errors of their own, which were tracebacks."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def make() -> None:
        with whole_folder(tmp_path / "model") as aside:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            try:
                write(aside)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.raises(OSError, match=re.escape(str(tmp_path / "model"))):
        make()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_once_another_is_made_is_not_replaced(tmp_path: Path) -> None:
    """`new/../old` was taken for a new folder, and what was in `old` was removed."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thesis.txt").write_text("mine")
    message = "expected a new or empty folder .*, found thesis.txt in it"
    with pytest.raises(ValueError, match=message), whole_folder(tmp_path / "new" / ".." / "old"):
        pass
    assert (tmp_path / "old" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["README.md", "vocab.txt", "predictions.csv", "config.json"])
def test_a_file_of_the_users_that_a_model_would_have_too_is_not_replaced(name: str, tmp_path: Path) -> None:
    """A folder with nothing but a README.md was taken for an earlier model's, and removed."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"expected a new or empty folder .*, found {name} in it"), whole_folder(
        tmp_path
    ):
        pass
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("place", [".", "..", "../../link"])
def test_the_folder_that_the_program_works_in_is_not_replaced(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`export_run RUN .` left the shell in a folder that was removed, and named no file of the new one."""
    here = tmp_path / "model" / "vocab.txt"  # by its name a model's file
    here.mkdir(parents=True)
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    (here.parent / "model.safetensors").touch()
    (here.parent / "config.json").touch()
    message = f"^{re.escape(place)}: expected .*, found the one that this program works in; name a folder in it$"
    with pytest.raises(ValueError, match=message), whole_folder(Path(place)):
        pass
    assert os.listdir(tmp_path) == os.listdir("../..")
    with whole_folder(Path("new")) as aside:
        (aside / "config.json").touch()
    assert os.listdir(here) == ["new"]


def test_what_a_killed_process_left_goes_and_the_model_that_it_had_moved_aside_comes_back(tmp_path: Path) -> None:
    """Killed between the renames, it left no model under the name; killed while it wrote, gigabytes for ever."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (tmp_path / f".model.{killed.pid}.old").mkdir()
    (tmp_path / f".model.{killed.pid}.old" / "config.json").write_text("old")
    (tmp_path / f".model.{killed.pid}.tmp").mkdir()
    (tmp_path / f".model.{os.getpid()}.tmp").mkdir()  # in a container all have one number
    (tmp_path / f".model.{os.getppid()}.tmp").mkdir()  # of one that runs
    (tmp_path / ".model.4.tmp.txt").write_text("mine")
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "model"):
        raise OSError(28, "full")
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f".model.{os.getppid()}.tmp", ".model.4.tmp.txt", "model"]
    )


def test_a_volume_is_refused_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of Docker, empty and writable: hours of fine-tuning ended with "Device or resource busy"."""
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path))
    with pytest.raises(ValueError, match="found the root of a disk or a volume; name a folder in it"):
        check_place(tmp_path)
    check_place(tmp_path / "model")
