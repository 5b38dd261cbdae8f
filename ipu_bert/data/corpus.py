"""What a corpus is and how it is prepared."""

from __future__ import annotations

from dataclasses import dataclass

from ipu_bert.data.errors import SettingError
from ipu_bert.data.language import AUTO, NAME
from ipu_bert.data.tokenizer import Normalization


@dataclass(frozen=True)
class Corpus:
    """A text, its vocabulary and its split; the same values and the same text give the same token files, to the byte.

    source: a registered name (source.py). paths, column, encoding, document_words: for source "files" (rules:
    local_files.py); document_words None: by the number of text files. language, line_is_sentence: how sentences are
    found (sentences.py). vocab_size: word pieces to train at most; without effect where `tokenizer` is used instead
    (None: train; else as `given_tokenizer` takes it). normalization: of case, accents and Chinese characters.
    heldout_fraction: share of the documents, chosen by a hash of their text, that never appear in training; at least
    two documents stay on either side.
    Raises SettingError when heldout_fraction is not between 0 and 1, and for a language that is no code.
    """

    source: str
    paths: tuple[str, ...]
    column: str
    encoding: str
    document_words: int | None
    language: str
    line_is_sentence: bool
    vocab_size: int
    tokenizer: str | None
    normalization: Normalization
    heldout_fraction: float

    def __post_init__(self) -> None:
        if not 0.0 < self.heldout_fraction < 1.0:
            raise SettingError(f"heldout_fraction: expected a number between 0 and 1, found {self.heldout_fraction}")
        if self.language != AUTO and not NAME.fullmatch(self.language):
            raise SettingError(f"language: expected {AUTO} or an ISO 639 code, as de, found {self.language!r}")
