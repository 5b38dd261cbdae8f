"""What knowing only word frequencies is worth: the loss that a trained model must beat."""

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


class LabelCounts(NamedTuple):
    """ids: int64 [vocab], how often each id is a label. by_wanted: int64 [P + 1], labels of sequences that ask for so
    many tokens."""

    ids: np.ndarray
    by_wanted: np.ndarray


@dataclass(frozen=True)
class WordFrequencies:
    """What a guess by frequency reaches on the labels that judge a model.

    loss [nats]: what is to be beaten: the least that it can reach knowing which words are never asked for. plain
    [nats]: what it does reach not knowing. labels: how many. margin [nats]: two standard errors, CLEAR_MARGIN at least;
    by less, a model's loss is not clearly below. NaN where there are no labels.
    """

    loss: float
    plain: float
    labels: int
    margin: float

    def clearly_above(self, loss: float) -> bool:
        """Whether a model of this loss on the same labels knows more than frequencies, as far as they can tell."""
        return self.labels >= FEWEST_LABELS and self.loss - loss > self.margin

    def as_record(self) -> dict[str, Any]:
        """As a record of an evaluation has it."""
        return {
            "word_frequencies_loss": self.loss,
            "word_frequencies_plain": self.plain,
            "word_frequencies_margin": self.margin,
            "mlm_labels": self.labels,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> WordFrequencies | None:
        """What `as_record` gave; None where a record does not say, as those of older versions."""
        loss, plain, margin = (record.get(f"word_frequencies_{name}") for name in ("loss", "plain", "margin"))
        labels = record.get("mlm_labels")
        if loss is None or plain is None or margin is None or labels is None:
            return None
        return cls(loss, plain, labels, margin)


def never_asked_share(text: Text, asked: LabelCounts, whole_words: bool) -> float:
    """Of a text's tokens, those in words of more pieces than sequences ask for; 0 without whole words.

    asked: the labels that judge a model. A short sequence asks for few tokens, so the share differs with its length:
    what is returned leaves as much to all others, p over 1 - share, as the mean of log p over the labels has. Of the
    held-out text or of the training text's first tokens, whichever has more.
    """
    labels = asked.by_wanted.sum()
    if not whole_words or not labels:
        return 0.0
    goes_on, most = continues(text.vocabulary()), len(asked.by_wanted) - 1
    splits = [text.split("heldout"), *([text.split("train")] if isinstance(text, TokenFiles) else [])]
    shares = np.max([never_asked(*_first_tokens(split), goes_on, most) for split in splits], axis=0)
    left = np.maximum(1.0 - shares, 1.0 / len(splits[0].tokens))  # a word cut at a sequence's end is asked for even so
    return float(1.0 - np.exp((asked.by_wanted * np.log(left)).sum() / labels))


def _first_tokens(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and sentences of a split, whole sentences of the first MOST_TOKENS."""
    sentences = np.asarray(split.sentences)
    sentences = sentences[: max(2, int(np.searchsorted(sentences, MOST_TOKENS, "right")))]
    return np.asarray(split.tokens)[: sentences[-1]], sentences


def word_frequencies(
    seen: np.ndarray, asked: np.ndarray, special_ids: Mapping[str, int], never: float
) -> WordFrequencies:
    """The baseline for a model that is judged by the labels `asked`.

    seen, asked: int [vocab], how often each id is in the training text and among the labels. special_ids: by name;
    those that are never predicted are left out. never: share of the text's tokens that stand in words of more
    pieces than sequences ask for (`never_asked_share`).

    plain is the mean of -log p over the labels, p an id's frequency in the training text, smoothed as in
    `unigram_baseline`. A guess that knows which words are never asked for gives their share to the others, p over
    1 - never: its loss is lower by -log(1 - never). An id of which a part stands in such words gains less
    than that, so `loss` is at most what frequencies among the words that can be asked for would reach: a model below
    it has beaten them, too, and one above it has not where it is above `plain`.
    """
    keep = np.ones(len(seen), bool)
    keep[[special_ids[token] for token in NOT_PREDICTED]] = False
    counts, log_p = asked[keep].astype(np.float64), log_shares(seen[keep])
    labels = int(counts.sum())
    if not labels:
        return WordFrequencies(math.nan, math.nan, 0, math.nan)
    mean = float(-(counts * log_p).sum() / labels)
    deviations = float((counts * (log_p + mean) ** 2).sum())
    error = math.sqrt(deviations / max(1, labels - 1) / labels)
    spared = math.log(1.0 - never) if never < 1.0 else -math.inf
    return WordFrequencies(max(0.0, mean + spared), mean, labels, max(CLEAR_MARGIN, 2.0 * error))


def unigram_baseline(train: np.ndarray, heldout: np.ndarray, not_predicted: Iterable[int]) -> dict[str, float]:
    """What word frequencies are worth on all tokens of a held-out text; a model is asked for some (word_frequencies).

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
