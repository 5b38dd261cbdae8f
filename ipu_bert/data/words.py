"""Words in sequences of word pieces."""

from __future__ import annotations

import numpy as np


def word_sizes(ids: np.ndarray, goes_on: np.ndarray, special: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(whether a word starts here, how many pieces the word of this token has): bool and int64, [B, S] like ids.

    ids: int [B, S]. goes_on: bool [vocab], see `masking.continues`. special: bool [B, S], tokens of no word, whose size
    is 0; the token after one starts a word even if truncation left it the rest of one.
    """
    batch, width = ids.shape
    after = np.ones((batch, width), bool)
    after[:, 1:] = special[:, :-1]
    starts = ~special & (~goes_on[ids] | after)
    word = np.cumsum(starts, axis=1) - 1 + np.arange(batch)[:, None] * width
    pieces = np.bincount(word[~special], minlength=batch * width)
    return starts, np.where(special, 0, pieces[word])
