"""WordPiece with BERT's uncased normalisation, trained here or read from a vocab.txt."""

from __future__ import annotations

import collections
import os
from typing import Callable, Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ipu_bert.data.errors import DataError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NOT_PREDICTED = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = 1000


def train_tokenizer(texts: Callable[[], Iterable[str]], vocab_size: int) -> Tokenizer:
    """A WordPiece vocabulary of at most `vocab_size` pieces from texts(), which is called twice and streamed.

    The same texts give the same vocabulary, ids included. [PAD] [UNK] [CLS] [SEP] [MASK] are ids 0 to 4. A small text
    may give fewer pieces than asked: read the size from the result.
    Raises DataError if vocab_size is too small for the single letters of the text.
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    raw: collections.Counter[str] = collections.Counter()
    for text in texts():
        raw.update(text)
    counts: collections.Counter[str] = collections.Counter()
    for letter, count in raw.items():  # the normalisation looks at one letter at a time
        for normal in normalizer.normalize_str(letter):
            counts[normal] += count
    kept = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:ALPHABET]
    # The trainer numbers "##x" pieces in the order of a randomly seeded hash map, and breaks ties between merges by
    # these numbers. Naming the pieces of one letter beforehand, in order, leaves it nothing to choose.
    inner = [
        f"##{c}" for c in sorted(kept) if len(pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(f"a{c}a"))) == 1
    ]
    needed = len(SPECIAL_TOKENS) + len(inner) + len(kept)
    if vocab_size < needed:
        raise DataError(f"vocab_size: expected at least {needed} for this text's letters, found {vocab_size}")
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *inner],
        initial_alphabet=sorted(kept),
        limit_alphabet=len(kept),
        show_progress=False,
    )
    learner.train_from_iterator(texts(), trainer)
    vocab = learner.get_vocab(with_added_tokens=True)
    return _wordpiece(sorted(vocab, key=lambda piece: vocab[piece]))


def tokenizer_from_vocab(path: str) -> Tokenizer:
    """The tokenizer of a vocab.txt, one piece per line, line number = id (such as bert-base-uncased's).

    Raises DataError if the file is missing, lists a piece twice, or lacks one of BERT's five special tokens.
    """
    try:
        with open(path, encoding="utf-8") as file:
            pieces = file.read().rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a vocabulary: {error}") from error
    missing = [token for token in SPECIAL_TOKENS if token not in pieces]
    if missing:
        raise DataError(f"{path}: expected the special tokens {' '.join(SPECIAL_TOKENS)}, missing {' '.join(missing)}")
    twice = [piece for piece, count in collections.Counter(pieces).items() if count > 1]
    if twice:
        raise DataError(f"{path}: expected each piece once, found {twice[0]!r} more than once")
    return _wordpiece(pieces)


def _wordpiece(pieces: list[str]) -> Tokenizer:
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    # For users of the exported model; token files are encoded without special tokens.
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    assert tokenizer.get_vocab_size() == len(pieces)
    return tokenizer


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises DataError if the file is not one."""
    try:
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # tokenizers raises a bare Exception
        raise DataError(f"{path}: cannot be read as a tokenizer: {error}") from error
