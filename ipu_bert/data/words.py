"""Words in sequences of word pieces."""

from __future__ import annotations

import numpy as np


def word_starts(goes_on: np.ndarray, special: np.ndarray) -> np.ndarray:
    """Where a word starts: bool [B, S].

    goes_on: bool [B, S], tokens that go on with the word before, see `masking.continues`. special: bool [B, S], tokens
    of no word; the token after one starts a word even if truncation left it the rest of one.
    """
    after = np.ones(special.shape, bool)
    after[:, 1:] = special[:, :-1]
    starts: np.ndarray = ~special & (~goes_on | after)
    return starts


def word_sizes(starts: np.ndarray, special: np.ndarray) -> np.ndarray:
    """How many pieces the word of a token has: int64 [B, S], 0 where `special` [B, S]; starts as `word_starts`."""
    batch, width = starts.shape
    word = np.cumsum(starts, axis=1) - 1 + np.arange(batch)[:, None] * width
    pieces = np.bincount(word[~special], minlength=batch * width)
    return np.where(special, 0, pieces[word])
