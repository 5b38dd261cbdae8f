"""How a model is judged by held-out text: with its own words, and with others around what is asked for."""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any, Callable

import numpy as np

from ipu_bert.data.batches import Batch, BatchStream, unmasked
from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.data.other_words import OtherWords
from ipu_bert.data.token_files import Text
from ipu_bert.data.tokenizer import NOT_PREDICTED
from ipu_bert.data.unigram import surprises
from ipu_bert.engines.base import EvalResult
from ipu_bert.record.context import Context

ENOUGH, MOST_BATCHES = 4000, 1000  # a label's cost varies by some 2 nats: within 0.1 of what all of them come to


def frequencies_in_training(text: Text, stream: BatchStream, seen: np.ndarray) -> float:
    """The least that word frequencies come to in training [nats a label], a mean over ENOUGH labels.

    Of a guess by how often words are in that text, to which those that are left in their places cost nothing. stream:
    of the text's training split. seen: int [vocab], how often each id is in it. NaN where nothing is asked for.
    """
    cost, count, number = 0.0, 0, 0
    while count < ENOUGH and number < MOST_BATCHES:
        batch, number = stream.batch(number), number + 1
        (ids, asked), shown = unmasked(batch), batch.input_ids.numpy()
        count += int(asked.sum())
        cost += float(_surprises(text, seen, ids[asked & (shown != ids)]).sum())
    return cost / count if count else math.nan


def _surprises(text: Text, seen: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log of what a guess by how often words are in a text gives to labels of that vocabulary, in nats."""
    special = text.special_ids()
    return surprises(seen, labels, [special[token] for token in NOT_PREDICTED])


class Judge:
    """Judges by the first batches of a text's held-out split, at most one pass over it.

    stream: of that split. seen: int [vocab], how often each id is in the training text. batches: how many are asked
    for; `numbers` are those that the text has.
    """

    def __init__(self, text: Text, stream: BatchStream, seen: np.ndarray, batches: int) -> None:
        self.stream, self.numbers = stream, stream.first_batches(batches)
        self._others = OtherWords(text)
        labels = [np.zeros(0, np.int64)]
        around = changed = 0
        for number in self.numbers:
            batch = stream.batch(number)
            asked = batch.masked_labels.numpy()
            labels.append(asked[asked != IGNORED_LABEL])
            counts = self._others.changed(batch, number * stream.options.batch_size)
            around, changed = around + counts[0], changed + counts[1]
        self._changed = changed / around if around else math.nan
        found = _surprises(text, seen, np.concatenate(labels))
        self._frequencies = float(found.mean()) if len(found) else math.nan

    def judge(
        self,
        evaluate: Callable[[Batch], EvalResult],
        share: tuple[int, int] = (0, 1),
        stopped: Callable[[], Any] = lambda: False,
    ) -> tuple[EvalResult, Context] | None:
        """What `evaluate` makes of the batches, and of the same with other words around.

        share: (part, parts) of every batch that this process makes and hands in; `evaluate` gives the sums of all of
        them. None once `stopped`, which is asked before each batch and at the end.
        """
        part, parts = share
        size = self.stream.options.batch_size
        own: list[EvalResult] = []
        others: list[EvalResult] = []
        for number in self.numbers:
            batch = self.stream.share(number, part, parts)
            other = self._others.around(batch, number * size + part * (size // parts))
            for words, results in ((batch, own), (other, others)):
                if stopped():
                    return None
                results.append(evaluate(words))
        if stopped():
            return None
        sums = [(mine.mlm_sum, other.mlm_sum, mine.mlm_count) for mine, other in zip(own, others)]
        return reduce(add, own), Context.of_sums(sums, self._frequencies, self._changed)
