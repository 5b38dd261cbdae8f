"""Token files: a prepared corpus on disk, memory-mapped.

A folder holds, for each SPLIT of "train" and "heldout",

    SPLIT.tokens.bin      uint16 [tokens]           ids, no special tokens; uint32 from a vocabulary of 65,536 pieces on
    SPLIT.sentences.bin   int64  [sentences + 1]    sentence i is tokens[s[i] : s[i + 1]]; none is empty
    SPLIT.documents.bin   int64  [documents + 1]    document i is sentences d[i] to d[i + 1] - 1; none is empty

all numbers little-endian, and

    tokenizer.json        the tokenizer that the ids come from
    manifest.json         counts, what was asked for, bytes and SHA-256 of each file
    cost.json             what it took to make all this (cost.py); alone in not following from what was asked for
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Sequence

import numpy as np
from tokenizers import Tokenizer

from ipu_bert import sealed_json
from ipu_bert.data.cost import read_cost
from ipu_bert.data.errors import DataError
from ipu_bert.data.manifest import (
    held_out,
    ids_problem,
    offsets_problem,
    problem,
    told_long_words,
    told_text,
    told_vocabulary,
)
from ipu_bert.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, special_ids_of, vocabulary_of
from ipu_bert.json_file import read_object
from sparse_ops import files

FORMAT = 3
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


class Text(Protocol):
    """What batches are made from; `directory` is what messages name."""

    directory: str

    def split(self, name: str) -> Split:
        """The arrays of a split."""

    def vocabulary(self) -> list[str]:
        """The word pieces by id."""

    def special_ids(self) -> dict[str, int]:
        """Ids of [PAD] [UNK] [CLS] [SEP] [MASK]."""


class TokenFiles:
    """A prepared folder, opened; `open` checks the manifest and every file's size, `verify` all that is in the files.

    unigram_entropy: cross-entropy of the held-out split in nats by word frequencies alone (unigram_baseline).
    notes: what is to be said of the text; `beside` are those of where it was found, as files that are left out. rules:
    documents by the language whose rules found their sentences. cost: what preparing took, None where that was not
    recorded, or with a note where it cannot be read.
    """

    def __init__(self, directory: str, manifest: dict[str, Any], beside: Sequence[str] = ()) -> None:
        self.directory = directory
        self.manifest = manifest
        self.vocab_size: int = manifest["vocab_size"]
        self.tokenizer_path = os.path.join(directory, TOKENIZER)
        self.unigram_entropy: float = manifest["unigram"]["heldout_cross_entropy"]
        self.notes: list[str] = [*beside, *told_text(manifest), *told_vocabulary(manifest)]
        self.notes += told_long_words(manifest, directory)
        self.rules: dict[str, int] = manifest["rules"]
        try:
            self.cost = read_cost(directory)
        except DataError as error:  # nothing follows from it
            self.cost = None
            self.notes.append(f"what preparing took is not told: {error}")

    @classmethod
    def open(cls, directory: str, beside: Sequence[str] = ()) -> TokenFiles:
        """Open a finished folder. Raises DataError naming a file that is missing or not as long as recorded."""
        directory = os.fspath(directory)
        path = os.path.join(directory, MANIFEST)
        try:
            manifest = read_object(path)
        except FileNotFoundError:
            raise DataError(f"{path}: missing; expected a directory made by ipu_bert.data.prepare") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as a manifest: {error}; {AGAIN}") from error
        if manifest.get("format") != FORMAT:
            found = f"found {manifest.get('format')!r:.80}"
            raise DataError(f"{path}: expected token file format {FORMAT}, {found}; {AGAIN}")
        wrong = problem(manifest, [TOKENIZER, *_split_names()], TOKENIZER, SPLITS) or _sizes_problem(manifest)
        if wrong:
            raise DataError(f"{path}: {wrong}; {AGAIN}")
        if not sealed_json.is_whole(path, manifest):
            raise DataError(f"{path}: expected the SHA-256 that it says it has, found another one; {AGAIN}")
        for name, entry in manifest["files"].items():
            _check_size(os.path.join(directory, name), entry["bytes"])
        return cls(directory, manifest, beside)

    def verify(self) -> None:
        """Read all files: their SHA-256 is the manifest's, offsets and ids are within bounds, the tokenizer has them.

        Files are read side by side, by as many threads as there are cores; a GB took 2.5 seconds of one core of an AMD
        EPYC, which computes SHA-256 in hardware. Raises DataError naming the first file that is not as it should be.
        """
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            for problems in (self._checksum_problem, self._bounds_problem):
                names = list(self.manifest["files"])
                for name, wrong in zip(names, threads.map(problems, names)):
                    if wrong:
                        raise DataError(f"{os.path.join(self.directory, name)}: {wrong}; {AGAIN}")
        vocab = self.tokenizer().get_vocab(with_added_tokens=True)
        missing = [token for token in SPECIAL_TOKENS if token not in vocab]
        if missing or sorted(vocab.values()) != list(range(self.vocab_size)):
            expected = f"the ids 0 to {self.vocab_size - 1} with {' '.join(SPECIAL_TOKENS)}"
            what = f"none for {' '.join(missing)}" if missing else f"{len(vocab)} others"
            raise DataError(f"{self.tokenizer_path}: expected {expected}, found {what}; {AGAIN}")

    def _checksum_problem(self, name: str) -> str:
        path, expected = os.path.join(self.directory, name), self.manifest["files"][name]
        _check_size(path, expected["bytes"])
        found = files.sha256_of(path)
        return "" if found == expected["sha256"] else f"expected sha256 {expected['sha256']:.64}, found {found}"

    def _bounds_problem(self, name: str) -> str:
        split = name.partition(".")[0]
        if name not in _split_names():
            return ""
        sizes, arrays = self.manifest["splits"][split], self.split(split)
        if name == split_files(split)["tokens"]:
            return ids_problem(arrays.tokens, self.vocab_size)
        if name == split_files(split)["sentences"]:
            return offsets_problem(arrays.sentences, sizes["tokens"])
        return offsets_problem(arrays.documents, sizes["sentences"])

    @property
    def identity(self) -> dict[str, str]:
        """Checksums of the tokenizer and of the prepared text: equal where two runs read the same."""
        entries = self.manifest["files"]
        sums = {name: entries[name]["sha256"] for name in (TOKENIZER, *_split_names())}
        text = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
        return {"tokenizer": entries[TOKENIZER]["sha256"], "text": text}

    @property
    def held_out(self) -> dict[str, str]:
        """Which documents are held out, as `manifest.held_out` says it."""
        return held_out(self.manifest)

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
        return vocabulary_of(self.tokenizer())

    def special_ids(self) -> dict[str, int]:
        """Ids of [PAD] [UNK] [CLS] [SEP] [MASK]."""
        return special_ids_of(self.tokenizer())


def _split_names() -> list[str]:
    return [name for split in SPLITS for name in split_files(split).values()]


def _sizes_problem(manifest: dict[str, Any]) -> str:
    """Which file cannot hold as many numbers as the manifest says; empty where all can."""
    width = token_dtype(manifest["vocab_size"]).itemsize
    for split, size in manifest["splits"].items():
        numbers = {"tokens": size["tokens"] * width}
        numbers.update({part: (size[part] + 1) * OFFSETS.itemsize for part in ("sentences", "documents")})
        for part, name in split_files(split).items():
            found = manifest["files"][name]["bytes"]
            if found != numbers[part] or not size[part]:
                return f"expected {numbers[part]} bytes in {name} for {size[part]} {part}, found {found}"
    return ""


def _check_size(path: str, expected: int) -> None:
    if not os.path.isfile(path):
        raise DataError(f"{path}: expected {expected} bytes, found no file; {AGAIN}")
    found = os.path.getsize(path)
    if found != expected:
        raise DataError(f"{path}: expected {expected} bytes, found {found}; {AGAIN}")
