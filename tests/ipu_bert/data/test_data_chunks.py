"""Chunks: by hand on small arrays, and that an epoch visits each of them once."""

from __future__ import annotations

import numpy as np
import pytest
from data_streams import stream

from ipu_bert.data.batches import BatchStream
from ipu_bert.data.chunks import EpochOrder, chunk_starts
from ipu_bert.data.token_files import TokenFiles


def test_chunks_by_hand() -> None:
    # documents of 5, 1, 4 and 2 sentences; lengths in tokens
    lengths = [4, 4, 4, 4, 4, 9, 12, 1, 1, 1, 3, 3]
    sentences = np.concatenate([[0], np.cumsum(lengths)])
    documents = np.array([0, 5, 6, 10, 12])
    # 8 tokens: sentences 0-1; 2-3 and 4, which would be alone; the document of one; 6 and 7 (two at least);
    # 8-9; 10-11
    assert chunk_starts(sentences, documents, 8).tolist() == [0, 2, 5, 6, 8, 10, 12]
    assert chunk_starts(sentences, documents, 1000).tolist() == [0, 5, 6, 10, 12]


def test_chunks_cover_every_sentence_once(files: TokenFiles, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    arrays = files.split("train")
    target = 5 + seed % 60
    starts = chunk_starts(arrays.sentences, arrays.documents, target)
    monkeypatch.setattr("ipu_bert.data.chunks._BLOCK_SENTENCES", 1 + seed % 40)
    assert chunk_starts(arrays.sentences, arrays.documents, target).tolist() == starts.tolist()
    assert set(arrays.documents.tolist()) <= set(starts.tolist())  # no chunk crosses documents
    assert (np.diff(starts) > 0).all()
    single = [s for s, e in zip(starts[:-1], starts[1:]) if e - s == 1]
    assert single == [s for s, e in zip(arrays.documents[:-1], arrays.documents[1:]) if e - s == 1]


def test_an_epoch_visits_every_chunk_once() -> None:
    order = EpochOrder(50, np.array([1, 2], np.uint64))
    epochs = [[order[e * 50 + i] for i in range(50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [order[i] for i in range(50)] == epochs[0]


def test_every_chunk_becomes_one_sequence_in_an_epoch(files: TokenFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    layout = BatchStream._layout
    monkeypatch.setattr(BatchStream, "_layout", lambda self, c, g: (made.append(c), layout(self, c, g))[1])
    training = stream(files, batch_size=7)
    count = training.sequences_per_epoch
    assert count == len(chunk_starts(*(getattr(files.split("train"), n) for n in ("sentences", "documents")), 29)) - 1
    for index in range(2 * count // 7 + 1):
        training.batch(index)
    assert sorted(made[:count]) == sorted(made[count : 2 * count]) == list(range(count))
