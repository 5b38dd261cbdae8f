"""Other words around what is asked for: what stays, what changes, and what a model can make of it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from data_corpora import prepared, random_documents
from data_streams import original, stream, within

from ipu_bert.data.batches import Batch, BatchStream
from ipu_bert.data.filling import filling, told_never_asked
from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.data.other_words import OtherWords, Pieces
from ipu_bert.data.token_files import Split, TokenFiles
from ipu_bert.data.words import word_sizes, word_starts

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def test_words_by_hand() -> None:
    # [CLS] a ##b [SEP] ##b a ##b [SEP]: what stands after a special token starts a word, whatever it is.
    goes_on = np.array([False, False, True])
    ids = np.array([[0, 1, 2, 0, 2, 1, 2, 0], [0, 2, 2, 2, 0, 0, 0, 0]])
    starts = word_starts(goes_on[ids], ids == 0)
    sizes = word_sizes(starts, ids == 0)
    assert starts.tolist() == [[False, True, False, False, True, True, False, False], [False, True, *6 * [False]]]
    assert sizes.tolist() == [[0, 2, 2, 0, 1, 2, 2, 0], [0, 3, 3, 3, 0, 0, 0, 0]]


THAI = ("\u0e01", "\u0e02", "\u0e04")


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("x ##y ##x z", "1001"),
        (f"{THAI[0]} ##{THAI[1]} ##{THAI[2]}", "111"),
        (f"x ##y ##{THAI[0]} ##{THAI[1]}", "1011"),  # a name in Latin letters in the midst of Thai is a word
        (f"{THAI[0]} ##x ##y ##{THAI[1]}", "1101"),
        (f"{THAI[0]}x ##y ##y{THAI[1]} ##x", "1001"),
        ("\u30ab ##\u30ca ##x \u4e2d x ##y \u1780 ##\u1781 ##\u17d2\u1782", "111110111"),
        ("\uac00 ##\ub098 \u0915 ##\u093e [UNK] ##x ##", "1010100"),  # Korean and Hindi have spaces
    ],
)
def test_where_a_word_starts_by_hand(text: str, starts: str) -> None:
    vocabulary = sorted(set(text.split()))
    ids = np.array([[vocabulary.index(piece) for piece in text.split()]])
    goes_on = Pieces(vocabulary).go_on(ids)
    assert "".join(str(int(start)) for start in word_starts(goes_on, np.zeros(ids.shape, bool))[0]) == starts


def test_in_scripts_without_spaces_each_piece_becomes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """What stands between spaces is a sentence there: with a label in it, all of it stayed."""
    draw = random.Random(seed)
    inside = [*THAI, "\u0e07", "\u0e08"]
    runs = [["".join(draw.choices(letters, k=draw.randint(3, 9))) for letters in (inside, "xyz")] for _ in range(1500)]
    vocabulary = [*SPECIAL, *inside, *"xyz", *(f"##{letter}" for letter in (*inside, *"xyz"))]
    files = text_of(tmp_path / "both", monkeypatch, runs, vocabulary[5:])
    others, judging = OtherWords(files), stream(files, "heldout", whole_word=False)
    became: Counter[tuple[str, str]] = Counter()
    latin = 0
    for number in range(8):
        batch = judging.batch(number)
        other, asked, before = others.around(batch, number * 16), asked_places(batch), original(batch)
        around = changed = 0
        for row in range(16):
            was, new = ([vocabulary[i] for i in found[row].tolist()] for found in (before, other.input_ids))
            for column, piece in enumerate(was):
                if (row, column) in asked:
                    assert other.input_ids[row, column] == batch.input_ids[row, column]
                elif piece in SPECIAL:
                    assert new[column] == piece
                else:
                    around, changed = around + 1, changed + (new[column] != piece)
                    assert new[column].startswith("##") == piece.startswith("##")  # where spaces were
                    latin += piece.strip("#") in "xyz"
                    became.update([(piece, new[column])] if piece.strip("#") in inside else [])
        assert others.changed(batch, number * 16) == (around, changed)
    # Inside a run all five letters are as frequent; Latin pieces inside are of whole words, and in none of theirs.
    assert min(latin, sum(became.values())) > 500
    inner = Counter({pair: count for pair, count in became.items() if pair[0].startswith("##")})
    assert {new.strip("#") for _, new in inner} == set(inside)
    assert within(sum(count for (was, new), count in inner.items() if was == new), sum(inner.values()), 1 / 5)


def test_own_letters_gain_nothing_where_they_are_drawn_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """And what the letter before says, where it says something: a model of it was told to read nothing."""
    draw = random.Random(seed)
    letters = [chr(0x0E01 + k) for k in range(30)]
    weights = [1 / (1 + k) for k in range(30)]
    words = [*letters, *(f"##{letter}" for letter in letters)]
    by_chance = [["".join(draw.choices(letters, weights, k=12))] for _ in range(4000)]
    files = text_of(tmp_path / "chance", monkeypatch, by_chance, words)
    anything = {(a, b): draw.gauss(0.0, 2.0) for a in range(5, 65) for b in range(5, 65)}
    gain, error = heldout_gain(files, stream(files, "heldout", whole_word=False), anything)
    assert 0.0 < error < 0.1
    assert abs(gain) < 5 * error
    in_order = [
        ["".join(letters[i] for k in draw.choices(range(30), weights, k=6) for i in (k, (k + 1) % 30))]
        for _ in range(4000)
    ]
    files = text_of(tmp_path / "order", monkeypatch, in_order, words)
    follows = {(start + k, 35 + (k + 1) % 30): -1.0 for k in range(30) for start in (5, 35)}
    gain, error = heldout_gain(files, stream(files, "heldout", whole_word=False), follows)
    assert gain > 0.25
    assert gain > 10 * error


def pieces(ids: list[int], vocabulary: list[str]) -> list[list[tuple[str, ...]]]:
    """The words between special tokens, in rows of words."""
    parts: list[list[list[str]]] = [[]]
    for token in ids:
        piece = vocabulary[token]
        if piece in ("[PAD]", "[CLS]", "[SEP]"):
            parts.append([])
        elif piece.startswith("##") and parts[-1]:
            parts[-1][-1].append(piece)
        else:
            parts[-1].append([piece])
    return [[tuple(word) for word in part] for part in parts]


def words_of(split: Split, vocabulary: list[str]) -> Counter[tuple[str, ...]]:
    """A text's words, sentence by sentence."""
    found: Counter[tuple[str, ...]] = Counter()
    for begin, end in zip(split.sentences[:-1], split.sentences[1:]):
        found.update(pieces(split.tokens[begin:end].tolist(), vocabulary)[0])
    return found


def asked_places(batch: Batch) -> set[tuple[int, int]]:
    """(row, column) of what is asked for."""
    rows = zip(batch.masked_positions.tolist(), batch.masked_labels.tolist())
    return {
        (row, place)
        for row, (places, labels) in enumerate(rows)
        for place, label in zip(places, labels)
        if label != IGNORED_LABEL
    }


@pytest.mark.parametrize("whole_word", [True, False])
def test_words_become_others_of_as_many_pieces(files: TokenFiles, whole_word: bool) -> None:
    vocabulary, judging = files.vocabulary(), stream(files, "heldout", whole_word=whole_word)
    there, others = words_of(files.split("heldout"), vocabulary), OtherWords(files)
    changed = words = 0
    for number in range(4):
        batch = judging.batch(number)
        other = others.around(batch, number * 16)
        for name, tensor in vars(batch).items():
            assert name == "input_ids" or getattr(other, name) is tensor
        asked, before = asked_places(batch), original(batch)
        for row in range(16):
            own, new = batch.input_ids[row].tolist(), other.input_ids[row].tolist()
            assert [new[column] for r, column in asked if r == row] == [own[column] for r, column in asked if r == row]
            column = 0
            for part in pieces(before[row].tolist(), vocabulary):
                for word in part:
                    column = next(c for c in range(column, 32) if vocabulary[before[row, c]] == word[0])
                    shown = [vocabulary[token] for token in new[column : column + len(word)]]
                    free = [(row, column + k) not in asked for k in range(len(word))]
                    if word[0].startswith("##") or not all(free) or not any(len(w) == len(word) for w in there):
                        assert shown == [vocabulary[token] for token in own[column : column + len(word)]]
                    else:
                        fits = [
                            all(a == b for a, b, f in zip(w, shown, free) if f) for w in there if len(w) == len(word)
                        ]
                        assert any(fits)
                        words, changed = words + any(free), changed + (any(free) and shown != list(word))
                    column += len(word)
    assert changed > 0.9 * words > 100


def test_the_words_are_a_function_of_the_sequence(files: TokenFiles) -> None:
    """Whatever the size of a batch, and whoever makes it; of two sequences they are others."""
    judging, others = stream(files, "heldout"), OtherWords(files)
    whole = others.around(judging.batch(1), 16).input_ids
    parts = [others.around(judging.share(1, part, 4), 16 + 4 * part).input_ids for part in range(4)]
    assert [row for part in parts for row in part.tolist()] == whole.tolist()
    again = OtherWords(files).around(judging.batch(1), 16).input_ids
    assert (again == whole).all()
    assert (others.around(judging.batch(1), 17).input_ids != whole).any()


def heldout_gain(files: TokenFiles, judging: BatchStream, loss: dict[tuple[int, int], float]) -> tuple[float, float]:
    """(mean, standard error) over batches of what a model's own words gain it, that goes by the word before a label."""
    others, gains = OtherWords(files), []
    for number in judging.first_batches(10_000):
        batch = judging.batch(number)
        other = others.around(batch, number * judging.options.batch_size)
        before = original(batch).tolist()
        sums = [
            sum(loss.get((shown[row][column - 1], before[row][column]), 0.0) for row, column in asked_places(batch))
            for shown in (batch.input_ids.tolist(), other.input_ids.tolist())
        ]
        gains.append((sums[1] - sums[0]) / max(1, len(asked_places(batch))))
    return mean(gains), stdev(gains) / sqrt(len(gains))


def text_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[list[str]], words: list[str]) -> TokenFiles:
    """Documents of ten such lines, a word a piece."""
    tmp_path.mkdir()
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*SPECIAL, *words]) + "\n")
    documents = ["\n".join(" ".join(line) for line in lines[i : i + 10]) for i in range(0, len(lines), 10)]
    return prepared(monkeypatch, tmp_path, documents, tokenizer=str(vocab), line_is_sentence=True, heldout_fraction=0.5)


def test_own_words_gain_nothing_where_words_are_drawn_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever a model makes of them; and what the word before says, where it says something."""
    draw = random.Random(seed)
    words = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    weights = [1 / (1 + i) for i in range(len(words))]
    by_chance = [draw.choices(words, weights, k=12) for _ in range(4000)]
    files = text_of(tmp_path / "chance", monkeypatch, by_chance, words)
    anything = {(a, b): draw.gauss(0.0, 2.0) for a in range(5, 65) for b in range(5, 65)}
    gain, error = heldout_gain(files, stream(files, "heldout"), anything)
    assert 0.0 < error < 0.1
    assert abs(gain) < 5 * error
    # Each word is followed by the next one of the list, in every second place; a model that knows it is better by 1.
    in_order = [
        [w for k in draw.choices(range(60), weights, k=6) for w in (words[k], words[(k + 1) % 60])] for _ in range(4000)
    ]
    files = text_of(tmp_path / "order", monkeypatch, in_order, words)
    follows = {(5 + k, 5 + (k + 1) % 60): -1.0 for k in range(60)}
    gain, error = heldout_gain(files, stream(files, "heldout"), follows)
    assert gain > 0.25
    assert gain > 10 * error


@pytest.mark.parametrize("whole_word", [True, False])
def test_words_that_are_never_asked_for_are_counted_in_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, whole_word: bool
) -> None:
    files = prepared(monkeypatch, tmp_path, random_documents(seed, 120), vocab_size=130)
    train = stream(files, whole_word=whole_word, short_sequence_probability=0.8, mask_probability=0.06)
    vocabulary, tokens, never, lengths = files.vocabulary(), 0, 0, set()
    for number in range(32):
        batch = train.batch(number)
        for ids, length in zip(original(batch).tolist(), batch.attention_mask.sum(1).tolist()):
            most = max(1, round(0.06 * length))
            lengths.add(most)
            tokens += length - 3
            never += sum(len(w) for part in pieces(ids, vocabulary) for w in part if whole_word and len(w) > most)
    found = filling(train)
    assert found.sequences == 512
    assert len(lengths) > 1
    assert found.never_asked == pytest.approx(never / tokens)
    assert (found.never_asked > 0.1) == whole_word
    told = told_never_asked(found, "the training text's")
    assert set(told) <= set(found.warnings())
    said = f"{100 * never / tokens:.1f} % of the training text's tokens are in words of more"
    assert [line[: len(said)] for line in told] == [said] * whole_word
    assert told_never_asked(replace(found, never_asked=0.01), "its") == []
