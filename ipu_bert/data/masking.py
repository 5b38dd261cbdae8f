"""Masked-LM targets for a batch: which tokens are predicted, and what stands in their place."""

from __future__ import annotations

from typing import Sequence

import numpy as np

IGNORED_LABEL = -100  # of a place that is not predicted; what torch's cross_entropy ignores


def wanted(lengths: np.ndarray | int, max_predictions: int, mask_probability: float) -> np.ndarray:
    """How many tokens sequences of so many, [CLS] and [SEP] included, ask for: int64, of the shape of `lengths`."""
    return np.clip(np.rint(np.multiply(lengths, mask_probability)), 1, max_predictions).astype(np.int64)


def continues(vocabulary: Sequence[str]) -> np.ndarray:
    """Which pieces go on with the word of the piece before them: bool [vocab]."""
    return np.array([piece.startswith("##") for piece in vocabulary])


def choose_tokens(
    starts: np.ndarray,
    maskable: np.ndarray,
    lengths: np.ndarray,
    priority: np.ndarray,
    max_predictions: int,
    mask_probability: float,
) -> np.ndarray:
    """Whole words in random order until enough tokens are chosen, as BERT does: bool [B, S].

    starts: bool [B, S], True where a word starts; the word goes on to the next start. maskable: bool [B, S], all but
    [CLS], [SEP] and padding; a start is maskable. lengths: int [B], tokens of the sequence, [CLS] and [SEP] included.
    priority: float [B, S], uniform; word w of a row comes in the order of priority[w].

    A row asks for round(lengths * mask_probability) tokens, 1 to max_predictions; a word that would exceed this is
    passed over and the next one tried, so a row never has more and can have a little less.
    """
    batch, width = starts.shape
    most = wanted(lengths, max_predictions, mask_probability)
    word = np.cumsum(starts, axis=1) - 1
    rows = np.arange(batch)
    flat = (rows[:, None] * width + word)[maskable]
    size = np.bincount(flat, minlength=batch * width).reshape(batch, width)
    order = np.argsort(np.where(size > 0, priority, 2.0), axis=1, kind="stable")  # rows' words first
    chosen = np.zeros((batch, width), bool)
    count = np.zeros(batch, np.int64)
    for place in range(int((size > 0).sum(axis=1).max())):
        candidate = order[:, place]
        tokens = size[rows, candidate]
        take = (tokens > 0) & (count + tokens <= most)
        chosen[rows, candidate] = take
        count += tokens * take
        if (count == most).all():
            break
    return chosen[rows[:, None], word] & maskable


def mask_tokens(
    ids: np.ndarray,
    chosen: np.ndarray,
    kind: np.ndarray,
    replacement: np.ndarray,
    mask_id: int,
    replaceable: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input ids [B, S], masked positions [B, P] and labels [B, P], int64.

    ids: int64 [B, S], the text. chosen: bool [B, S], at most P True in a row. kind, replacement: float [B, P], uniform.

    Each chosen token by itself becomes [MASK] (80 %), stays (10 %), or becomes one of `replaceable` ids (10 %). Unused
    places have position 0 and label IGNORED_LABEL.
    """
    row, column = np.nonzero(chosen)
    place = (np.cumsum(chosen, axis=1) - 1)[row, column]
    positions = np.zeros(kind.shape, np.int64)
    labels = np.full(kind.shape, IGNORED_LABEL, np.int64)
    positions[row, place] = column
    labels[row, place] = original = ids[row, column]
    draw = kind[row, place]
    random_id = replaceable[(replacement[row, place] * len(replaceable)).astype(np.int64)]
    inputs = ids.copy()
    inputs[row, column] = np.where(draw < 0.8, mask_id, np.where(draw < 0.9, original, random_id))
    return inputs, positions, labels
