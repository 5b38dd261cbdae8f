"""Chunks: the runs of sentences that training sequences are made of, and the order in which they are visited."""

from __future__ import annotations

from typing import Iterator

import numpy as np

_BLOCK_SENTENCES = 1 << 20


def chunk_starts(sentences: np.ndarray, documents: np.ndarray, target: int) -> np.ndarray:
    """The first sentence of each chunk, and the number of sentences: int64 [chunks + 1].

    sentences: int64 [sentences + 1], token offsets. documents: int64 [documents + 1], sentence offsets.

    A chunk takes sentences of a document until it holds `target` tokens, two at least (so that it can be split in A
    and B), and a last single sentence joins the chunk before it. So only a document of one sentence has a chunk of one
    sentence, every sentence is in exactly one chunk, and no chunk crosses documents.
    Memory: the result and blocks of about a million sentences.
    """
    parts = [np.fromiter(_walk(block, first), np.int64) for first, block in _blocks(sentences, documents, target)]
    return np.concatenate([*parts, documents[-1:]]).astype(np.int64)


def lone_share(chunks: np.ndarray) -> float:
    """The share of the chunks that are one sentence, and can have no second part that follows."""
    return float((np.diff(chunks) == 1).mean())


def _blocks(sentences: np.ndarray, documents: np.ndarray, target: int) -> Iterator[tuple[int, list[int]]]:
    """(first sentence, following): following[i] is where a chunk that starts at sentence first + i ends."""
    count, document = len(documents) - 1, 0
    while document < count:
        first = int(documents[document])
        after = int(np.searchsorted(documents, first + _BLOCK_SENTENCES, "right")) - 1
        after = min(max(after, document + 1), count)
        bounds = np.asarray(documents[document : after + 1])
        ends = np.repeat(bounds[1:], np.diff(bounds))
        offsets = np.asarray(sentences[first : int(bounds[-1]) + 1])
        following = first + np.searchsorted(offsets, offsets[:-1] + target, "left")
        following = np.maximum(following, first + np.arange(len(ends)) + 2)
        following = np.where(following >= ends - 1, ends, following)
        yield first, following.tolist()
        document = after


def _walk(following: list[int], first: int) -> Iterator[int]:
    here, end = first, first + len(following)
    while here < end:
        yield here
        here = following[here - first]


class EpochOrder:
    """Example number -> chunk: each epoch visits every chunk once, in an order drawn from (key, epoch).

    Keeps the order of the last epoch asked for: uint32 [chunks] (uint64 from 2**32 chunks on).
    """

    def __init__(self, chunks: int, key: np.ndarray) -> None:
        self._chunks = chunks
        self._key = key
        # one value, so that threads may share a stream
        self._kept: tuple[int, np.ndarray] = (-1, np.empty(0, np.uint32))

    def __getitem__(self, example: int) -> int:
        epoch, place = divmod(example, self._chunks)
        kept, order = self._kept
        if epoch != kept:
            order = np.arange(self._chunks, dtype=np.uint32 if self._chunks < 1 << 32 else np.uint64)
            np.random.Generator(np.random.Philox(key=self._key, counter=[0, epoch, 0, 1])).shuffle(order)
            self._kept = epoch, order
        return int(order[place])
