"""What a guess without context gives to a label, worked out one by one."""

from __future__ import annotations

from typing import Iterable, Iterator, Mapping

from ipu_bert.data.batches import Batch, BatchStream


def asked_one_by_one(stream: BatchStream, numbers: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """(label, what stands in its place, length of its sequence) of some batches."""
    for number in numbers:
        batch: Batch = stream.batch(number)
        rows = zip(batch.masked_labels.tolist(), batch.masked_positions.tolist(), batch.input_ids.tolist())
        for (labels, places, ids), length in zip(rows, batch.attention_mask.sum(1).tolist()):
            yield from ((label, ids[place], length) for label, place in zip(labels, places) if label != -100)


def share_given(label: int, shown: int, share: Mapping[int, float], mask_id: int, replaceable: int) -> float:
    """By Bayes' rule over all ids: 80 % become [MASK], 10 % stay, 10 % become one of `replaceable` ids.

    share: of each id among what is asked for.
    """

    def shows(i: int) -> float:
        return 0.8 if shown == mask_id else 0.1 * (shown == i) + 0.1 / replaceable

    return share[label] * shows(label) / sum(p * shows(i) for i, p in share.items())
