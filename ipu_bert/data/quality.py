"""What became of a text: how well its words, sentences and documents suit the tokenizer and the sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Mapping

import numpy as np

from ipu_bert.data.chunks import chunk_starts, lone_share
from ipu_bert.data.cost import Cost
from ipu_bert.data.manifest import COUNTS
from ipu_bert.data.token_files import TokenFiles

MOST_LONE = 0.5  # of the chunks: with more of them, fewer than half of the labels could be "follows"


@dataclass(frozen=True)
class TextQuality:
    """Shares in [0, 1], of both splits together unless said.

    unknown: tokens that are [UNK]. pieces_a_word: a word is what stands between spaces, or a letter in scripts without.
    long_words: words of more than most_letters letters, which are [UNK]; None of text whose long words an earlier
    version counted. lone_documents: documents of one sentence. shown: training
    tokens that sequences have room for, where each is made of one chunk of the text; the rest falls to truncation. An
    epoch shows others of them: B is often random, and some sequences are short. pairs: whether sentence
    pairs can be made of the training text for next-sentence prediction; else only masked LM is trained. judged_pairs:
    whether they can of the held-out text. rules: documents by the language whose rules found their sentences; none
    where lines are sentences. notes: what was said when the text was found. cost: of preparing it, None where that was
    not recorded.
    """

    unknown: float
    pieces_a_word: float
    long_words: float
    most_letters: int | None
    lone_documents: float
    shown: float
    pairs: bool
    judged_pairs: bool
    rules: Mapping[str, int]
    notes: tuple[str, ...]
    cost: Cost | None

    def summary(self) -> str:
        """One line of numbers."""
        return (
            f"{100 * self.unknown:.2f} % of the tokens are [UNK], {self.pieces_a_word:.2f} pieces a word, "
            f"{100 * self.lone_documents:.1f} % of the documents have one sentence, "
            f"sequences have room for {100 * self.shown:.1f} % of the tokens; {self._sentences()}"
        )

    def _sentences(self) -> str:
        """What was taken for a sentence; the most frequent language first, the rarest of many left out."""
        languages = sorted(self.rules, key=lambda code: -self.rules[code])
        if not languages:
            return "lines are sentences"
        shown = languages if len(languages) == 1 else [f"{code} ({self.rules[code]:,})" for code in languages[:5]]
        return f"sentences by the rules of {', '.join(shown)}{', ...' * (len(languages) > 5)}"

    @property
    def which_language(self) -> float:
        """What it is worth to know which language a document is in [nats]: the entropy of `rules`."""
        shares = [count / sum(self.rules.values()) for count in self.rules.values() if count]
        return -sum(share * math.log(share) for share in shares)

    def told(self) -> list[str]:
        """The numbers, and what preparing took where that was recorded: a line each."""
        return [self.summary(), *([self.cost.summary()] if self.cost else [])]

    def warnings(self) -> list[str]:
        """A line for each thing that is bad, and each note."""
        most = self.most_letters or 0
        lines = [*self.notes, *told_words(self.unknown, self.long_words if most else 0.0, self.pieces_a_word, most)]
        if self.shown < 0.5:
            lines.append(
                f"sequences have room for {100 * self.shown:.0f} % of the tokens: sentences are longer; "
                "data.language, data.line_is_sentence or data.sequence_length may help"
            )
        if not self.pairs:
            lines.append(
                "too few documents have two sentences to make pairs of: masked LM is trained alone, without "
                "next-sentence prediction"
            )
        elif not self.judged_pairs:
            lines.append(
                "next-sentence prediction is trained and never judged: too few held-out documents have two sentences "
                "to make pairs of; a larger data.heldout_fraction may help"
            )
        return lines


def told_words(unknown: float, long_words: float = 0.0, pieces_a_word: float = 1.0, most: int = 0) -> list[str]:
    """A line for each sign that a vocabulary does not suit a text; numbers as in TextQuality; most: letters."""
    lines = []
    if unknown > 0.01:
        lines.append(f"{100 * unknown:.1f} % of the tokens are [UNK]: is the vocabulary one for this text?")
    if long_words:
        lines.append(f"{100 * long_words:.2g} % of the words have more than {most} letters and become [UNK]")
    if pieces_a_word > 3.0:
        lines.append(f"{pieces_a_word:.1f} pieces a word: is the vocabulary for this text, and large enough?")
    return lines


def text_quality(files: TokenFiles, sequence_length: int) -> TextQuality:
    """Measured on prepared text, for sequences of so many tokens."""
    most = sequence_length - 3
    sizes = list(files.manifest["splits"].values())
    total = {key: sum(size[key] for size in sizes) for key in COUNTS}
    train, heldout = files.split("train"), files.split("heldout")
    chunks = chunk_starts(train.sentences, train.documents, most)
    judged = chunk_starts(heldout.sentences, heldout.documents, most)
    lengths = np.diff(np.asarray(train.sentences)[chunks])
    return TextQuality(
        unknown=total["unknown"] / total["tokens"],
        pieces_a_word=total["tokens"] / total["words"],
        long_words=total["long_words"] / total["words"],
        most_letters=files.manifest.get("most_letters"),
        lone_documents=total["lone_documents"] / total["documents"],
        shown=float(np.minimum(lengths, most).sum() / lengths.sum()),
        pairs=lone_share(chunks) <= MOST_LONE,
        judged_pairs=lone_share(judged) <= MOST_LONE,
        rules=files.rules,
        notes=tuple(files.notes),
        cost=files.cost,
    )
