"""Masks: by hand on small arrays, by counting on many batches."""

from __future__ import annotations

import numpy as np
import pytest
from data_streams import WIDTH, original, stream, within

from ipu_bert.data.masking import choose_tokens, mask_tokens
from ipu_bert.data.token_files import TokenFiles


def test_whole_words_by_hand() -> None:
    # [CLS] ab ##c d [SEP] e ##f ##g h [SEP] pad: words ab##c, d, e##f##g, h
    starts = np.array([[0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0]], bool)
    maskable = np.array([[0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0]], bool)
    lengths = np.array([10])

    def chosen(order: list, most: int, probability: float = 0.99) -> list:
        priority = np.zeros((1, 11))
        priority[0, order] = np.arange(1, 5) / 10
        return np.nonzero(choose_tokens(starts, maskable, lengths, priority, most, probability)[0])[0].tolist()

    assert chosen([0, 1, 2, 3], 3) == [1, 2, 3]
    assert chosen([2, 0, 1, 3], 3) == [5, 6, 7]
    assert chosen([2, 0, 1, 3], 4) == [3, 5, 6, 7]  # ab ##c would be too much, d fits
    assert chosen([0, 2, 1, 3], 2) == [1, 2]
    assert chosen([2, 0, 1, 3], 1) == [3]
    assert chosen([3, 2, 1, 0], 20, 0.15) == [3, 8]  # round(10 * 0.15) = 2 by halves to even
    assert chosen([3, 2, 1, 0], 20, 0.01) == [8]  # at least one
    assert chosen([0, 1, 2, 3], 20) == [1, 2, 3, 5, 6, 7, 8]


def test_replacement_by_hand() -> None:
    ids = np.array([[2, 11, 12, 13, 3], [2, 14, 15, 3, 0]])
    chosen = np.array([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0]], bool)
    kind = np.array([[0.79, 0.85, 0.95], [0.91, 0.0, 0.0]])
    replacement = np.array([[0.0, 0.0, 0.999], [0.0, 0.5, 0.5]])
    inputs, positions, labels = mask_tokens(ids, chosen, kind, replacement, 4, np.array([20, 21, 22]))
    assert inputs.tolist() == [[2, 4, 12, 22, 3], [2, 14, 20, 3, 0]]
    assert positions.tolist() == [[1, 2, 3], [2, 0, 0]]
    assert labels.tolist() == [[11, 12, 13], [15, -100, -100]]


@pytest.mark.parametrize("whole_word", [True, False])
def test_masks_of_many_batches(files: TokenFiles, seed: int, whole_word: bool) -> None:
    training = stream(files, batch_size=64, seed=seed, whole_word=whole_word)
    continues = np.array([piece.startswith("##") for piece in files.vocabulary()])
    special = list(files.special_ids().values())
    mask_id, vocab = files.special_ids()["[MASK]"], files.vocab_size
    counts = {"all": 0, "mask": 0, "same": 0, "other": 0}
    partial_words = 0
    for index in range(16):
        batch = training.batch(index)
        ids, inputs = original(batch).numpy(), batch.input_ids.numpy()
        used = (batch.masked_labels != -100).numpy()
        positions = batch.masked_positions.numpy()
        lengths = batch.attention_mask.sum(1).numpy()
        wanted = np.clip(np.rint(lengths * 0.15), 1, 6)
        assert (used.sum(1) <= wanted).all()
        if not whole_word:
            assert (used.sum(1) == wanted).all()
        assert (positions[~used] == 0).all()
        assert (used[:, :-1] >= used[:, 1:]).all()  # used places first
        for row in range(64):
            places = positions[row][used[row]]
            assert (np.diff(places) > 0).all()
            assert not np.isin(ids[row, places], [special[0], *special[2:]]).any()  # [UNK] may be predicted
            hidden = np.zeros(WIDTH, bool)
            hidden[places] = True
            assert (inputs[row] == ids[row])[~hidden].all()
            ranges = [np.arange(1, WIDTH)[~np.isin(ids[row, 1:], special[2:4]) & (ids[row, 1:] != special[0])]]
            joined = [i for i in ranges[0] if continues[ids[row, i]] and ids[row, i - 1] not in special[2:4]]
            partial_words += sum(hidden[i] != hidden[i - 1] for i in joined)
            counts["all"] += len(places)
            counts["mask"] += int((inputs[row, places] == mask_id).sum())
            counts["same"] += int((inputs[row, places] == ids[row, places]).sum())
            replaced = (inputs[row, places] != mask_id) & (inputs[row, places] != ids[row, places])
            counts["other"] += int(replaced.sum())
            assert not np.isin(inputs[row, places][replaced], special).any()
    by_chance = 0.1 / (vocab - len(special))  # a random id that happens to be the original
    assert within(counts["mask"], counts["all"], 0.8)
    assert within(counts["same"], counts["all"], 0.1 + by_chance)
    assert within(counts["other"], counts["all"], 0.1 - by_chance)
    assert (partial_words == 0) == whole_word


def test_the_number_of_predictions_at_full_size(files: TokenFiles) -> None:
    batch = stream(files, batch_size=64, sequence_length=128, max_predictions=20, seed=1).batch(0)
    assert batch.masked_positions.shape == batch.masked_labels.shape == (64, 20)
    full = batch.attention_mask.all(1)
    assert ((batch.masked_labels[full] != -100).sum(1) <= 19).all()  # round(128 * 0.15)
    assert ((batch.masked_labels[full] != -100).sum(1) >= 16).all()
