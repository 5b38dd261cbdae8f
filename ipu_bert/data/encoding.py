"""Documents as sentences and as ids."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Iterator

import numpy as np
from tokenizers import Tokenizer

from ipu_bert.data.language import AUTO, fits, language_of
from ipu_bert.data.sentences import split_sentences
from ipu_bert.data.token_files import token_dtype
from ipu_bert.data.tokenizer import NOT_PREDICTED, long_words

_BATCH = 4096  # sentences that are encoded at once: an encoding takes many times its sentence's memory
_START = 4000  # characters of a document in which two languages' rules are compared


@dataclass(frozen=True, eq=False)
class SplitDocument:
    """A document, the language whose rules found its sentences ("" where lines are), and all of its sentences."""

    text: str
    language: str
    sentences: list[str]


@dataclass(frozen=True, eq=False)
class EncodedDocument:
    """A document in sentences, and the ids, uint16 or uint32 [tokens], of those sentences that have any."""

    split: SplitDocument
    ids: list[np.ndarray]


def split_documents(texts: list[str], language: str, line_is_sentence: bool) -> list[SplitDocument]:
    """language, line_is_sentence: as split_sentences takes them."""
    documents = []
    for text in texts:
        rules = "" if line_is_sentence else language_of(text) if language == AUTO else language
        documents.append(SplitDocument(text, rules, split_sentences(text, rules, line_is_sentence)))
    return documents


def is_foreign(document: SplitDocument) -> bool:
    """Whether it is in another script than its language's, and has other sentences by the rules of its own."""
    language, start = document.language, document.text[:_START]
    if not language or fits(language, start):
        return False
    named, own = (split_sentences(start, rules, line_is_sentence=False) for rules in (language, AUTO))
    return named != own


def encode_documents(tokenizer: Tokenizer, documents: list[SplitDocument]) -> Iterator[EncodedDocument]:
    """Documents that have any token; the name of a special token in a text is text, or [UNK] without a piece."""
    encoded = _encode(tokenizer, [sentence for document in documents for sentence in document.sentences])
    for document in documents:
        ids = [pieces for pieces in itertools.islice(encoded, len(document.sentences)) if len(pieces)]
        if ids:
            yield EncodedDocument(document, ids)


def count_long_words(tokenizer: Tokenizer, document: EncodedDocument) -> int:
    """How many of its words are [UNK] for their length."""
    unknown = tokenizer.token_to_id("[UNK]")
    if not any((ids == unknown).any() for ids in document.ids):  # most often, and looking at every word takes time
        return 0
    return sum(long_words(tokenizer, sentence) for sentence in document.split.sentences)


def _encode(tokenizer: Tokenizer, sentences: list[str]) -> Iterator[np.ndarray]:
    """The ids of each sentence, none of them in NOT_PREDICTED."""
    tokenizer.encode_special_tokens = True
    ids = _ids_of_text(tokenizer)
    # older versions of tokenizers lack the fast one
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    for first in range(0, len(sentences), _BATCH):
        for encoding in encode(sentences[first : first + _BATCH], add_special_tokens=False):
            yield ids.take(encoding.ids)


def _ids_of_text(tokenizer: Tokenizer) -> np.ndarray:
    """By id what it is in a text: itself, but [UNK] of a special token.

    encode_special_tokens acts on names that the tokenizer knows as special. Where they are other added tokens, or words
    that stand between spaces, a text that names them would be padded, cut or masked there.
    """
    size = tokenizer.get_vocab_size()
    ids = np.arange(size, dtype=token_dtype(size))
    ids[np.array([tokenizer.token_to_id(name) for name in NOT_PREDICTED])] = tokenizer.token_to_id("[UNK]")
    return ids
