"""Any text in the place of a prepared folder's held-out split, with the tokenizer of that folder; kept in memory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Iterable, Iterator, Sequence

import numpy as np

from ipu_bert.data.corpus import Corpus
from ipu_bert.data.encoding import encode_documents, split_documents
from ipu_bert.data.errors import DataError
from ipu_bert.data.shards import bounded, unigram_baseline
from ipu_bert.data.source import make_source
from ipu_bert.data.token_files import OFFSETS, Split, TokenFiles, token_dtype
from ipu_bert.data.tokenizer import NOT_PREDICTED

_DOCUMENTS = 256  # tokenized together
_TOKENS = 1 << 24  # counted together


class TextFiles(TokenFiles):
    """Text of local files (rules: local_files.py), tokenized as `prepared` was; all of it is held out.

    corpus: the one of the run; the text's files are read and its sentences found as it says, so that they are what the
    model learned from. notes: of the text. unigram_entropy: as of prepared files, by the frequencies of `prepared`'s
    training split. In memory: the text's tokens. Raises DataError for text that cannot be read or has no tokens.
    """

    def __init__(self, prepared: TokenFiles, paths: Sequence[str], corpus: Corpus) -> None:
        super().__init__(prepared.directory, prepared.manifest)
        self.directory = ", ".join(paths)  # what messages name
        source = make_source(replace(corpus, source="files", paths=tuple(paths)), workers=1)
        self.notes = list(source.notes)
        self._split = self._tokenized(source.documents(), corpus)
        train, mine = (self._counts(tokens) for tokens in (prepared.split("train").tokens, self._split.tokens))
        special = self.special_ids()
        baseline = unigram_baseline(train, mine, [special[token] for token in NOT_PREDICTED])
        self.unigram_entropy = baseline["heldout_cross_entropy"]

    def split(self, name: str) -> Split:
        """The text, as split "heldout". Raises DataError for another name."""
        if name != "heldout":
            raise DataError(f"{self.directory}: expected split heldout of a text to judge a model by, found {name}")
        return self._split

    def _tokenized(self, texts: Iterable[str], corpus: Corpus) -> Split:
        tokenizer, dtype = self.tokenizer(), token_dtype(self.vocab_size)
        tokens, lengths, counts = [np.empty(0, dtype)], [0], [0]
        for group in _groups(itertools.chain.from_iterable(map(bounded, texts))):
            documents = split_documents(group, corpus.language, corpus.line_is_sentence)
            for document in encode_documents(tokenizer, documents):
                tokens += document.ids
                lengths += map(len, document.ids)
                counts.append(len(document.ids))
        if len(counts) == 1:
            raise DataError(f"{self.directory}: expected text, found no word")
        return Split(np.concatenate(tokens), np.cumsum(lengths, dtype=OFFSETS), np.cumsum(counts, dtype=OFFSETS))

    def _counts(self, tokens: np.ndarray) -> np.ndarray:
        counts = np.zeros(self.vocab_size, np.int64)
        for start in range(0, len(tokens), _TOKENS):
            counts += np.bincount(tokens[start : start + _TOKENS], minlength=self.vocab_size)
        return counts


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while group := list(itertools.islice(iterator, _DOCUMENTS)):
        yield group
