"""Sequences with other words around what is asked for: what a model makes of them, it makes without their context."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ipu_bert.data.batches import HELDOUT_SEED, Batch, unmasked
from ipu_bert.data.masking import continues
from ipu_bert.data.token_files import Text
from ipu_bert.data.words import word_sizes, word_starts

MOST_TOKENS = 2**20  # of a text, whose words are drawn from


class OtherWords:
    """Draws words from the held-out split of a text, for sequences of the same split.

    In memory: 8 bytes for each word of the first MOST_TOKENS tokens.
    """

    def __init__(self, text: Text) -> None:
        self._tokens = np.asarray(text.split("heldout").tokens)[:MOST_TOKENS]
        self._goes_on = continues(text.vocabulary())
        special = text.special_ids()
        self._apart = [special[name] for name in ("[PAD]", "[CLS]", "[SEP]")]
        first = np.flatnonzero(~self._goes_on[self._tokens])
        sizes = np.diff(np.append(first, len(self._tokens)))
        self._first = {int(size): first[sizes == size] for size in np.unique(sizes)}

    def around(self, batch: Batch, example: int) -> Batch:
        """The same batch, each word in it replaced by one of as many pieces, drawn at random from the text.

        example: number of its first sequence, by which words are drawn, the same in every evaluation. A word of which
        any piece is asked for stays as it is shown, with [MASK] or without, and so do lengths, segments and where words
        begin. In a text whose words are drawn one by one, by their number of pieces, own and other words are equally
        likely beside any label: no model can expect to be better with its own, unless it has seen these very documents.
        The rest of a word whose beginning was cut off stays, and so does a word of as many pieces as none has that is
        drawn from.
        """
        ids, asked = unmasked(batch)
        special = np.isin(ids, self._apart)
        starts = word_starts(ids, self._goes_on, special)
        sizes = word_sizes(starts, special)
        starts &= ~self._goes_on[ids]
        draws = np.stack([self._draws(example + row, ids.shape[1]) for row in range(len(ids))])
        shown = batch.input_ids.numpy().copy()
        for size, first in self._first.items():
            row, column = np.nonzero(starts & (sizes == size))
            around = ~np.any([asked[row, column + piece] for piece in range(size)], axis=0)
            row, column = row[around], column[around]
            words = first[(draws[row, column] * len(first)).astype(np.int64)]
            for piece in range(size):
                shown[row, column + piece] = self._tokens[words + piece]
        return replace(batch, input_ids=torch.from_numpy(shown))

    @staticmethod
    def _draws(example: int, width: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=HELDOUT_SEED, counter=[0, example, 1, 0])).random(width)
