"""Sequences with other words around what is asked for: what a model makes of them, it makes without their context."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import numpy as np
import torch

from ipu_bert.data.batches import HELDOUT_SEED, Batch, unmasked
from ipu_bert.data.masking import continues
from ipu_bert.data.sentences import is_unspaced
from ipu_bert.data.token_files import Text
from ipu_bert.data.words import word_sizes, word_starts

MOST_TOKENS = 2**20  # of a text, whose words are drawn from


class OtherWords:
    """Draws words from the held-out split of a text, for sequences of the same split.

    A word is what stands between spaces; in scripts without spaces, where that would be a sentence, it is a piece.
    In memory: 8 bytes for each word of the first MOST_TOKENS tokens.
    """

    def __init__(self, text: Text) -> None:
        self._tokens = np.asarray(text.split("heldout").tokens)[:MOST_TOKENS]
        self._pieces = Pieces(text.vocabulary())
        special = text.special_ids()
        self._apart = [special[name] for name in ("[PAD]", "[CLS]", "[SEP]")]
        first = np.flatnonzero(~self._pieces.go_on(self._tokens))
        sizes = np.diff(np.append(first, len(self._tokens)))
        joined = self._pieces.joined[self._tokens[first]]
        self._first = {
            (int(size), kind): where
            for size in np.unique(sizes)
            for kind in (False, True)
            if len(where := first[(sizes == size) & (joined == kind)])
        }

    def around(self, batch: Batch, example: int) -> Batch:
        """The same batch, each word in it replaced by one of as many pieces, drawn at random from the text.

        example: number of its first sequence, by which words are drawn, the same in every evaluation. A word of which
        any piece is asked for stays as it is shown, with [MASK] or without, and so do lengths, segments, spaces and
        where words begin. In a text whose words are drawn one by one, by their number of pieces, own and other words
        are equally likely beside any label: no model can expect to be better with its own, unless it has seen these
        very documents. The rest of a word whose beginning was cut off stays, and so does a word of as many pieces as
        none has that is drawn from.
        """
        ids, asked = unmasked(batch)
        special, goes_on = np.isin(ids, self._apart), self._pieces.go_on(ids)
        starts = word_starts(goes_on, special)
        sizes = word_sizes(starts, special)
        starts &= ~goes_on
        joined = self._pieces.joined[ids]
        draws = np.stack([self._draws(example + row, ids.shape[1]) for row in range(len(ids))])
        shown = batch.input_ids.numpy().copy()
        for (size, kind), first in self._first.items():
            row, column = np.nonzero(starts & (sizes == size) & (joined == kind))
            around = ~np.any([asked[row, column + piece] for piece in range(size)], axis=0)
            row, column = row[around], column[around]
            words = first[(draws[row, column] * len(first)).astype(np.int64)]
            for piece in range(size):
                shown[row, column + piece] = self._tokens[words + piece]
        return replace(batch, input_ids=torch.from_numpy(shown))

    def changed(self, batch: Batch, example: int) -> tuple[int, int]:
        """(tokens around what is asked for, how many of them are others in what `around` gives)."""
        ids, asked = unmasked(batch)
        beside = ~asked & ~np.isin(ids, self._apart)
        others = self.around(batch, example).input_ids.numpy() != ids
        return int(beside.sum()), int((beside & others).sum())

    @staticmethod
    def _draws(example: int, width: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=HELDOUT_SEED, counter=[0, example, 1, 0])).random(width)


class Pieces:
    """Which pieces of a vocabulary go on with the word before.

    joined: bool [vocab], pieces that no space stands before.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.joined = continues(vocabulary)
        letters = [piece[2 * joined :] for piece, joined in zip(vocabulary, self.joined.tolist())]
        self._opens, self._closes = (
            np.array([is_unspaced(piece[end]) for piece in letters]) for end in (slice(1), slice(-1, None))
        )

    def go_on(self, ids: np.ndarray) -> np.ndarray:
        """Whether a token goes on with the word of the token before it; bool, of the shape of ids, int [..., S]."""
        found: np.ndarray = self.joined[ids] & ~self._opens[ids]
        found[..., 1:] &= ~self._closes[ids[..., :-1]]
        return found
