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
from guesses import asked_one_by_one, share_given

from ipu_bert.data import masking
from ipu_bert.data.masking import never_asked, wanted
from ipu_bert.data.no_context import (
    CLEAR_MARGIN,
    Asked,
    NoContext,
    never_asked_share,
    no_context,
)
from ipu_bert.data.quality import text_quality, told_never_asked
from ipu_bert.data.token_files import Split, TokenFiles

IDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}


def asked(*pairs: tuple[int, int]) -> Asked:
    """Of (label, what is shown)."""
    labels, shown = np.array(pairs, np.int64).reshape(-1, 2).T
    return Asked(labels, shown, np.ones_like(labels))


def test_by_hand() -> None:
    # [UNK] and two pieces can be asked for, seen 1, 5 and 3 times, plus one: 2/12, 6/12 and 4/12.
    seen, masked = np.array([9, 1, 9, 9, 9, 5, 3]), [(5, 4), (5, 4), (6, 4), (5, 4)]
    found = no_context(seen, asked(*masked), IDS, never=0.0)
    surprises = [math.log(2), math.log(2), math.log(3), math.log(2)]
    assert found.plain == found.loss == pytest.approx(sum(surprises) / 4)
    assert found.labels == 4
    assert found.margin == pytest.approx(2 * stdev(surprises) / 2)
    # A quarter of the text is never asked for: the others have 4/3 of the probability.
    spared = no_context(seen, asked(*masked), IDS, never=0.25)
    assert spared.loss == pytest.approx(sum(surprises) / 4 + math.log(3 / 4))
    assert (spared.plain, spared.margin) == (found.plain, pytest.approx(found.margin))
    for all_of_it in (1.0, 1.0 - 1e-12):  # words cut at a sequence's end are asked for even so
        assert no_context(seen, asked(*masked), IDS, all_of_it).loss == 0.0
    many = no_context(seen, asked(*(10_000 * masked)), IDS, 0.0)
    assert (many.plain, many.margin) == (pytest.approx(found.plain), CLEAR_MARGIN)
    none = no_context(seen, asked(), IDS, 0.5)
    assert none.labels == 0
    assert math.isnan(none.loss)
    # 5 is shown, one of R = 2 ids that may be there by chance: it is the label with 1/2 x 3/2 to 1/2 x 1/2 for others.
    kept, replaced = (no_context(seen, asked((label, 5)), IDS, 0.0) for label in (5, 6))
    assert kept.loss == pytest.approx(-math.log(0.5 * 1.5 / (0.5 * 1.5 + 0.5 * 0.5)))
    assert replaced.loss == pytest.approx(-math.log(4 / 12 * 0.5 / (0.5 * 1.5 + 0.5 * 0.5)))
    assert (kept.plain, replaced.plain) == pytest.approx((math.log(2), math.log(3)))


def test_what_stands_in_the_place_counts(monkeypatch: pytest.MonkeyPatch, tmp_path, seed: int) -> None:
    """A tenth of the words are left in their places: by that alone a model was told to read context."""
    files = prepared(monkeypatch, tmp_path, random_documents(seed, 120), vocab_size=130)
    judging = stream(files, "heldout", batch_size=4, sequence_length=32, whole_word=False)
    special, vocabulary = files.special_ids(), files.vocab_size
    counts = np.bincount(np.asarray(files.split("train").tokens), minlength=vocabulary)
    ids = [i for i in range(vocabulary) if i not in {special[t] for t in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")}]
    total = sum(counts[i] + 1 for i in ids)
    share = {i: (counts[i] + 1) / total for i in ids}
    each = list(asked_one_by_one(judging, judging.first_batches(5)))
    expected = [-math.log(share_given(i, shown, share, special["[MASK]"], vocabulary - 5)) for i, shown, _ in each]
    found = no_context(counts, judging.asked(judging.first_batches(5)), special, 0.0)
    assert found.loss == pytest.approx(mean(expected))
    assert found.margin == pytest.approx(max(0.05, 2 * stdev(expected) / math.sqrt(len(expected))))
    assert found.plain == pytest.approx(mean(-math.log(share[i]) for i, _, _ in each))
    assert found.plain - found.loss > 0.1


def test_when_a_loss_is_clearly_below() -> None:
    found = NoContext(loss=6.0, plain=6.0, labels=100, margin=0.25)
    assert [found.clearly_above(loss) for loss in (5.7, 5.8, 6.0, 7.0, math.nan)] == [True, False, False, False, False]
    assert not NoContext(6.0, 6.0, 99, 0.05).clearly_above(1.0)
    assert NoContext.of_record({"step": 3, **found.as_record()}) == found
    for name in found.as_record():
        assert NoContext.of_record({**found.as_record(), name: None}) is None


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
    for label, _, length in asked_one_by_one(judging, judging.first_batches(5)):
        most = max(1, round(0.06 * length))
        lengths.add(most)
        share = max(sum(n for n in words if n > most) / sum(words) for words in pieces.values())
        surprises.append(-math.log((seen[label] + 1) / total))
        spared.append(math.log(1 - share) if whole_word else 0.0)
    assert len(lengths) > 1  # sequences of several lengths ask for several numbers of tokens
    counts = np.array([seen[i] for i in range(files.vocab_size)])
    judged = judging.asked(judging.first_batches(5))
    never = never_asked_share(files, judged, whole_word)
    found = no_context(counts, judged, files.special_ids(), never)
    assert found.labels == len(surprises)
    assert found.plain == pytest.approx(mean(surprises))
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
    eight = np.zeros(8, np.int64)
    judged = Asked(eight, eight, np.array(6 * [1] + 2 * [2]))
    assert never_asked_share(ByHand(), judged, True) == pytest.approx(1 - 0.5**0.75)
    assert never_asked_share(ByHand(), judged, False) == 0.0
    assert never_asked_share(ByHand(), asked(), True) == 0.0


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
    learned = np.bincount(train.asked(range(40)).labels, minlength=files.vocab_size)[5:] + 1.0
    share = {i: float(n) for i, n in enumerate(learned / learned.sum(), start=5)}
    each = list(asked_one_by_one(judging, judging.first_batches(100)))
    mask_id, replaceable = files.special_ids()["[MASK]"], files.vocab_size - 5
    guess = mean(-math.log(share_given(i, shown, share, mask_id, replaceable)) for i, shown, _ in each)
    counts, judged = (
        np.bincount(np.asarray(files.split("train").tokens), minlength=files.vocab_size),
        judging.asked(judging.first_batches(100)),
    )
    never = never_asked_share(files, judged, True)
    found = no_context(counts, judged, files.special_ids(), never)
    assert found.labels > 100
    assert found.plain - guess > 0.5  # by what is seen in the text it would be clear
    assert not found.clearly_above(guess)
    assert never > 0.5
