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
    mean. own: share of their tokens that is the text's, neither [PAD], [CLS] nor [SEP]. never_asked: share of those in
    words of more pieces than their sequences ask for.
    """

    sequences: int
    padding: float
    shorter: float
    predictions: float
    own: float
    never_asked: float

    def warnings(self) -> list[str]:
        """A line where much of what is computed is padding, and where words have too many pieces to be predicted."""
        lines = told_never_asked(self, "the training text's")
        if self.padding > MOST_PADDING:
            lines.append(
                f"{100 * self.padding:.0f} % of the first {self.sequences:,} sequences' tokens are padding, which is "
                "computed and counted as all else: a shorter data.sequence_length may do"
            )
        return lines


def told_never_asked(filled: Filling, whose: str) -> list[str]:
    """A line where words have too many pieces to be predicted; whose: the text's, in words."""
    if filled.never_asked <= 0.01:
        return []
    return [
        f"{100 * filled.never_asked:.1f} % of {whose} tokens are in words of more pieces than sequences of their "
        "lengths ask for: these are never predicted; a larger data.mask_probability, longer sequences or "
        "data.whole_word_masking=false may help"
    ]


def filling(stream: BatchStream) -> Filling:
    """Count the first sequences, MOST_TOKENS of tokens at most, but eight sequences."""
    batch, length = stream.options.batch_size, stream.options.sequence_length
    sequences = min(MOST_SEQUENCES, max(8, MOST_TOKENS // length))
    tokens = own = shorter = labels = never = 0
    for example in range(sequences):
        one = stream.share(example // batch, example % batch, batch)
        filled = int(one.attention_mask.sum())
        tokens, shorter = tokens + filled, shorter + (filled < length)
        own += stream.own_tokens(one)
        labels += int((one.masked_labels != IGNORED_LABEL).sum())
        never += int(stream.never_asked(one).sum())
    of_all = sequences * length
    return Filling(
        sequences, 1.0 - tokens / of_all, shorter / sequences, labels / sequences, own / of_all, never / max(1, own)
    )
