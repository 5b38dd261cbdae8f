"""The folder of a run: whose it is, what it was called with, and the files that metrics go to."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TextIO

import yaml

from ipu_bert.config import Config, as_dict
from ipu_bert.record.console import ConsoleSink
from ipu_bert.record.metrics import METRICS_FILE, JsonlSink, Metrics, Sink, TensorBoardSink, WandbSink
from sparse_ops import files

CONFIG_FILE = "config.yaml"


class RunFolder:
    """Opens a run's folder for one process; a context manager that closes the metrics and lets go of the folder.

    A new run moves an earlier one that has the same folder to NAME.1, NAME.2, ..., so nothing is lost. Raises
    ValueError when another process is training there, or when the folder holds something that is not a run.
    """

    def __init__(self, config: Config, resume_step: int | None, unigram_entropy: float) -> None:
        self.path = Path(config.run.dir)
        if resume_step is None:
            _make_room(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        files.write(self.path / CONFIG_FILE, yaml.safe_dump(as_dict(config), sort_keys=False))
        last = config.train.stop_at or config.train.steps
        sinks: list[Sink] = [JsonlSink(self.path / METRICS_FILE, resume_step)]
        if config.log.tensorboard:
            sinks.append(TensorBoardSink(self.path / "tensorboard", resume_step))
        if config.log.wandb:
            sinks.append(WandbSink("ipu-bert-dynsparse", config.run.name, self.path, as_dict(config), config.run.name))
        sinks.append(ConsoleSink(last, unigram_entropy=unigram_entropy))
        self.metrics = Metrics(sinks)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.metrics.close()
        self._lock.close()


def _make_room(path: Path) -> None:
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / CONFIG_FILE).exists():
        raise ValueError(f"run.dir {path}: expected a new or empty folder or an earlier run's, found other files in it")
    _lock(path).close()  # nobody may be training there
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(aside)
    print(f"an earlier run was in {path}; it is in {aside} now")


def _lock(path: Path) -> TextIO:
    """Hold the folder until the file is closed or the process ends."""
    try:
        return files.lock(path / ".lock", wait=False)
    except BlockingIOError:
        raise ValueError(f"run.dir {path}: another process is training there; choose another run.dir") from None
