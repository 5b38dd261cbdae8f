"""Whether a model reads context: what it makes of the same places with its own words around, and with others."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Mapping, Sequence

LEAST_GAIN = 0.05  # nats; what is less is hardly worth to be called reading
NOTICEABLE = 0.01  # nats; models that stand where frequencies bring them have been seen with 0.0001 for certain
SURE = 4.0  # standard errors: by chance once in 70 times with the fewest batches, in a thousand with ten
FEWEST_BATCHES = 4  # from which a standard error says something
LEAST_SHARE = 0.5  # of the tokens around; where fewer are others, a model may read and hardly notice
# Of an evaluation; the last is not in records of older versions.
RECORDED = ("other_words_loss", "other_words_error", "word_frequencies_loss", "mlm_labels", "other_words_share")


@dataclass(frozen=True)
class Context:
    """Beside the masked-LM loss of an evaluation, on the same labels; losses in nats, NaN where there are none.

    other_words_loss: the model's, with other words around the places that are asked for (data/other_words.py).
    other_words_error: standard error, over batches, of that less the loss; NaN where these are fewer than
    FEWEST_BATCHES. word_frequencies_loss: of a guess by how often words are in the training text. mlm_labels: how many.
    other_words_share: of the tokens around those places, what became another by other words; NaN where not recorded.
    """

    other_words_loss: float
    other_words_error: float
    word_frequencies_loss: float
    mlm_labels: int
    other_words_share: float = math.nan

    @classmethod
    def of_sums(cls, sums: Sequence[tuple[float, float, int]], frequencies: float, share: float) -> Context:
        """From each batch's sums of losses, with own words and with others, and its number of labels."""
        labels, batches = sum(count for _, _, count in sums), len(sums)
        if not labels:
            return cls(math.nan, math.nan, math.nan, 0, share)
        others = sum(other for _, other, _ in sums)
        gain = (others - sum(own for own, _, _ in sums)) / labels
        squares = sum((other - own - gain * count) ** 2 for own, other, count in sums)
        sure = batches >= FEWEST_BATCHES
        error = math.sqrt(squares * batches / (batches - 1)) / labels if sure else math.nan
        return cls(others / labels, error, frequencies, labels, share)

    def as_record(self) -> dict[str, Any]:
        """As a record of an evaluation has it."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Context | None:
        """What `as_record` gave, though a record has None for what is not finite; None for one of an older version."""
        if any(key not in record for key in RECORDED[:4]) or record["mlm_labels"] is None:
            return None
        found: dict[str, Any] = {key: math.nan if record.get(key) is None else record[key] for key in RECORDED}
        return cls(**found)

    def gain(self, loss: float) -> float:
        """What a model's own words are worth to it [nats], of whose evaluation with them `loss` is the loss."""
        return self.other_words_loss - loss

    def beside(self, loss: float) -> str:
        """What is told beside a loss: that with other words around, how sure it is, and word frequencies."""
        error = "" if math.isnan(self.other_words_error) else f" ± {self.other_words_error:.4f}"
        kept = f"; {kept_most(self.other_words_share)}" if self.other_words_share < LEAST_SHARE else ""
        return (
            f"{self.other_words_loss:.4f} with other words around ({self.gain(loss):+.4f}{error}{kept}); "
            f"word frequencies: {self.word_frequencies_loss:.4f}"
        )

    def read(self, loss: float) -> bool:
        """Whether a model clearly reads context, and is better than word frequencies."""
        return self.found(loss) == "yes"

    def goes_by_words(self, loss: float) -> bool:
        """Whether other words clearly cost a model something, be it better than word frequencies or not."""
        return self.gain(loss) > LEAST_GAIN and self.gain(loss) > SURE * self.other_words_error

    def found(self, loss: float) -> str:
        """What these losses say of a model.

        "frequencies": it is no better than these. "few": too few batches to tell. "yes": it clearly reads context.
        "kept": it does not clearly, and too few of the words around were replaced to tell. "hardly": it clearly does,
        and gains next to nothing by that. "unclear": it may. "not": nothing shows it.
        """
        gain, error = self.gain(loss), self.other_words_error
        if not loss < self.word_frequencies_loss:
            return "frequencies"
        if math.isnan(error):
            return "few"
        if self.goes_by_words(loss):
            return "yes"
        if self.other_words_share < LEAST_SHARE:
            return "kept"
        if gain > max(NOTICEABLE, SURE * error):
            return "hardly"
        return "unclear" if gain > max(NOTICEABLE, 2 * error) else "not"


def kept_most(share: float) -> str:
    """What is told where most of the words around stayed; share: of the tokens around, what became another."""
    return f"only {100 * share:.1f} % of the tokens around are others"
