"""What word frequencies are worth on the tokens that a model is asked for, by hand and on small texts."""

from __future__ import annotations

import math
import random
from collections import Counter
from statistics import mean, stdev

import numpy as np
import pytest
from data_corpora import prepared, random_documents
from data_streams import stream

from ipu_bert.data import masking
from ipu_bert.data.frequencies import (
    CLEAR_MARGIN,
    LabelCounts,
    WordFrequencies,
    never_asked_share,
    word_frequencies,
)
from ipu_bert.data.masking import never_asked, wanted
from ipu_bert.data.quality import text_quality, told_never_asked
from ipu_bert.data.token_files import Split, TokenFiles

IDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}


def test_by_hand() -> None:
    # [UNK] and two pieces can be asked for, seen 1, 5 and 3 times, plus one: 2/12, 6/12 and 4/12.
    seen, asked = np.array([9, 1, 9, 9, 9, 5, 3]), np.array([0, 0, 0, 0, 0, 3, 1])
    found = word_frequencies(seen, asked, IDS, never=0.0)
    surprises = [math.log(2), math.log(2), math.log(2), math.log(3)]
    assert found.plain == found.loss == pytest.approx(sum(surprises) / 4)
    assert found.labels == 4
    assert found.margin == pytest.approx(2 * stdev(surprises) / 2)
    # A quarter of the text is never asked for: the others have 4/3 of the probability.
    spared = word_frequencies(seen, asked, IDS, never=0.25)
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
    assert never_asked(tokens, sentences, goes_on, 4) == pytest.approx([1.0, 7 / 9, 3 / 9, 0.0, 0.0])
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
        assert found == pytest.approx([sum(word for word in words if word > most) / 500 for most in range(4)])


def pieces_of_words(split: Split, vocabulary: list[str]) -> list[int]:
    """Of each word of a text, by its pieces' spelling."""
    found = []
    for begin, end in zip(split.sentences[:-1], split.sentences[1:]):
        words = " ".join(vocabulary[i] for i in split.tokens[begin:end]).replace(" ##", "##").split()
        found += [1 + word.count("##") for word in words]
    return found


@pytest.mark.parametrize("whole_word", [True, False])
def test_the_labels_that_are_judged(monkeypatch: pytest.MonkeyPatch, tmp_path, seed: int, whole_word: bool) -> None:
    """Not the whole text, of which whole words of many pieces are left out, in short sequences words of fewer."""
    files = prepared(monkeypatch, tmp_path, random_documents(seed, 120), vocab_size=130)
    judging = stream(
        files,
        "heldout",
        batch_size=4,
        sequence_length=64,
        max_predictions=20,
        whole_word=whole_word,
        short_sequence_probability=0.8,
        mask_probability=0.06,
    )
    seen = Counter(np.asarray(files.split("train").tokens).tolist())
    total = sum(seen.values()) + files.vocab_size - 4
    pieces = {name: pieces_of_words(files.split(name), files.vocabulary()) for name in ("train", "heldout")}
    surprises, spared, lengths = [], [], set()
    for number in judging.first_batches(5):
        batch = judging.batch(number)
        for row, length in zip(batch.masked_labels.tolist(), batch.attention_mask.sum(1).tolist()):
            most = max(1, round(0.06 * length))
            share = max(sum(n for n in words if n > most) / sum(words) for words in pieces.values())
            labels = [i for i in row if i != -100]
            lengths.add(most)
            surprises += [-math.log((seen[i] + 1) / total) for i in labels]
            spared += [math.log(1 - share) if whole_word else 0.0 for _ in labels]
    assert len(lengths) > 1  # sequences of several lengths ask for several numbers of tokens
    counts = np.array([seen[i] for i in range(files.vocab_size)])
    asked = judging.label_counts(judging.first_batches(5))
    never = never_asked_share(files, asked, whole_word)
    found = word_frequencies(counts, asked.ids, files.special_ids(), never)
    assert found.labels == len(surprises) == asked.by_wanted.sum()
    assert found.plain == pytest.approx(mean(surprises))
    assert found.margin == pytest.approx(max(0.05, 2 * stdev(surprises) / math.sqrt(len(surprises))))
    assert found.loss == pytest.approx(max(0.0, mean(surprises) + mean(spared)))
    assert never == pytest.approx(1 - math.exp(mean(spared)))
    if whole_word:
        assert never > 0.03
    quality = text_quality(files, 64, never)
    (told,) = told_never_asked(never) or [""]
    assert (told in quality.warnings()) == whole_word
    assert told.startswith(f"{100 * never:.1f} % of the tokens are in words of more") == whole_word
    assert told_never_asked(0.01) == []


class ByHand(TokenFiles):
    """A text whose training split alone has a word of two pieces, the half of it."""

    def __init__(self) -> None:
        pass

    def split(self, name: str) -> Split:
        tokens = {"train": [0, 1, 0, 0], "heldout": [0, 0, 0]}[name]
        return Split(np.array(tokens), np.array([0, len(tokens)]), np.array([0, 1]))

    def vocabulary(self) -> list[str]:
        return ["a", "##b"]


def test_the_text_with_more_of_such_words_counts() -> None:
    # 6 labels of sequences that ask for one token, 2 of those that ask for two: half the text, three times in four.
    asked = LabelCounts(np.array([8, 0]), np.array([0, 6, 2]))
    assert never_asked_share(ByHand(), asked, True) == pytest.approx(1 - 0.5**0.75)
    assert never_asked_share(ByHand(), asked, False) == 0.0
    assert never_asked_share(ByHand(), LabelCounts(0 * asked.ids, 0 * asked.by_wanted), True) == 0.0


def test_a_constant_guess_is_not_clearly_below_on_short_documents_of_long_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path, seed: int
) -> None:
    """Words drawn one by one, and one of eight letters, each a piece, a line: there is no context to be read.

    Documents of two such lines ask for 4 tokens, though a full sequence of 128 asked for 19, so the long words are
    never labels; a guess by how often words are was put a nat too high, and such a run was told to read context.
    """
    draw = random.Random(seed)
    short = [a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmnrst"][:120]
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = tmp_path / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab.write_text("\n".join([*special, *short, *letters, *(f"##{c}" for c in letters)]) + "\n")
    documents = []
    for _ in range(400):
        lines = []
        for _ in range(2):
            words = draw.choices(short, [1 / (i + 1) for i in range(120)], k=5)
            words.insert(draw.randrange(6), "x" + "".join(draw.choices(letters, k=7)))
            lines.append(" ".join(words))
        documents.append("\n".join(lines))
    files = prepared(monkeypatch, tmp_path, documents, tokenizer=str(vocab), line_is_sentence=True)
    options = dict(batch_size=8, sequence_length=128, max_predictions=20)
    train, judging = stream(files, **options), stream(files, "heldout", **options)
    learned = train.label_counts(range(40)).ids[5:] + 1.0
    counts = np.bincount(np.asarray(files.split("train").tokens), minlength=files.vocab_size)
    asked = judging.label_counts(judging.first_batches(100))
    guess = -(asked.ids[5:] * np.log(learned / learned.sum())).sum() / asked.ids[5:].sum()
    never = never_asked_share(files, asked, True)
    found = word_frequencies(counts, asked.ids, files.special_ids(), never)
    assert found.labels > 100
    assert found.plain - guess > 0.5  # by what is seen in the text it would be clear
    assert not found.clearly_above(guess)
    assert never > 0.5
