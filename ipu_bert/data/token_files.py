"""Token files: a prepared corpus on disk, memory-mapped.

A folder holds, for each SPLIT of "train" and "heldout",

    SPLIT.tokens.bin      uint16 [tokens]           ids, no special tokens; uint32 from a vocabulary of 65,536 pieces on
    SPLIT.sentences.bin   int64  [sentences + 1]    sentence i is tokens[s[i] : s[i + 1]]; none is empty
    SPLIT.documents.bin   int64  [documents + 1]    document i is sentences d[i] to d[i + 1] - 1; none is empty

all numbers little-endian, and

    tokenizer.json        the tokenizer that the ids come from
    manifest.json         counts, what was asked for, bytes and SHA-256 of each file
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ipu_bert.data.errors import DataError
from ipu_bert.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from sparse_ops import files

FORMAT = 2
SPLITS = ("train", "heldout")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
OFFSETS = np.dtype("<i8")
AGAIN = "delete this folder and prepare the text again"


def token_dtype(vocab_size: int) -> np.dtype:
    """The type that holds ids below vocab_size: uint16 below 65,536, else uint32."""
    return np.dtype("<u2" if vocab_size < 1 << 16 else "<u4")


def split_files(split: str) -> dict[str, str]:
    """File names of a split by what they hold: tokens, sentences, documents."""
    return {part: f"{split}.{part}.bin" for part in ("tokens", "sentences", "documents")}


@dataclass(frozen=True)
class Split:
    """Memory-mapped arrays of one split (dtypes and shapes: top of this file)."""

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray


class TokenFiles:
    """A prepared folder, opened; `open` checks every file's size, `verify` the checksums, too.

    unigram_entropy: cross-entropy of the held-out split in nats by word frequencies alone (shards.unigram_baseline).
    notes: what was said when the text was found, as files that were left out.
    """

    def __init__(self, directory: str, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self.vocab_size: int = manifest["vocab_size"]
        self.tokenizer_path = os.path.join(directory, TOKENIZER)
        self.unigram_entropy: float = manifest["unigram"]["heldout_cross_entropy"]
        self.notes: list[str] = manifest["notes"]

    @classmethod
    def open(cls, directory: str) -> TokenFiles:
        """Open a finished folder. Raises DataError naming a file that is missing or not as long as recorded."""
        directory = os.fspath(directory)
        path = os.path.join(directory, MANIFEST)
        try:
            with open(path, encoding="utf-8") as file:
                manifest = json.load(file)
            found = manifest["format"]
            names = manifest["files"]
        except FileNotFoundError:
            raise DataError(f"{path}: missing; expected a directory made by ipu_bert.data.prepare") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as a manifest: {error!r}") from error
        if found != FORMAT:
            raise DataError(f"{path}: expected token file format {FORMAT}, found {found}; {AGAIN}")
        for name, entry in names.items():
            _check_size(os.path.join(directory, name), entry["bytes"])
        return cls(directory, manifest)

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the manifest. Raises DataError naming the first that differs."""
        for name, entry in self.manifest["files"].items():
            path = os.path.join(self.directory, name)
            _check_size(path, entry["bytes"])
            found = files.sha256_of(path)
            if found != entry["sha256"]:
                raise DataError(f"{path}: expected sha256 {entry['sha256']}, found {found}; {AGAIN}")

    def split(self, name: str) -> Split:
        """The arrays of split "train" or "heldout", read-only. Raises DataError for another name or a cut file."""
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}; known: {', '.join(SPLITS)}")
        types = {"tokens": token_dtype(self.vocab_size), "sentences": OFFSETS, "documents": OFFSETS}
        arrays = {}
        for part, file in split_files(name).items():
            path = os.path.join(self.directory, file)
            _check_size(path, self.manifest["files"][file]["bytes"])
            arrays[part] = np.memmap(path, dtype=types[part], mode="r")
        return Split(**arrays)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the ids come from."""
        return load_tokenizer(self.tokenizer_path)

    def vocabulary(self) -> list[str]:
        """The word pieces by id, vocab_size of them."""
        vocab = self.tokenizer().get_vocab(with_added_tokens=True)
        return sorted(vocab, key=lambda piece: vocab[piece])

    def special_ids(self) -> dict[str, int]:
        """Ids of [PAD] [UNK] [CLS] [SEP] [MASK]."""
        vocab = self.tokenizer().get_vocab(with_added_tokens=True)
        return {token: vocab[token] for token in SPECIAL_TOKENS}


def _check_size(path: str, expected: int) -> None:
    if not os.path.isfile(path):
        raise DataError(f"{path}: expected {expected} bytes, found no file; {AGAIN}")
    found = os.path.getsize(path)
    if found != expected:
        raise DataError(f"{path}: expected {expected} bytes, found {found}; {AGAIN}")
