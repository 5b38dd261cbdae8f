"""What is reached without reading context: the loss that a trained model must beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Iterable, Mapping, NamedTuple

import numpy as np

from ipu_bert.data.masking import continues, never_asked
from ipu_bert.data.token_files import Split, Text, TokenFiles
from ipu_bert.data.tokenizer import NOT_PREDICTED

CLEAR_MARGIN = 0.05  # nats; what two evaluations of equal models can well be apart
FEWEST_LABELS = 100  # of fewer, their spread says little, too
MOST_TOKENS = 2**22  # of a split, whose words are looked at
RECORDED = ("no_context_loss", "word_frequencies_loss", "mlm_labels", "no_context_margin")  # a record of an evaluation


class Asked(NamedTuple):
    """What a model is asked for, one after another, int64 [labels] each.

    labels: the ids. shown: what stands in their places, [MASK], the id itself or another one. wanted: so many tokens
    does their sequence ask for.
    """

    labels: np.ndarray
    shown: np.ndarray
    wanted: np.ndarray


@dataclass(frozen=True)
class NoContext:
    """What is reached without context on the labels that judge a model.

    loss [nats]: what is to be beaten: of a guess that knows word frequencies, which words are never asked for, and what
    stands in the place itself. plain [nats]: of a guess by frequencies alone. labels: how many. margin [nats]: two
    standard errors, CLEAR_MARGIN at least; by less, a model's loss is not clearly below. NaN where there are no labels.
    """

    loss: float
    plain: float
    labels: int
    margin: float

    def clearly_above(self, loss: float) -> bool:
        """Whether a model of this loss on the same labels reads context, as far as they can tell."""
        return self.labels >= FEWEST_LABELS and self.loss - loss > self.margin

    def as_record(self) -> dict[str, Any]:
        """As a record of an evaluation has it."""
        return dict(zip(RECORDED, (self.loss, self.plain, self.labels, self.margin)))

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> NoContext | None:
        """What `as_record` gave; None where a record does not say, as those of older versions."""
        loss, plain, labels, margin = (record.get(key) for key in RECORDED)
        if loss is None or plain is None or margin is None or labels is None:
            return None
        return cls(loss, plain, labels, margin)


def never_asked_share(text: Text, asked: Asked, whole_words: bool) -> float:
    """Of a text's tokens, those in words of more pieces than sequences ask for; 0 without whole words.

    A short sequence asks for few tokens, so the share differs with its length: what is returned leaves as much to all
    others, p over 1 - share, as the mean of log p over the labels has. Of the held-out text or of the training text's
    first tokens, whichever has more.
    """
    if not whole_words or not len(asked.labels):
        return 0.0
    goes_on, most = continues(text.vocabulary()), int(asked.wanted.max())
    splits = [text.split("heldout"), *([text.split("train")] if isinstance(text, TokenFiles) else [])]
    shares = np.max([never_asked(*_first_tokens(split), goes_on, most) for split in splits], axis=0)
    left = np.maximum(1.0 - shares, 1.0 / len(splits[0].tokens))  # a word cut at a sequence's end is asked for even so
    return float(1.0 - np.exp(np.log(left)[asked.wanted].mean()))


def _first_tokens(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and sentences of a split, whole sentences of the first MOST_TOKENS."""
    sentences = np.asarray(split.sentences)
    sentences = sentences[: max(2, int(np.searchsorted(sentences, MOST_TOKENS, "right")))]
    return np.asarray(split.tokens)[: sentences[-1]], sentences


def no_context(seen: np.ndarray, asked: Asked, special_ids: Mapping[str, int], never: float) -> NoContext:
    """The baseline for a model that is judged by what is `asked` for.

    seen: int [vocab], how often each id is in the training text. special_ids: by name; those that are never predicted
    are left out. never: share of the text's tokens that stand in words of more pieces than sequences ask for
    (`never_asked_share`).

    plain is the mean of -log p over the labels, p an id's frequency in the training text, smoothed as in
    `unigram_baseline`. A guess that knows which words are never asked for gives their share to the others in
    proportion: p over 1 - never. It sees what stands in the place, too: [MASK] says nothing, but a tenth of the places
    show the label itself and a tenth one of all R ids that are not special, so that by Bayes' rule the label is what
    is shown, s, with p(s) (1 + 1/R) / (p(s) + 1/R), and any other id l with p(l) / R over the same. That is much: a
    frequent word that is shown is hardly ever there by chance.
    """
    never_shown = [special_ids[token] for token in NOT_PREDICTED]
    keep = np.ones(len(seen), bool)
    keep[never_shown] = False
    labels, shown = asked.labels, asked.shown
    if not len(labels):
        return NoContext(math.nan, math.nan, 0, math.nan)
    p = np.zeros(len(seen))
    p[keep] = np.exp(log_shares(seen[keep]))
    plain = float(-np.log(p[labels]).mean())
    p = np.minimum(p / max(1.0 - never, np.finfo(float).tiny), 1.0)
    chance = 1.0 / (len(seen) - len(special_ids))
    of_shown = p[shown] + chance
    told = np.where(labels == shown, p[shown] * (1.0 + chance) / of_shown, p[labels] * chance / of_shown)
    surprise = -np.log(np.where(shown == special_ids["[MASK]"], p[labels], np.minimum(told, 1.0)))
    error = float(surprise.std(ddof=1)) / math.sqrt(len(labels)) if len(labels) > 1 else 0.0
    return NoContext(float(surprise.mean()), plain, len(labels), max(CLEAR_MARGIN, 2.0 * error))


def unigram_baseline(train: np.ndarray, heldout: np.ndarray, not_predicted: Iterable[int]) -> dict[str, float]:
    """What word frequencies are worth on all tokens of a held-out text; a model is asked for some (no_context).

    train, heldout: int [vocab], how often each id occurs; ids of `not_predicted` are left out.
    heldout_cross_entropy, in nats: -sum_i q_i log p_i, with the held-out split's frequencies q_i and
    p_i = (train_i + 1) / (sum_j train_j + number of ids). heldout_accuracy: the share of held-out tokens that are the
    training split's most frequent id.
    """
    keep = np.ones(len(train), bool)
    keep[list(not_predicted)] = False
    seen, asked = train[keep].astype(np.float64), heldout[keep].astype(np.float64)
    return {
        "heldout_cross_entropy": float(-(asked * log_shares(seen)).sum() / asked.sum()),
        "heldout_accuracy": float(asked[seen.argmax()] / asked.sum()),
    }


def log_shares(seen: np.ndarray) -> np.ndarray:
    """log of (seen + 1) / (sum of seen + number of ids): float64 [ids]."""
    counts = seen.astype(np.float64)
    found: np.ndarray = np.log(counts + 1.0) - math.log(counts.sum() + len(counts))
    return found
