"""A config as plain values, and what two runs must share for one to continue the other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from ipu_bert.settings import Config


def as_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain values."""
    return dataclasses.asdict(config)


def config_hash(config: Config) -> str:
    """SHA-256 of the settings that decide the numbers of a run, `identity` below."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def identity(config: Config) -> dict[str, Any]:
    """The settings that two runs must share for one to continue the other, as `section.key: value`.

    Left out: names and folders, logging, how often to evaluate and save, where to stop, threads and kernels.
    """
    free = {"run.name", "run.dir", "train.stop_at", "train.skip_non_finite", "data.dir", "data.workers", "data.path"}
    free |= {"model.init", "sparsity.init_pattern"}  # what a run started from is in its checkpoints
    flat = {f"{s}.{k}": v for s, keys in as_dict(config).items() for k, v in keys.items()}
    return {
        key: value
        for key, value in flat.items()
        if key not in free and key.split(".")[0] not in ("eval", "checkpoint", "engine", "ipu", "log")
    }
