"""Did a run learn anything, in words: masked LM against what is reached without context."""

from __future__ import annotations

import math

from ipu_bert.data.no_context import CLEAR_MARGIN, FEWEST_LABELS
from ipu_bert.record.report_numbers import HeldoutNumbers
from ipu_bert.record.words import number


def verdict(heldout: HeldoutNumbers) -> str:
    """Did it learn, in one or two sentences: masked LM against what is reached without context, in nats."""
    loss, reached, gap = heldout.mlm_loss, heldout.no_context_loss, heldout.below_no_context
    if loss is None:
        return "**Unknown: there is no finite held-out loss**, so nothing can be said about what was learned."
    if reached is None or gap is None:
        return (
            f"The held-out masked-LM loss is {loss:.3f} nats; without a guess to compare with, it cannot be "
            "said whether that is more than counting words."
        )
    if heldout.reads_context:
        return (
            f"**Yes: the model reads context.** Its held-out masked-LM loss, {loss:.3f} nats, is {gap:.3f} below the "
            f"{reached:.3f} that is reached without context. It gives the hidden word {math.exp(gap):.2f} times the "
            "probability (geometric mean) that a guess without context gives it."
        )
    if gap > 0:
        return (
            f"**Not clearly.** The held-out masked-LM loss, {loss:.3f} nats, is only {gap:.3f} below the "
            f"{reached:.3f} that is reached without context: too little to say that the model uses context"
            f"{_judged(heldout)}."
        )
    plain = heldout.word_frequencies_loss
    if plain is not None and loss < plain:
        return (
            f"**Not yet: nothing shows that the model reads context.** Its held-out masked-LM loss, {loss:.3f} "
            f"nats, is below the {plain:.3f} of word frequencies alone, and not below {reached:.3f}, which is reached "
            "without context by looking at the place itself: a tenth of the words to predict are left there."
        )
    initial = heldout.initial_mlm_loss
    if initial is not None and loss >= initial - 0.01:
        learned = "It is no better than before training."
    else:
        learned = "What it has learned so far is no more than which words are frequent."
    plain = reached if plain is None else plain
    return (
        f"**No: the model has NOT beaten word frequencies.** Its held-out masked-LM loss, {loss:.3f} nats, is "
        f"{loss - plain:.3f} above the {plain:.3f} that a guess by word frequency reaches. {learned} Small models stay "
        "near that value for a while before they go on: train longer, or check the learning rate."
    )


def _judged(heldout: HeldoutNumbers) -> str:
    """By how many labels, where they are so few that this is what keeps a verdict from being clear."""
    margin = heldout.no_context_margin
    if heldout.mlm_labels < FEWEST_LABELS:
        return f" from {number(heldout.mlm_labels)} predictions (eval.batches)"
    if margin is not None and margin > CLEAR_MARGIN:
        return f", as {number(heldout.mlm_labels)} predictions (eval.batches) are sure to {margin:.3f} only"
    return ""
