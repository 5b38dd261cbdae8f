"""What word frequencies are worth."""

from __future__ import annotations

import math
from typing import Iterable

import numpy as np


def unigram_baseline(train: np.ndarray, heldout: np.ndarray, not_predicted: Iterable[int]) -> dict[str, float]:
    """What word frequencies are worth on all tokens of a held-out text; a model is asked for some (surprises).

    train, heldout: int [vocab], how often each id occurs; ids of `not_predicted` are left out.
    heldout_cross_entropy, in nats: -sum_i q_i log p_i, with the held-out split's frequencies q_i and
    p_i = (train_i + 1) / (sum_j train_j + number of ids). heldout_accuracy: the share of held-out tokens that are the
    training split's most frequent id.
    """
    keep = np.ones(len(train), bool)
    keep[list(not_predicted)] = False
    seen, asked = train[keep].astype(np.float64), heldout[keep].astype(np.float64)
    return {
        "heldout_cross_entropy": float(-(asked * log_shares(seen)).sum() / asked.sum()),
        "heldout_accuracy": float(asked[seen.argmax()] / asked.sum()),
    }


def log_shares(seen: np.ndarray) -> np.ndarray:
    """log of (seen + 1) / (sum of seen + number of ids): float64 [ids]."""
    counts = seen.astype(np.float64)
    found: np.ndarray = np.log(counts + 1.0) - math.log(counts.sum() + len(counts))
    return found


def surprises(seen: np.ndarray, labels: np.ndarray, not_predicted: Iterable[int]) -> np.ndarray:
    """-log of what a guess by word frequencies gives to each label, in nats: float64 [labels].

    seen: int [vocab], how often each id is in the training text; smoothed, ids of `not_predicted` left out, as in
    `unigram_baseline`.
    """
    keep = np.ones(len(seen), bool)
    keep[list(not_predicted)] = False
    found = np.full(len(seen), np.inf)
    found[keep] = -log_shares(seen[keep])
    return found[labels]
