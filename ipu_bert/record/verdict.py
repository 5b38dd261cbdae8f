"""Did a run learn anything, in words: masked LM with its own words around, with others, and beside word frequencies."""

from __future__ import annotations

import math

from ipu_bert.record.context import FEWEST_BATCHES, SURE
from ipu_bert.record.report_numbers import HeldoutNumbers

NOTICEABLE = 0.01  # nats; models that stand where frequencies bring them have been seen with 0.0001 for certain
OTHERS = "with other words around the same places"


def verdict(heldout: HeldoutNumbers) -> str:
    """Did it learn, in a few sentences; losses in nats."""
    loss, other, gain, plain = (
        heldout.mlm_loss,
        heldout.other_words_loss,
        heldout.context_gain,
        heldout.word_frequencies_loss,
    )
    if loss is None:
        return "**Unknown: there is no finite held-out loss**, so nothing can be said about what was learned."
    if other is None or gain is None or plain is None:
        return (
            f"The held-out masked-LM loss is {loss:.3f} nats; without a loss to compare with, it cannot be "
            "said whether that is more than counting words."
        )
    if loss >= plain:
        return _no(loss, plain, heldout.initial_mlm_loss)
    of = f"Its held-out masked-LM loss is {loss:.3f} nats, and {other:.3f} {OTHERS}"
    if heldout.reads_context:
        return (
            f"**Yes: the model reads context.** {of}: with its own it gives the hidden word {math.exp(gain):.2f} times "
            f"the probability (geometric mean). Word frequencies alone come to {plain:.3f}."
        )
    if heldout.other_words_error is None:
        return (
            f"**It cannot be said whether the model reads context.** {of}, judged by fewer than {FEWEST_BATCHES} "
            f"batches (eval.batches), which do not tell how sure that is. Word frequencies alone come to {plain:.3f}."
        )
    sure = f"{gain:+.4f} ± {heldout.other_words_error:.4f}"
    if gain > max(NOTICEABLE, SURE * heldout.other_words_error):
        return (
            f"**Hardly: the model has just begun to read context.** {of}: {sure}. Word frequencies alone come to "
            f"{plain:.3f}, and what it has learned beyond them needs hardly any of the words around."
        )
    if gain > max(NOTICEABLE, 2 * heldout.other_words_error):
        return (
            f"**Not clearly.** {of}: {sure}, too little or by too few batches (eval.batches) to say that the model "
            f"reads context. Word frequencies alone come to {plain:.3f}."
        )
    return (
        f"**Not yet: nothing shows that the model reads context.** {of}: {sure}. What it has learned beyond the "
        f"{plain:.3f} of word frequencies needs no word around: a tenth of the words to predict are left in their "
        "places, and where [MASK] stands says something, too."
    )


def _no(loss: float, plain: float, initial: float | None) -> str:
    if initial is not None and loss >= initial - 0.01:
        learned = "It is no better than before training."
    else:
        learned = "What it has learned so far is no more than which words are frequent."
    return (
        f"**No: the model has NOT beaten word frequencies.** Its held-out masked-LM loss, {loss:.3f} nats, is "
        f"{loss - plain:.3f} above the {plain:.3f} that a guess by word frequency reaches. {learned} Small models stay "
        "near that value for a while before they go on: train longer, or check the learning rate."
    )
