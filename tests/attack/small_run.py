"""A run of a second for the attacks: made-up text, a one-layer BERT; updates, evaluations, checkpoints all the time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Callable

import yaml

STEPS = 8
SYLLABLES = ("ba", "den", "kor", "li", "mu", "nas", "pe", "ro")


def settings(folder: Path) -> dict[str, Any]:
    """The run's config as plain values; text and prepared data lie in `folder`, the run in its `run`."""
    return {
        "model": {"layers": 1, "hidden_size": 32, "heads": 2, "intermediate_size": 64, "max_positions": 16}
        | {"dropout": 0.1},
        "sparsity": {"sparsity": 0.5, "block_size": 8, "updates": 4},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "data": {"source": "files", "path": str(folder / "text"), "dir": str(folder / "data"), "vocab_size": 200}
        | {"workers": 1, "heldout_fraction": 0.2, "sequence_length": 16, "max_predictions": 2},
        "train": {"steps": STEPS, "batch_size": 4, "micro_batch_size": 2},
        "eval": {"every": 3, "batches": 2},
        "checkpoint": {"every": 2, "keep": 2},
        "engine": {"threads": 1},
        "log": {"every": 1, "tensorboard": False},
        "run": {"dir": str(folder / "run")},
    }


def write(folder: Path) -> Path:
    """Write text and config into `folder`; returns the config's path."""
    draw = random.Random(0)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(300)]
    (folder / "text").mkdir(parents=True)
    for number in range(12):
        sentences = (" ".join(draw.choices(words, k=9)).capitalize() + "." for _ in range(24))
        (folder / "text" / f"{number:02d}.txt").write_text("\n\n".join(sentences))
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings(folder)))
    return path


def blank_pictures(patch: Callable[[object, str, object], None]) -> None:
    """Runs in this process write empty pictures: drawing a run's three takes longer than all else that it does."""
    from sparse_ops import pictures

    patch(pictures, "drawn", lambda *_: b"")
