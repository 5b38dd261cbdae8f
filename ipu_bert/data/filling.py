"""How full sequences are: padding, short ones and predictions, counted in the first ones of a stream."""

from __future__ import annotations

from dataclasses import dataclass

from ipu_bert.data.batches import BatchStream
from ipu_bert.data.masking import IGNORED_LABEL

MOST_SEQUENCES, MOST_TOKENS = 512, 2**19  # a tenth of a second
MOST_PADDING = 0.25  # beyond which a run says so


@dataclass(frozen=True)
class Filling:
    """Of a stream's first `sequences`, which are a function of the text and the seed alone.

    padding: share of their tokens that is [PAD]. shorter: share of them that has any. predictions: labels of one, a
    mean.
    """

    sequences: int
    padding: float
    shorter: float
    predictions: float

    def warnings(self) -> list[str]:
        """A line where much of what is computed is padding."""
        if self.padding <= MOST_PADDING:
            return []
        return [
            f"{100 * self.padding:.0f} % of the first {self.sequences:,} sequences' tokens are padding, which is "
            "computed and counted as all else: a shorter data.sequence_length may do"
        ]


def filling(stream: BatchStream) -> Filling:
    """Count the first sequences, MOST_TOKENS of tokens at most, but eight sequences."""
    batch, length = stream.options.batch_size, stream.options.sequence_length
    sequences = min(MOST_SEQUENCES, max(8, MOST_TOKENS // length))
    tokens = shorter = labels = 0
    for example in range(sequences):
        one = stream.share(example // batch, example % batch, batch)
        own = int(one.attention_mask.sum())
        tokens, shorter = tokens + own, shorter + (own < length)
        labels += int((one.masked_labels != IGNORED_LABEL).sum())
    return Filling(sequences, 1.0 - tokens / (sequences * length), shorter / sequences, labels / sequences)
