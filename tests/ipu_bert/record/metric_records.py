"""Records as a run writes them, and a clock that tests turn."""

from __future__ import annotations

from typing import Any


def train(step: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "mlm_loss": 6.5,
        "nsp_loss": 0.69,
        "lr": 1e-4,
        "grad_norm": 1.0,
        "sequences_per_second": 100.0,
        "tokens_per_second": 12800.0,
        "elapsed": float(step),
        **more,
    }


UPDATE = {
    "kind": "update",
    "step": 40,
    "update": 2,
    "ratio": 0.48,
    "moved": 24,
    "blocks": 624,
    "explored_dof": 0.151,
    "removed_new": 0.25,
    "churn": 0.04,
    "mean_age": 3.5,
    "seconds": 0.02,
    "layers": {"bert.encoder.layer.0.output.dense": {"moved": 24, "blocks": 624, "explored_dof": 0.151}},
}
EVAL = {
    "kind": "eval",
    "step": 40,
    "mlm_loss": 6.1234,
    "nsp_loss": 0.6931,
    "mlm_accuracy": 0.125,
    "nsp_accuracy": 0.5,
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
