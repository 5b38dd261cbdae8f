"""The settings of runs that take seconds."""

from __future__ import annotations

from pathlib import Path


def tiny_settings(corpus: Path, prepared: Path) -> dict[str, dict[str, object]]:
    """Of a 2x64 BERT with 8x8 blocks on the small corpus, without its folder."""
    return {
        "model": {"layers": 2, "hidden_size": 64, "heads": 2, "max_positions": 64, "dropout": 0.1},
        "sparsity": {"sparsity": 0.8, "block_size": 8, "updates": 4},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "data": {
            "source": "files",
            "path": str(corpus),
            "dir": str(prepared),
            "vocab_size": 1000,
            "workers": 1,
            "heldout_fraction": 0.2,
            "sequence_length": 32,
            "max_predictions": 5,
        },
        "train": {"steps": 12, "batch_size": 4},
        "eval": {"every": 0, "batches": 2},
        "checkpoint": {"every": 0},
        "log": {"every": 1, "tensorboard": False},
    }
