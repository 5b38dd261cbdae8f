"""Judging by held-out batches: with own words, with others, in parts, and until it is stopped."""

from __future__ import annotations

import math
from collections import Counter
from statistics import mean

import numpy as np
import pytest

from ipu_bert import assemble
from ipu_bert.data.batches import Batch
from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.data.other_words import OtherWords
from ipu_bert.engines.base import EvalResult
from ipu_bert.judging import Judge, frequencies_in_training


def word_before(batch: Batch) -> EvalResult:
    """A stand-in for a model, whose loss for a label is the number of the word that stands before it."""
    labels = batch.masked_labels != IGNORED_LABEL
    before = batch.input_ids.gather(1, (batch.masked_positions - 1).clamp(min=0))[labels]
    return EvalResult(float(before.sum()), int(labels.sum()), 0, 0.0, len(labels), 0)


def test_own_words_and_others(tiny) -> None:
    config = tiny("eval.batches=5")
    data = assemble.open_data(config, progress=False)
    stream, seen = assemble.make_stream(config, data, "heldout"), data.split("train").tokens
    judge = Judge(data, stream, np.bincount(seen, minlength=data.vocab_size), 5)
    result, context = judge.judge(word_before) or pytest.fail("it was stopped")
    batches, size = [stream.batch(number) for number in range(5)], config.train.batch_size
    assert judge.numbers == range(5)
    assert result.mlm_sum == sum(word_before(batch).mlm_sum for batch in batches)
    assert (result.mlm_count, result.nsp_count) == (context.mlm_labels, 5 * size)
    others = [OtherWords(data).around(batch, number * size) for number, batch in enumerate(batches)]
    loss = sum(word_before(other).mlm_sum for other in others) / result.mlm_count
    assert context.other_words_loss == pytest.approx(loss) != result.means()["mlm_loss"]
    # Word frequencies, by hand, on the labels that are judged.
    counts = Counter(seen.tolist())
    labels = [i for batch in batches for row in batch.masked_labels.tolist() for i in row if i != IGNORED_LABEL]
    total = sum(counts.values()) + data.vocab_size - 4
    assert context.word_frequencies_loss == pytest.approx(-mean(math.log((counts[i] + 1) / total) for i in labels))
    assert context.mlm_labels == len(labels)
    # Of what is no label and no special token, how much is another beside them.
    special, around, changed = data.special_ids(), 0, 0
    for batch, other in zip(batches, others):
        for row, places in enumerate(batch.masked_positions.tolist()):
            wanted = batch.masked_labels[row].tolist()
            asked = {place for place, label in zip(places, wanted) if label != IGNORED_LABEL}
            for column, (mine, another) in enumerate(zip(batch.input_ids[row].tolist(), other.input_ids[row].tolist())):
                if column not in asked and mine not in [special[f"[{name}]"] for name in ("PAD", "CLS", "SEP")]:
                    around, changed = around + 1, changed + (mine != another)
    assert context.other_words_share == changed / around
    assert 0.5 < context.other_words_share < 1.0
    # Parts of batches, as ranks take them.
    halves = [judge.judge(word_before, share=(part, 2)) or pytest.fail("it was stopped") for part in (0, 1)]
    assert sum(half.mlm_sum for half, _ in halves) == result.mlm_sum
    assert [half.other_words_share for _, half in halves] == 2 * [changed / around]
    assert sum(half.other_words_loss * half.mlm_labels for _, half in halves) == pytest.approx(loss * len(labels))


def test_what_word_frequencies_come_to_in_training(tiny) -> None:
    """By hand: a label costs what its frequency says where another id stands in its place, and nothing where it stands
    there itself; about a tenth does."""
    data = assemble.open_data(tiny(), progress=False)
    stream, tokens = assemble.make_stream(tiny(), data, "train"), data.split("train").tokens
    counts = Counter(tokens.tolist())
    total = sum(counts.values()) + data.vocab_size - 4
    costs: list[float] = []
    number = -1
    while len(costs) < 4000:
        number += 1
        batch = stream.batch(number)
        for ids, places, labels in zip(
            *(part.tolist() for part in (batch.input_ids, batch.masked_positions, batch.masked_labels))
        ):
            for place, label in zip(places, labels):
                if label != IGNORED_LABEL:
                    costs.append(0.0 if ids[place] == label else -math.log((counts[label] + 1) / total))
    assert 0.05 < costs.count(0.0) / len(costs) < 0.2
    seen = np.bincount(tokens, minlength=data.vocab_size)
    assert frequencies_in_training(data, stream, seen) == pytest.approx(mean(costs))


@pytest.mark.parametrize("asked", range(11))
def test_it_is_stopped_before_any_pass(tiny, asked: int) -> None:
    config = tiny("eval.batches=5")
    data = assemble.open_data(config, progress=False)
    judge = Judge(data, assemble.make_stream(config, data, "heldout"), np.ones(data.vocab_size, np.int64), 5)
    answers, judged = iter([False] * asked + [True]), []

    def evaluate(batch: Batch) -> EvalResult:
        judged.append(batch)
        return word_before(batch)

    assert judge.judge(evaluate, stopped=lambda: next(answers)) is None
    assert len(judged) == asked
