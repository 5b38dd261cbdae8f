"""Did a run learn anything, in words: masked LM with its own words around, with others, and beside word frequencies."""

from __future__ import annotations

import math

from ipu_bert.record.context import FEWEST_BATCHES, LEAST_GAIN, Context

# By what Context.found finds; what follows each in a report is below.
FOUND = {
    "yes": "Yes: the model reads context.",
    "few": "It cannot be said whether the model reads context.",
    "hardly": "Hardly: the model has just begun to read context.",
    "unclear": "Not clearly: that the model reads context cannot be said.",
    "not": "Not yet: nothing shows that the model reads context.",
    "frequencies": "No: the model has NOT beaten word frequencies.",
}


def verdict(loss: float | None, initial: float | None, context: Context | None) -> str:
    """Did it learn, in a few sentences. loss, initial [nats]: held-out masked LM at the end and before training, None
    where that is not finite or not known. context: beside the loss, None where none was recorded.
    """
    if loss is None:
        return "**Unknown: there is no finite held-out loss**, so nothing can be said about what was learned."
    if context is None or not math.isfinite(context.gain(loss) + context.word_frequencies_loss):
        return (
            f"The held-out masked-LM loss is {loss:.3f} nats; without a loss to compare with, it cannot be "
            "said whether that is more than counting words."
        )
    found, gain, plain = context.found(loss), context.gain(loss), context.word_frequencies_loss
    head, others = f"**{FOUND[found]}**", f"{context.other_words_loss:.3f} with other words around the same places"
    if found == "frequencies":
        above = (
            f"Its held-out masked-LM loss, {loss:.3f} nats, is {loss - plain:.3f} above the {plain:.3f} that a guess"
        )
        return f"{head} {above} by word frequency reaches. {_learned(loss, initial, gain, others)}"
    sure = f"{gain:+.4f} ± {context.other_words_error:.4f}"
    says = {
        "yes": f": with its own it gives the hidden word {math.exp(gain):.2f} times the probability (geometric mean)",
        "few": f", judged by fewer than {FEWEST_BATCHES} batches, which do not tell how sure that is: eval.batches, "
        "and where the held-out text has no more, data.heldout_fraction or a smaller train.batch_size, make more",
        "hardly": f": {sure}",
        "unclear": f": {sure}, too little, or by too few batches (eval.batches)",
        "not": f": {sure}. What it has learned needs no word around: a tenth of the words to predict are left in their "
        "places, and other pieces of the word, or where [MASK] stands, say something, too",
    }[found]
    return (
        f"{head} Its held-out masked-LM loss is {loss:.3f} nats, and {others}{says}. Word frequencies alone come to "
        f"{plain:.3f}."
    )


def _learned(loss: float, initial: float | None, gain: float, others: str) -> str:
    """Why a loss is above word frequencies. gain [nats]: by own words; others: the loss with others, in words."""
    if initial is not None and loss >= initial - 0.01:
        return "It is no better than before training."
    if gain > LEAST_GAIN:
        return (
            f"It is {others}, so the model does go by the words around, and is wrong more surely than a guess, as when "
            "a text that is too small is learned by heart."
        )
    return (
        "What it has learned so far is no more than which words are frequent. Small models stay near that value for a "
        "while before they go on: train longer, or check the learning rate."
    )
