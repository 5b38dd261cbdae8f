"""Whether held-out losses of runs mean the same, of a study's or of anyone's."""

from __future__ import annotations

import math
from typing import Protocol, Sequence

from ipu_bert.config import Config
from ipu_bert.config.resolve import wanted_predictions

# Of the data, what makes a loss harder or easier to reach, beside text and vocabulary.
_JUDGED_BY = ("sequence_length", "mask_probability", "whole_word_masking", "short_sequence_probability")
_SAME = 1e-6  # of two entropies of the same text, rounded by two machines


class Judged(Protocol):
    """A run, or a mean of some.

    unigram_entropy [nats]: of a guess by word frequency on its whole held-out text; word_frequencies_loss: on the words
    that its last evaluation asked for. heldout_batches: of that. None where a run has not kept them.
    """

    @property
    def label(self) -> str: ...

    @property
    def config(self) -> Config: ...

    @property
    def unigram_entropy(self) -> float: ...

    @property
    def word_frequencies_loss(self) -> float | None: ...

    @property
    def heldout_batches(self) -> int | None: ...


def same_entropy(one: float, other: float) -> bool:
    """Whether a guess by word frequency has the same loss: that of one held-out text in one vocabulary."""
    return math.isclose(one, other, rel_tol=_SAME)


def other_loss(one: Judged, other: Judged) -> str:
    """Why the losses of two cannot be compared, in words; empty where they can."""
    if not same_entropy(one.unigram_entropy, other.unigram_entropy):
        entropies = " and ".join(f"{judged.unigram_entropy:.4f}" for judged in (one, other))
        return f"word frequencies of the held-out texts come to {entropies} nats"
    for key in _JUDGED_BY:
        values = [getattr(judged.config.data, key) for judged in (one, other)]
        if values[0] != values[1]:
            return f"data.{key} is {values[0]} and {values[1]}"
    masked = [min(x.config.data.max_predictions, wanted_predictions(x.config)) for x in (one, other)]
    return "" if masked[0] == masked[1] else f"at most {masked[0]} and {masked[1]} tokens of a sequence are masked"


def apart(found: Sequence[Judged]) -> str:
    """A line where not all losses can be compared; empty where they can."""
    reasons = {one.label: other_loss(found[0], one) for one in found[1:]}
    others = [(label, reason) for label, reason in reasons.items() if reason]
    if not others:
        return ""
    more = f"; {len(others)} of {len(found)} differ so from {found[0].label}" if len(others) > 1 else ""
    return f"losses do not compare: {found[0].label} and {others[0][0]}: {others[0][1]}{more}"


def judged_on(found: Sequence[Judged]) -> str:
    """A line where losses are means over other numbers of held-out sequences; empty where they are not."""
    numbers: dict[tuple[int, str], list[str]] = {}
    for one in found:
        numbers.setdefault(_judged_sequences(one), []).append(one.label)
    if len(numbers) < 2 or _asked_for_the_same(found):
        return ""
    words = "; ".join(f"{most}{number:,}: {' / '.join(labels)}" for (number, most), labels in sorted(numbers.items()))
    return f"held-out sequences that losses are means over, which alone may make them differ: {words}"


def _judged_sequences(one: Judged) -> tuple[int, str]:
    """How many, and "at most " where all that is known is how many were asked for: the text may have had fewer.

    The oldest results, which do not even have word_frequencies_loss, are those of results/, whose texts had them all.
    """
    known = one.heldout_batches is not None or one.word_frequencies_loss is None
    batches = one.config.eval.batches if one.heldout_batches is None else one.heldout_batches
    return batches * one.config.train.batch_size, "" if known else "at most "


def _asked_for_the_same(found: Sequence[Judged]) -> bool:
    """Whether all were asked for words of the same frequencies, those of the same sequences, as of all of a text."""
    losses = [one.word_frequencies_loss for one in found]
    first = losses[0]
    return first is not None and all(loss is not None and same_entropy(first, loss) for loss in losses)
