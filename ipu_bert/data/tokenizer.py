"""WordPiece as BERT has it: trained here, or taken from a vocab.txt, a tokenizer.json, a folder or the hub."""

from __future__ import annotations

import collections
import json
import os
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Callable, Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ipu_bert.data.errors import DataError, SettingError, one_line
from sparse_ops.files import plain

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NOT_PREDICTED = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = 2000  # pieces that are single letters: so many, or half of a larger vocabulary
_MARK = "\ufeff"  # a byte order mark
MAX_LETTERS = 100  # a longer word is [UNK], as in BERT
_LONG = re.compile(rf"[^ \t\r\n]{{{MAX_LETTERS // 4 + 1},}}")  # normalization makes up to four letters of one


@dataclass(frozen=True)
class Normalization:
    """What transformers' BertTokenizer calls by these names.

    do_lower_case: make letters small. strip_accents: drop combining marks, also vowel signs; as in transformers None
    follows do_lower_case, once that is settled. tokenize_chinese_chars: every Chinese character is a word.
    """

    do_lower_case: bool | None
    strip_accents: bool | None
    tokenize_chinese_chars: bool | None

    def over(self, other: Normalization) -> Normalization:
        """These values where they are given, else the other ones."""
        return replace(other, **{key: value for key, value in vars(self).items() if value is not None})

    def normalizer(self) -> normalizers.BertNormalizer:
        """The same for tokenizers; nothing but accents is left open."""
        assert self.do_lower_case is not None
        assert self.tokenize_chinese_chars is not None
        return normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=self.tokenize_chinese_chars,
            strip_accents=self.strip_accents,
            lowercase=self.do_lower_case,
        )


# Of a vocabulary trained here. Accents stay: in most scripts they are letters, as the vowel signs of Hindi.
TRAINED = Normalization(do_lower_case=True, strip_accents=False, tokenize_chinese_chars=True)


def train_tokenizer(texts: Callable[[], Iterable[str]], vocab_size: int, wanted: Normalization) -> Tokenizer:
    """A WordPiece vocabulary of at most `vocab_size` pieces from texts(), which is called twice and streamed.

    The same texts give the same vocabulary, ids included. [PAD] [UNK] [CLS] [SEP] [MASK] are ids 0 to 4. All letters of
    the text are pieces, the most frequent ones where they would fill more than half of a large vocabulary. A small text
    may give fewer pieces than asked: read the size from the result. wanted: over TRAINED.
    Raises DataError if vocab_size is too small for the single letters of the text.
    """
    normalization = wanted.over(TRAINED)
    normalizer, pre_tokenizer = normalization.normalizer(), pre_tokenizers.BertPreTokenizer()
    raw: collections.Counter[str] = collections.Counter()
    for text in texts():
        raw.update(text)
    counts: collections.Counter[str] = collections.Counter()
    for letter, count in raw.items():  # the normalisation looks at one letter at a time
        for normal in normalizer.normalize_str(letter):
            counts[normal] += count

    def goes_on(letter: str) -> bool:
        return len(pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(f"a{letter}a"))) == 1

    kept: list[str] = []
    inner: list[str] = []
    for letter in sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c)):
        if len(kept) + len(inner) >= max(ALPHABET, vocab_size // 2):
            break
        kept.append(letter)
        inner += [f"##{letter}"] if goes_on(letter) else []
    needed = len(SPECIAL_TOKENS) + len(inner) + len(kept)
    if vocab_size < needed:
        raise SettingError(f"vocab_size: expected at least {needed} for this text's letters, found {vocab_size}")
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The trainer numbers "##x" pieces in the order of a randomly seeded hash map, and breaks ties between merges by
        # these numbers. Naming the pieces of one letter beforehand, in order, leaves it nothing to choose.
        special_tokens=[*SPECIAL_TOKENS, *sorted(inner)],
        initial_alphabet=sorted(kept),
        limit_alphabet=len(kept),
        show_progress=False,
    )
    words = _wordpiece(list(SPECIAL_TOKENS), normalization)  # a learner that learns answers no other question
    learner.train_from_iterator((_without_long_words(words, text) for text in texts()), trainer)
    vocab = learner.get_vocab(with_added_tokens=True)
    return _wordpiece(sorted(vocab, key=lambda piece: vocab[piece]), normalization)


def most_letters(tokenizer: Tokenizer) -> int:
    """Of a word that has pieces; a longer one is [UNK]."""
    return int(tokenizer.model.max_input_chars_per_word)


def long_words(tokenizer: Tokenizer, text: str) -> int:
    """How many words of a text are [UNK] for their length."""
    most = most_letters(tokenizer)
    return sum(len(word) > most for word in _words(tokenizer, text))


def _without_long_words(tokenizer: Tokenizer, text: str) -> str:
    """Without what will be [UNK] all the same: the trainer's time grows with the square of a word's length."""
    return _LONG.sub(lambda run: " ".join(w for w in _words(tokenizer, run.group()) if len(w) <= MAX_LETTERS), text)


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    """What the tokenizer makes pieces of: of Chinese without spaces each character, where it takes these for words."""
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    if not tokenizer.pre_tokenizer:
        return [normal]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


def given_tokenizer(name: str, wanted: Normalization) -> Tokenizer:
    """The tokenizer of a vocab.txt, a tokenizer.json, or a folder or hub name that transformers' AutoTokenizer opens.

    wanted: over what the tokenizer's own files say. Raises DataError where there is none, or one that is no WordPiece
    with "##" and BERT's five special tokens, or that has a normalization of another kind to be changed.
    """
    if os.path.isfile(name) or name.endswith((".txt", ".json")):
        tokenizer = load_tokenizer(name) if name.endswith(".json") else tokenizer_from_vocab(name, wanted)
    else:
        tokenizer = _auto_tokenizer(name)
    model = tokenizer.model
    if not isinstance(model, models.WordPiece) or model.continuing_subword_prefix != "##":
        raise DataError(f"{name}: expected a WordPiece tokenizer with ##, found {type(model).__name__}")
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise DataError(f"{name}: expected the special tokens {' '.join(SPECIAL_TOKENS)}, missing {' '.join(missing)}")
    if any(f"{_MARK}{token}" in vocab for token in SPECIAL_TOKENS):  # transformers would add a second [PAD]
        raise DataError(f"{name}: expected no byte order mark, found one as part of the first piece of its vocabulary")
    if len(vocab) == len(SPECIAL_TOKENS):
        raise DataError(f"{name}: expected word pieces beside the special tokens, found none")
    ids = sorted(vocab.values())
    if ids != list(range(len(ids))):
        wrong = ids[-1] if ids[-1] >= len(ids) else f"{next(a for a, b in zip(ids, ids[1:]) if a == b)} twice"
        raise DataError(f"{name}: expected ids 0 to {len(ids) - 1}, found {wrong}")
    if model.unk_token != "[UNK]":  # which is what is counted as unknown, and never asked for
        raise DataError(f"{name}: expected [UNK] for what is unknown, found {model.unk_token}")
    if model.unk_token not in tokenizer.get_vocab(with_added_tokens=False):
        raise DataError(
            f"{name}: expected {model.unk_token} among the word pieces, found it nowhere or as an added token"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _normalized(name, tokenizer, wanted)


def why_not_taken(name: str) -> str:
    """Why `given_tokenizer` does not take a tokenizer as it is; empty where it does."""
    try:
        given_tokenizer(name, Normalization(None, None, None))
    except DataError as error:
        return one_line(error)
    return ""


def _normalized(name: str, tokenizer: Tokenizer, wanted: Normalization) -> Tokenizer:
    """The tokenizer with the wanted normalization, where anything is wanted."""
    found = tokenizer.normalizer
    if all(value is None for value in vars(wanted).values()):
        return tokenizer
    if not isinstance(found, normalizers.BertNormalizer):
        raise DataError(
            f"{name}: expected BERT's normalization, which do_lower_case, strip_accents and tokenize_chinese_chars can "
            f"change, found {type(found).__name__}"
        )
    own = Normalization(found.lowercase, found.strip_accents, found.handle_chinese_chars)
    tokenizer.normalizer = wanted.over(own).normalizer()
    return tokenizer


def _auto_tokenizer(name: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        opened = AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # which also asks nobody
    except Exception as error:  # transformers and its hub client raise many kinds
        raise DataError(
            f"{name}: expected a vocab.txt, a tokenizer.json, or a folder or hub name that AutoTokenizer opens: "
            f"{one_line(error)}"
        ) from error
    backend = getattr(opened, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"{name}: expected a fast WordPiece tokenizer, found {type(opened).__name__}")
    return Tokenizer.from_str(backend.to_str())


def tokenizer_from_vocab(path: str, wanted: Normalization) -> Tokenizer:
    """The tokenizer of a vocab.txt, one piece per line, line number = id (such as bert-base-uncased's).

    wanted: over what a tokenizer_config.json beside it says, over what the vocabulary shows.
    Raises DataError if the file is missing, lists a piece twice, or lacks one of BERT's five special tokens.
    """
    try:
        with open(plain(path), encoding="utf-8-sig") as file:  # a byte order mark is no piece
            pieces = file.read().rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a vocabulary: {error}") from error
    missing = [token for token in SPECIAL_TOKENS if token not in pieces]
    if missing:
        raise DataError(f"{path}: expected the special tokens {' '.join(SPECIAL_TOKENS)}, missing {' '.join(missing)}")
    twice = [piece for piece, count in collections.Counter(pieces).items() if count > 1]
    if twice:
        raise DataError(f"{path}: expected each piece once, found {twice[0]!r} more than once")
    return _wordpiece(pieces, wanted.over(_written_beside(path).over(_shown_by(pieces))))


def _shown_by(pieces: list[str]) -> Normalization:
    """A capital would never match if letters were made small, nor an accent if accents were dropped."""
    words = [piece for piece in pieces if not (piece.startswith("[") and piece.endswith("]"))]
    cased = any(piece != piece.lower() for piece in words)
    accents = any(unicodedata.category(c) == "Mn" for piece in words for c in unicodedata.normalize("NFD", piece))
    return Normalization(not cased, False if accents else None, True)


def _written_beside(path: str) -> Normalization:
    """What a tokenizer_config.json in the vocabulary's folder says, as transformers writes it."""
    config = os.path.join(os.path.dirname(path), "tokenizer_config.json")
    try:
        with open(plain(config), encoding="utf-8") as file:
            found = json.load(file)
        return Normalization(*(found.get(key) for key in vars(TRAINED)))
    except FileNotFoundError:
        return Normalization(None, None, None)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{config}: cannot be read as a tokenizer's settings: {one_line(error)}") from error


def _wordpiece(pieces: list[str], normalization: Normalization) -> Tokenizer:
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_LETTERS))
    tokenizer.normalizer = normalization.normalizer()
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
        return Tokenizer.from_file(os.fspath(plain(path)))
    except Exception as error:  # tokenizers raises a bare Exception
        raise DataError(f"{path}: cannot be read as a tokenizer: {error}") from error


def vocabulary_of(tokenizer: Tokenizer) -> list[str]:
    """The word pieces by id."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return sorted(vocab, key=lambda piece: vocab[piece])


def special_ids_of(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of [PAD] [UNK] [CLS] [SEP] [MASK]."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return {token: vocab[token] for token in SPECIAL_TOKENS}
