"""Pairs of sentences and batches of them: what they are made of, that they depend on their number alone, refusals."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_corpora import prepared
from data_streams import OPTIONS, WIDTH, original, stream, within

from ipu_bert.data.ahead import BatchAhead
from ipu_bert.data.batches import Batch, shares
from ipu_bert.data.errors import DataError
from ipu_bert.data.token_files import TokenFiles

FIELDS = tuple(Batch.__dataclass_fields__)


def pair(ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor) -> tuple:
    """The ids of A and of B of one row, without special tokens."""
    length = int(mask.sum())
    first = length - int(types.sum())
    return ids[1 : first - 1].tolist(), ids[first : length - 1].tolist()


# pairs


@pytest.mark.parametrize(
    ("a", "b", "most", "expected"),
    [
        (3, 4, 9, (3, 4)),
        (20, 3, 10, (7, 3)),
        (2, 30, 10, (2, 8)),
        (9, 9, 10, (5, 5)),
        (9, 9, 11, (6, 5)),
        (6, 20, 11, (6, 5)),
        (5, 20, 11, (5, 6)),
    ],
)
def test_shares_by_hand(a: int, b: int, most: int, expected: tuple) -> None:
    assert shares(a, b, most) == expected


def test_shares_equal_taking_tokens_one_by_one(seed: int) -> None:
    draw = np.random.default_rng(seed)
    for _ in range(500):
        a, b, most = (int(n) for n in draw.integers(1, 80, 3))
        most += 1
        left = [a, b]
        while sum(left) > most:
            left[0 if left[0] > left[1] else 1] -= 1
        assert shares(a, b, most) == tuple(left)


def test_pairs_are_text_of_the_right_documents(files: TokenFiles, seed: int) -> None:
    """A and B as token ranges: A in its chunk, B after it or from another document, never too long."""
    training = stream(files, seed=seed)
    arrays = files.split("train")
    tokens_of_documents = arrays.sentences[arrays.documents]

    def document(token: int) -> int:
        return int(np.searchsorted(tokens_of_documents, token, "right")) - 1

    random = total = 0
    for example in range(1500):
        chunk = training._order[example]
        first, last = training._chunks[chunk : chunk + 2]
        is_random, (a, a_end), (b, b_end) = training._layout(chunk, training._generator(example))
        assert a < a_end
        assert b < b_end
        assert (a_end - a) + (b_end - b) <= WIDTH - 3
        assert arrays.sentences[first] <= a
        assert a_end <= arrays.sentences[last]
        assert document(b) == document(b_end - 1)
        if is_random:
            assert document(a) != document(b)
        else:
            assert a_end <= b
            assert b_end <= arrays.sentences[last]
        if last - first > 1:  # a single sentence can only have a random partner
            random, total = random + is_random, total + 1
        else:
            assert is_random
    assert total > 1000
    assert within(random, total, 0.5)


def test_batches_show_the_pairs(files: TokenFiles, seed: int) -> None:
    """input_ids with the labels put back are [CLS] A [SEP] B [SEP] of the token ranges, and all fields agree."""
    training = stream(files, seed=seed)
    tokens = files.split("train").tokens
    special = files.special_ids()
    for index in range(20):
        batch = training.batch(index)
        ids = original(batch)
        for name in FIELDS:
            value = getattr(batch, name)
            assert value.dtype == (torch.bool if name == "attention_mask" else torch.int64)
        for row in range(16):
            example = index * 16 + row
            chunk = training._order[example]
            is_random, (a, a_end), (b, b_end) = training._layout(chunk, training._generator(example))
            left, right = tokens[a:a_end].tolist(), tokens[b:b_end].tolist()
            text = [special["[CLS]"], *left, special["[SEP]"], *right, special["[SEP]"]]
            padding = WIDTH - len(text)
            assert ids[row].tolist() == text + padding * [special["[PAD]"]]
            assert batch.attention_mask[row].tolist() == len(text) * [True] + padding * [False]
            types = (len(left) + 2) * [0] + (len(right) + 1) * [1] + padding * [0]
            assert batch.token_type_ids[row].tolist() == types
            assert batch.next_sentence_labels[row] == int(is_random)
            assert pair(ids[row], batch.token_type_ids[row], batch.attention_mask[row]) == (left, right)


def test_short_sequences(files: TokenFiles) -> None:
    def mean_length(probability: float) -> float:
        training = stream(files, batch_size=200, short_sequence_probability=probability)
        return float(training.batch(0).attention_mask.sum(1).float().mean())

    assert mean_length(1.0) < mean_length(0.5) < mean_length(0.0)


def test_short_sequences_start_anywhere_in_their_chunk(files: TokenFiles) -> None:
    training = stream(files, short_sequence_probability=1.0)
    arrays = files.split("train")
    chunk = int(np.argmax(np.diff(training._chunks)))
    first, last = training._chunks[chunk : chunk + 2]
    assert last - first > 3
    begins = set()
    for example in range(300):
        token = training._layout(chunk, training._generator(example))[1][0]
        begins.add(int(np.searchsorted(arrays.sentences, token, "right")) - 1)
    assert begins == set(range(first, last - 1))  # two sentences are left at least


def test_over_epochs_every_token_is_seen(files: TokenFiles) -> None:
    """What one epoch cuts off, another shows."""
    training = stream(files, batch_size=1, short_sequence_probability=0.1)
    seen = np.zeros(len(files.split("train").tokens), int)
    for example in range(40 * training.sequences_per_epoch):
        chunk = training._order[example]
        for begin, end in training._layout(chunk, training._generator(example))[1:]:
            seen[begin:end] += 1
    assert (seen > 0).mean() > 0.99


# purity


def fingerprint(batch: Batch) -> str:
    return hashlib.sha256(b"".join(getattr(batch, name).numpy().tobytes() for name in FIELDS)).hexdigest()


def test_a_batch_depends_on_nothing_but_its_index(files: TokenFiles) -> None:
    training = stream(files)
    alone = fingerprint(training.batch(7))
    last = training.sequences_per_epoch // 16  # this one has examples of two epochs
    for index in (0, last, 31, 2):
        training.batch(index)
    assert fingerprint(training.batch(7)) == alone
    script = (
        "import sys, hashlib; from ipu_bert.data.batches import BatchOptions, BatchStream;"
        "from ipu_bert.data.token_files import TokenFiles;"
        f"options = BatchOptions(**{asdict(OPTIONS)});"
        "b = BatchStream(TokenFiles.open(sys.argv[1]), 'train', options).batch(7);"
        "names = list(b.__dataclass_fields__);"
        "print(hashlib.sha256(b''.join(getattr(b, n).numpy().tobytes() for n in names)).hexdigest())"
    )
    root = str(Path(__file__).resolve().parents[3])
    other = subprocess.run([sys.executable, "-c", script, files.directory], cwd=root, capture_output=True, text=True)
    assert other.stdout.strip() == alone, other.stderr
    assert fingerprint(training.batch(8)) != alone


def test_an_example_does_not_depend_on_the_batch_size(files: TokenFiles) -> None:
    small, large = stream(files, batch_size=4), stream(files, batch_size=12)
    for name in FIELDS:
        parts = torch.cat([getattr(small.batch(i), name) for i in (3, 4, 5)])
        assert torch.equal(parts, getattr(large.batch(1), name))


def test_shares_are_the_parts_of_a_batch(files: TokenFiles) -> None:
    whole = stream(files).batch(3)
    parts = [stream(files).share(3, part, 4) for part in range(4)]
    for name in FIELDS:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    with pytest.raises(ValueError, match="batch size: expected a multiple of 3 parts, found 16"):
        stream(files).share(3, 0, 3)


def test_batches_made_ahead_are_the_same(files: TokenFiles) -> None:
    """One after the other, over again, after one that cannot be made, and after the process that makes them is gone."""
    training = stream(files)
    ahead = BatchAhead(training, 1, 2)
    for index in (0, 1, 5, 5):
        assert fingerprint(ahead(index)) == fingerprint(training.share(index, 1, 2))
    with pytest.raises(ValueError, match="batch index: expected 0 or more, found -1"):
        ahead(-1)
    assert fingerprint(ahead(0)) == fingerprint(training.share(0, 1, 2))
    (process,) = [child for child in multiprocessing.active_children() if child.name == "batches"]
    process.kill()
    process.join()
    assert fingerprint(ahead(1)) == fingerprint(training.share(1, 1, 2))


def test_seeds_change_training_and_not_evaluation(files: TokenFiles) -> None:
    assert fingerprint(stream(files, seed=1).batch(0)) != fingerprint(stream(files, seed=2).batch(0))
    held = [fingerprint(stream(files, "heldout", seed=s).batch(0)) for s in (1, 2)]
    assert held[0] == held[1]


def test_heldout_text_is_never_in_a_training_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # every document uses one word of its own
    names = [f"{c}{d}" for c in "abcdefgh" for d in "vwxyz"]
    documents = [". ".join(6 * [f"{n} {n} {n} {n}"]) for n in names]
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *names]), encoding="utf-8")
    toy = prepared(monkeypatch, tmp_path, documents, tokenizer=str(vocab))
    own = {split: set(np.unique(toy.split(split).tokens).tolist()) - {5} for split in ("train", "heldout")}
    assert not own["train"] & own["heldout"]
    for split in own:
        seen = set()
        batches = stream(toy, split, batch_size=8)
        for index in range(3 * batches.sequences_per_epoch // 8):
            seen |= set(original(batches.batch(index)).unique().tolist())
        assert seen - {0, 2, 3, 5} == own[split]


# refusals


def test_a_corpus_smaller_than_a_batch_is_refused(files: TokenFiles) -> None:
    held = stream(files, "heldout", batch_size=1).sequences_per_epoch
    stream(files, "heldout", batch_size=held)
    with pytest.raises(DataError, match=f"at least one batch of {held + 1} sequences .* split heldout, found {held}"):
        stream(files, "heldout", batch_size=held + 1)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"sequence_length": 4},
        {"max_predictions": 0},
        {"max_predictions": 30},
        {"mask_probability": 0.0},
        {"short_sequence_probability": 1.5},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        replace(OPTIONS, **options)


def test_unknown_splits_and_negative_indices_are_refused(files: TokenFiles) -> None:
    with pytest.raises(DataError, match="unknown split 'test'"):
        stream(files, "test")
    with pytest.raises(ValueError, match="batch index: expected 0 or more, found -1"):
        stream(files).batch(-1)
