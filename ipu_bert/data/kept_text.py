"""What a run keeps of its text: with it a finished model is judged and exported when the text is gone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ipu_bert.data.errors import DataError, one_line
from ipu_bert.data.token_files import TokenFiles
from ipu_bert.data.tokenizer import SPECIAL_TOKENS, special_ids_of, vocabulary_of

_TOKENS = 1 << 24  # counted together


@dataclass(frozen=True, eq=False)
class KeptText:
    """tokenizer_json: the tokenizer that the model's ids come from, as its file has it. seen: int64 [vocabulary], how
    often each id is in the training text. unigram_entropy: of the held-out text, in nats (unigram_baseline).
    pairs: whether training examples had next-sentence labels.
    """

    tokenizer_json: bytes
    seen: np.ndarray
    unigram_entropy: float
    pairs: bool

    @classmethod
    def of(cls, files: TokenFiles, pairs: bool) -> KeptText:
        """From prepared text."""
        seen = count_ids(files.split("train").tokens, files.vocab_size)
        return cls(Path(files.tokenizer_path).read_bytes(), seen, files.unigram_entropy, pairs)

    def to_tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds it: tokenizer uint8 [bytes], seen int64 [vocabulary], unigram_entropy float64 [],
        pairs bool [].
        """
        tokenizer = torch.from_numpy(np.frombuffer(self.tokenizer_json, np.uint8).copy())
        numbers = {"unigram_entropy": torch.tensor(self.unigram_entropy, dtype=torch.float64)}
        seen, pairs = torch.from_numpy(self.seen), torch.tensor(self.pairs)
        return {"tokenizer": tokenizer, "seen": seen, **numbers, "pairs": pairs}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], vocab_size: int, sha256: object) -> KeptText:
        """From a checkpoint of a model with so many ids; sha256: of its tokenizer.

        Raises DataError for tensors that `to_tensors` does not give, and for another tokenizer.
        """
        expected = {"tokenizer": (torch.uint8, 1), "seen": (torch.int64, 1), "pairs": (torch.bool, 0)}
        expected["unigram_entropy"] = (torch.float64, 0)
        found = {name: (tensor.dtype, tensor.dim()) for name, tensor in tensors.items()}
        if found != expected or tensors["seen"].numel() != vocab_size or bool((tensors["seen"] < 0).any()):
            shown = ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items())
            raise DataError(
                f"text.safetensors: expected tokenizer, entropy, pairs, {vocab_size} counts of ids, found {shown:.200}"
            )
        entropy, pairs = float(tensors["unigram_entropy"]), bool(tensors["pairs"])
        kept = cls(tensors["tokenizer"].numpy().tobytes(), tensors["seen"].numpy(), entropy, pairs)
        if hashlib.sha256(kept.tokenizer_json).hexdigest() != sha256:
            raise DataError("text.safetensors: expected the tokenizer that the model was trained with, found another")
        vocab = kept.tokenizer().get_vocab(with_added_tokens=True)
        if not set(SPECIAL_TOKENS) <= vocab.keys() or sorted(vocab.values()) != list(range(vocab_size)):
            raise DataError(f"text.safetensors: expected a tokenizer with the ids 0 to {vocab_size - 1}, found others")
        return kept

    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises DataError where it is none."""
        try:
            return Tokenizer.from_buffer(self.tokenizer_json)
        except Exception as error:  # tokenizers raises a bare Exception
            raise DataError(f"cannot be read as a tokenizer: {one_line(error)}") from error

    def vocabulary(self) -> list[str]:
        """The word pieces by id."""
        return vocabulary_of(self.tokenizer())

    def special_ids(self) -> dict[str, int]:
        """Ids of [PAD] [UNK] [CLS] [SEP] [MASK]."""
        return special_ids_of(self.tokenizer())


def count_ids(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id is in tokens [n], which may be memory-mapped: int64 [vocab_size]."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), _TOKENS):
        counts += np.bincount(tokens[start : start + _TOKENS], minlength=vocab_size)
    return counts
