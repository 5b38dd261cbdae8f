"""Any text in the place of a prepared folder's held-out split, with the tokenizer of a run; kept in memory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Iterable, Iterator, Sequence

import numpy as np

from ipu_bert.data.corpus import Corpus
from ipu_bert.data.encoding import count_long_words, encode_documents, split_documents
from ipu_bert.data.errors import DataError
from ipu_bert.data.kept_text import KeptText, count_ids
from ipu_bert.data.quality import told_words
from ipu_bert.data.sentences import count_units
from ipu_bert.data.shards import bounded, told_empty
from ipu_bert.data.source import make_source
from ipu_bert.data.token_files import OFFSETS, Split, token_dtype
from ipu_bert.data.tokenizer import NOT_PREDICTED, most_letters
from ipu_bert.data.unigram import unigram_baseline

_DOCUMENTS = 256  # tokenized together


class TextFiles:
    """Text of local files (rules: local_files.py), tokenized as the text of a run was; all of it is held out.

    kept: what the run keeps of its text. corpus: the one of the run; files are read and their sentences found as it
    says, so that they are what the model learned from. directory: the paths, which messages name. notes: of the text,
    and where its words do not suit the tokenizer. unigram_entropy: as of prepared files, by the frequencies of the
    run's training text. In memory: the text's tokens.
    Raises DataError for text that cannot be read or has no tokens.
    """

    def __init__(self, kept: KeptText, paths: Sequence[str], corpus: Corpus) -> None:
        self._kept = kept
        self.directory = ", ".join(paths)
        source = make_source(replace(corpus, source="files", paths=tuple(paths)), workers=1)
        counts = {False: 0, True: 0}  # documents, by whether they are empty
        self._words = self._long_words = 0
        self._split = self._tokenized(_counted(source.documents(), counts), corpus)
        mine, special = count_ids(self._split.tokens, len(kept.seen)), self.special_ids()
        self.notes = [
            *source.notes,
            *told_empty(counts[True], sum(counts.values()), corpus.column),
            *self._told_words(int(mine[special["[UNK]"]])),
        ]
        baseline = unigram_baseline(kept.seen, mine, [special[token] for token in NOT_PREDICTED])
        self.unigram_entropy = baseline["heldout_cross_entropy"]

    def split(self, name: str) -> Split:
        """The text, as split "heldout". Raises DataError for another name."""
        if name != "heldout":
            raise DataError(f"{self.directory}: expected split heldout of a text to judge a model by, found {name}")
        return self._split

    def vocabulary(self) -> list[str]:
        """The run's word pieces by id."""
        return self._kept.vocabulary()

    def special_ids(self) -> dict[str, int]:
        """Ids of [PAD] [UNK] [CLS] [SEP] [MASK]."""
        return self._kept.special_ids()

    def _tokenized(self, texts: Iterable[str], corpus: Corpus) -> Split:
        tokenizer, dtype = self._kept.tokenizer(), token_dtype(len(self._kept.seen))
        tokens, lengths, counts = [np.empty(0, dtype)], [0], [0]
        for group in _groups(itertools.chain.from_iterable(map(bounded, texts))):
            documents = split_documents(group, corpus.language, corpus.line_is_sentence)
            for document in encode_documents(tokenizer, documents):
                tokens += document.ids
                lengths += map(len, document.ids)
                counts.append(len(document.ids))
                self._words += sum(map(count_units, document.split.sentences))
                self._long_words += count_long_words(tokenizer, document)
        if len(counts) == 1:
            raise DataError(f"{self.directory}: expected text, found no word")
        return Split(np.concatenate(tokens), np.cumsum(lengths, dtype=OFFSETS), np.cumsum(counts, dtype=OFFSETS))

    def _told_words(self, unknown: int) -> list[str]:
        """Where words do not suit the tokenizer, of whose tokens so many are unknown."""
        tokens, words = len(self._split.tokens), max(1, self._words)  # a space of Ethiopic is a token and no word
        most = most_letters(self._kept.tokenizer())
        return told_words(unknown / tokens, self._long_words / words, tokens / words, most)


def _counted(texts: Iterable[str], counts: dict[bool, int]) -> Iterator[str]:
    for text in texts:
        counts[not text.strip()] += 1
        yield text


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while group := list(itertools.islice(iterator, _DOCUMENTS)):
        yield group
