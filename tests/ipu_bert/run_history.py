"""Runs to be broken, and what they left: for tests of going on and of what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ipu_bert import checkpoint
from ipu_bert.config import Config
from ipu_bert.record.metrics import METRICS_FILE, read_metrics
from ipu_bert.trainer import Trainer

SHORT = ("train.steps=6", "eval.every=2", "eval.batches=2", "checkpoint.every=2", "checkpoint.keep=0")
TIMES = {"elapsed", "seconds", "sequences_per_second", "tokens_per_second"}


class Killed(BaseException):
    """What SIGKILL does, seen from outside: nothing after this happens."""


def train(config: Config, resume: Path | None = None) -> Path:
    return Trainer(config, resume).run()


def newest(config: Config) -> Path | None:
    found = checkpoint.complete(Path(config.run.dir) / "checkpoints")
    return found[-1][1] if found else None


def steps(folder: Path) -> list[int]:
    return [step for step, _ in checkpoint.complete(folder)]


def history(folder: Path) -> list[dict[str, Any]]:
    """All records but resumes, without times."""
    records = [r for r in read_metrics(folder / METRICS_FILE) if r["kind"] != "resume"]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def assert_same_state(first: Path, second: Path) -> None:
    (one, _), (other, _) = checkpoint.load(first), checkpoint.load(second)
    assert {g: t.keys() for g, t in one.items()} == {g: t.keys() for g, t in other.items()}
    for group, name in ((g, n) for g, tensors in one.items() for n in tensors):
        assert torch.equal(one[group][name], other[group][name]), f"{group} {name}"
