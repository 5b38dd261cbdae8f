"""What word frequencies are worth on the tokens that a model is asked for, by hand and on small texts."""

from __future__ import annotations

import math
import random
from collections import Counter
from statistics import stdev

import numpy as np
import pytest
from data_corpora import prepared, random_documents
from data_streams import stream

from ipu_bert.data import masking
from ipu_bert.data.frequencies import CLEAR_MARGIN, WordFrequencies, word_frequencies
from ipu_bert.data.masking import never_asked, wanted
from ipu_bert.data.quality import text_quality, told_never_asked
from ipu_bert.settings import DataSettings

IDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}


def test_by_hand() -> None:
    # [UNK] and two pieces can be asked for, seen 1, 5 and 3 times, plus one: 2/12, 6/12 and 4/12.
    seen, asked = np.array([9, 1, 9, 9, 9, 5, 3]), np.array([0, 0, 0, 0, 0, 3, 1])
    found = word_frequencies(seen, asked, IDS, never_asked=0.0)
    surprises = [math.log(2), math.log(2), math.log(2), math.log(3)]
    assert found.plain == found.loss == pytest.approx(sum(surprises) / 4)
    assert found.labels == 4
    assert found.margin == pytest.approx(2 * stdev(surprises) / 2)
    # A quarter of the text is never asked for: the others have 4/3 of the probability.
    spared = word_frequencies(seen, asked, IDS, never_asked=0.25)
    assert spared.loss == pytest.approx(sum(surprises) / 4 + math.log(3 / 4))
    assert (spared.plain, spared.margin) == (found.plain, found.margin)
    for all_of_it in (1.0, 1.0 - 1e-12):  # words cut at a sequence's end are asked for even so
        assert word_frequencies(seen, asked, IDS, all_of_it).loss == 0.0
    many = word_frequencies(seen, 10_000 * asked, IDS, 0.0)
    assert (many.plain, many.margin) == (pytest.approx(found.plain), CLEAR_MARGIN)
    none = word_frequencies(seen, 0 * asked, IDS, 0.5)
    assert none.labels == 0
    assert math.isnan(none.loss)


def test_when_a_loss_is_clearly_below() -> None:
    found = WordFrequencies(loss=6.0, plain=6.0, labels=100, margin=0.25)
    assert [found.clearly_above(loss) for loss in (5.7, 5.8, 6.0, 7.0, math.nan)] == [True, False, False, False, False]
    assert not WordFrequencies(6.0, 6.0, 99, 0.05).clearly_above(1.0)
    assert WordFrequencies.of_record({"step": 3, **found.as_record()}) == found
    for name in found.as_record():
        assert WordFrequencies.of_record({**found.as_record(), name: None}) is None


def test_words_of_too_many_pieces_by_hand() -> None:
    # a ##b c | ##b ##b ##b a | c ##b, where | ends a sentence: words of 2, 1, 3, 1 and 2 pieces.
    goes_on = masking.continues(["a", "##b", "c"])
    tokens, sentences = np.array([0, 1, 2, 1, 1, 1, 0, 2, 1]), np.array([0, 3, 7, 9])
    shares = [never_asked(tokens, sentences, goes_on, most) for most in (1, 2, 3)]
    assert shares == pytest.approx([7 / 9, 3 / 9, 0.0])
    # rint(8 x 0.15) = 1, rint(16 x 0.15) = 2, rint(30 x 0.15) = 4 by halves to even, at most 3 are made
    assert [int(wanted(length, 3, 0.15)) for length in (4, 8, 16, 30)] == [1, 1, 2, 3]


def test_what_is_never_asked_for_in_parts_of_a_text(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    draw = random.Random(seed)
    pieces = [draw.choice(["a", "##b", "##c"]) for _ in range(500)]
    sentences = [0, *sorted(draw.sample(range(1, 500), 60)), 500]
    words: list[int] = []
    for place, piece in enumerate(pieces):
        if place in sentences or not piece.startswith("##"):
            words.append(0)
        words[-1] += 1
    tokens = np.array([["a", "##b", "##c"].index(piece) for piece in pieces])
    for together in (1, 7, 100, 1 << 22):
        monkeypatch.setattr(masking, "_TOKENS", together)
        found = never_asked(tokens, np.array(sentences), masking.continues(["a", "##b", "##c"]), 3)
        assert found == pytest.approx(sum(word for word in words if word > 3) / 500)


@pytest.mark.parametrize("whole_word", [True, False])
def test_the_labels_that_are_judged(monkeypatch: pytest.MonkeyPatch, tmp_path, seed: int, whole_word: bool) -> None:
    """Not the whole text, of which whole words of many pieces are left out."""
    files = prepared(monkeypatch, tmp_path, random_documents(seed, 120), vocab_size=130)
    settings = DataSettings(sequence_length=16, max_predictions=6, whole_word_masking=whole_word)
    judging = stream(files, "heldout", batch_size=4, sequence_length=16, whole_word=whole_word)
    quality = text_quality(files, settings)
    seen = Counter(np.asarray(files.split("train").tokens).tolist())
    total = sum(seen.values()) + files.vocab_size - 4
    surprises = []
    for number in judging.first_batches(5):
        labels = judging.batch(number).masked_labels
        surprises += [-math.log((seen[i] + 1) / total) for i in labels[labels != -100].tolist()]
    counts = np.array([seen[i] for i in range(files.vocab_size)])
    asked = judging.label_counts(judging.first_batches(5))
    found = word_frequencies(counts, asked, files.special_ids(), quality.never_asked)
    assert found.labels == len(surprises)
    assert found.plain == pytest.approx(sum(surprises) / len(surprises))
    assert found.margin == pytest.approx(max(0.05, 2 * stdev(surprises) / math.sqrt(len(surprises))))
    assert found.loss == pytest.approx(found.plain + math.log(1 - quality.never_asked))
    # A sequence of 16 asks for rint(2.4) = 2 tokens.
    heldout, vocabulary = files.split("heldout"), files.vocabulary()
    long = 0
    for begin, end in zip(heldout.sentences[:-1], heldout.sentences[1:]):
        words = " ".join(vocabulary[i] for i in heldout.tokens[begin:end]).replace(" ##", "##").split()
        long += sum(1 + word.count("##") for word in words if word.count("##") > 1)
    assert quality.never_asked == pytest.approx(long / len(heldout.tokens) if whole_word else 0.0)
    if whole_word:
        assert quality.never_asked > 0.1
        assert found.loss < found.plain
    (told,) = told_never_asked(quality.never_asked) or [""]
    assert (told in quality.warnings()) == whole_word
    assert (
        told.startswith(f"{100 * quality.never_asked:.1f} % of the held-out tokens are in words of more") == whole_word
    )
    assert told_never_asked(0.01) == []
