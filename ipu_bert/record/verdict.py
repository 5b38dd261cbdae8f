"""Did a run learn anything, in words: masked LM with its own words around, with others, and beside word frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ipu_bert.record.context import FEWEST_BATCHES, LEAST_GAIN, Context, kept_most

APART = 0.2  # nats, by which losses on different text, or of a model that stays near word frequencies, may differ

# By what Context.found finds; what follows each in a report is below.
FOUND = {
    "yes": "Yes: the model reads context.",
    "few": "It cannot be said whether the model reads context.",
    "kept": "It cannot be said whether the model reads context: fewer than half of the words around were replaced.",
    "hardly": "Hardly: the model gains next to nothing by context.",
    "unclear": "Not clearly: that the model reads context cannot be said.",
    "not": "Not yet: nothing shows that the model reads context.",
    "frequencies": "No: the model has NOT beaten word frequencies.",
}


@dataclass(frozen=True)
class Training:
    """What is known of how a held-out loss came about; masked-LM losses in nats, None where not finite or not known.

    initial: held out, before training. last: of the last training steps, a mean. frequencies: the least that word
    frequencies come to in training. passes: over the training text.
    """

    initial: float | None
    last: float | None
    frequencies: float | None
    passes: float

    def below(self, loss: float) -> bool:
        """Whether the last training steps came to clearly less than a held-out loss."""
        return self.last is not None and self.last < loss - APART

    def by_heart(self, loss: float) -> bool:
        """Whether that is learned by heart: from the training text, and more of it than how often words are there."""
        known = math.inf if self.frequencies is None else self.frequencies
        return self.passes >= 1 and self.below(min(loss, known))


def verdict(loss: float | None, training: Training, context: Context | None) -> str:
    """Did it learn, in a few sentences.

    loss [nats]: held-out masked LM at the end, None where that is not finite. context: beside the loss, None where
    none was recorded.
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
            f"Its held-out masked-LM loss, {loss:.3f} nats, is {loss - plain:.3f} above the {plain:.3f} that a guess "
            "by word frequency reaches."
        )
        return " ".join([head, above, *_learned(loss, training, context, others)])
    error = context.other_words_error
    sure = f"{gain:+.4f} ± {error:.4f}"
    says = {
        "yes": f": with its own it gives the hidden word {math.exp(gain):.2f} times the probability (geometric mean)",
        "few": f", judged by fewer than {FEWEST_BATCHES} batches, which do not tell how sure that is: eval.batches, "
        "and where the held-out text has no more, data.heldout_fraction or a smaller train.batch_size, make more",
        "kept": f": {sure}, where {kept_most(context.other_words_share)}",
        "hardly": f": {sure}",
        "unclear": f": {sure}, too little, or by too few batches (eval.batches)",
        "not": f": {sure}{', by too few batches to rule it out (eval.batches)' * (gain + 2 * error > LEAST_GAIN)}. To "
        "be below word frequencies needs no word around: a tenth of the words to predict are left in their places, and "
        "other pieces of the word, or where [MASK] stands, say something, too",
    }[found]
    return (
        f"{head} Its held-out masked-LM loss is {loss:.3f} nats, and {others}{says}. Word frequencies alone come to "
        f"{plain:.3f}."
    )


def _learned(loss: float, training: Training, context: Context, others: str) -> list[str]:
    """What is known of a loss above word frequencies, in sentences. others: the loss with other words, in words."""
    plain, last = context.word_frequencies_loss, training.last
    unmoved = training.initial is not None and loss >= training.initial - 0.01
    reads = context.goes_by_words(loss)
    said = ["It is no better than before training."] if unmoved else []
    if reads:
        said.append(
            f"It is {others}, so the model does go by the words around, and all the same gives the right word no "
            "more probability than a guess does (geometric mean)."
        )
    of_training = "" if last is None else f"The last training steps came to {last:.3f}"
    if training.below(min(loss, plain)):
        return [*said, f"{of_training}: {_not_carried_over(loss, training)}"]
    if reads:
        return said
    if loss - plain <= APART and not unmoved:
        return [
            "What it has learned so far is worth no more than to know which words are frequent. Small models stay near "
            "that value for a while before they go on: train longer, or check the learning rate."
        ]
    if of_training:
        said.append(f"{of_training}, which is not clearly below word frequencies either.")
    return [*said, "Train longer, or check the learning rate."] if said else []


def _not_carried_over(loss: float, training: Training) -> str:
    """Where training losses are far below a held-out one: what was learned, and what helps."""
    if training.by_heart(loss):
        return (
            "what was gained there is learned by heart, and does not carry over. More text, fewer steps or a smaller "
            "model may help."
        )
    does_not = "does not carry over to the held-out text, which may be of another kind"
    if training.frequencies is None or training.below(training.frequencies):
        return f"what was gained there {does_not}."
    return (
        f"how often words are in the training text, and to look at those that are left in their places, comes to "
        f"{training.frequencies:.3f} there and {does_not}, or too short. More text may help."
    )
