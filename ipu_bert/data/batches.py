"""Batches for masked-LM and next-sentence prediction; any batch can be had without the ones before it.

How a sequence is made (BERT's create_pretraining_data, as a pure function of the example number):
- Every document is cut once into chunks of about S - 3 tokens (chunks.py). An epoch visits every chunk once.
- Some examples are short: sentences from somewhere in the chunk up to a random target length.
- The sentences are split at a random boundary; the first part is A. B is the second part, or text from a random place
  of another document, as long as what is left of the target. A chunk of one sentence can only have the latter; the
  others have it so much more seldom that half of all B's are random.
- Where more than half of the chunks are one sentence that cannot be: then no example has a next-sentence label, and
  masked LM is trained alone.
- Too long a pair loses tokens one by one from the longer part, the surplus at random from both its ends.

What BERT puts back when B is random (the chunk's second part) is not put back here, for then an example would depend on
the ones before. Nothing is lost systematically all the same: coin, boundary and truncation are drawn anew for every
example, so in the next epoch the same chunk is cut elsewhere, and random B's come from everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ipu_bert.data.chunks import EpochOrder, chunk_starts, lone_share
from ipu_bert.data.errors import DataError
from ipu_bert.data.masking import IGNORED_LABEL, choose_tokens, continues, mask_tokens, wanted
from ipu_bert.data.quality import MOST_LONE
from ipu_bert.data.token_files import SPLITS, Text
from ipu_bert.data.words import word_sizes, word_starts

HELDOUT_SEED = 1790  # evaluation is on the same sequences in every run, whatever the run's seed
_DRAWS = 7


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of B sequences of S tokens with P places for predictions; int64 unless said.

    input_ids [B, S]: [CLS] A [SEP] B [SEP] [PAD]..., masked. token_type_ids [B, S]: 1 for B and its [SEP].
    attention_mask [B, S] bool: True = token, False = padding. masked_positions [B, P]: ascending, unused places 0.
    masked_labels [B, P]: the original ids, unused places IGNORED_LABEL. next_sentence_labels [B]: 0 = B follows A,
    1 = B is random; IGNORED_LABEL in all of a text that no pairs can be made of.
    """

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    attention_mask: torch.Tensor
    masked_positions: torch.Tensor
    masked_labels: torch.Tensor
    next_sentence_labels: torch.Tensor


def unmasked(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(the text before masking, which of its places are asked for): int64 and bool, [B, S]."""
    labels, ids = batch.masked_labels.numpy(), batch.input_ids.numpy().copy()
    row, place = np.nonzero(labels != IGNORED_LABEL)
    column = batch.masked_positions.numpy()[row, place]
    asked = np.zeros(ids.shape, bool)
    asked[row, column] = True
    ids[row, column] = labels[row, place]
    return ids, asked


@dataclass(frozen=True)
class BatchOptions:
    """How batches are made.

    batch_size: B, sequences in a batch. sequence_length: S, tokens of a sequence. max_predictions: P, places for
    predictions in a sequence. mask_probability: share of the tokens to predict. whole_word: mask all pieces of a word
    or none. short_sequence_probability: share of short examples. seed: an int from 0 on.
    Raises ValueError when a number is out of its range.
    """

    batch_size: int
    sequence_length: int
    max_predictions: int
    mask_probability: float
    whole_word: bool
    short_sequence_probability: float
    seed: int

    def __post_init__(self) -> None:
        most = self.sequence_length - 3
        for name, expected, holds in (
            ("batch_size", "1 or more", self.batch_size >= 1),
            ("sequence_length", "8 or more", self.sequence_length >= 8),
            ("max_predictions", "1 to sequence_length - 3", 1 <= self.max_predictions <= most),
            ("mask_probability", "a number between 0 and 1", 0.0 < self.mask_probability < 1.0),
            ("short_sequence_probability", "a number from 0 to 1", 0.0 <= self.short_sequence_probability <= 1.0),
            ("seed", "0 or more", self.seed >= 0),
        ):
            if not holds:
                raise ValueError(f"{name}: expected {expected}, found {getattr(self, name)}")


class BatchStream:
    """An endless stream of batches of one split; batch(index) depends on the values given here and on index.

    split: "train", or "heldout", where HELDOUT_SEED takes the place of the seed in `options`.
    In memory: 8 bytes per sequence of the corpus (chunk starts) and 4 (the epoch's order); tokens and offsets of
    sentences and documents are memory-mapped. pairs: whether examples have next-sentence labels.
    Raises DataError for a split with fewer than 2 documents, or fewer sequences than one batch.
    """

    def __init__(self, text: Text, split: str, options: BatchOptions) -> None:
        arrays = text.split(split)
        self.directory = text.directory
        self.split = split
        self.options = options
        # plain views: a memmap object costs several times as much per slice
        self._tokens = np.asarray(arrays.tokens)
        self._sentences = np.asarray(arrays.sentences)
        self._documents = np.asarray(arrays.documents)
        if len(self._documents) < 3:
            raise DataError(
                f"{text.directory}: corpus too small: expected at least 2 documents in split {split}, "
                f"found {len(self._documents) - 1}"
            )
        self._chunks = chunk_starts(self._sentences, self._documents, options.sequence_length - 3)
        if self.sequences_per_epoch < options.batch_size:
            raise DataError(
                f"{text.directory}: corpus too small: expected at least one batch of {options.batch_size} "
                f"sequences of {options.sequence_length} tokens in split {split}, found {self.sequences_per_epoch}"
            )
        lone = lone_share(self._chunks)
        self.pairs = lone <= MOST_LONE
        self._random_share = (0.5 - lone) / (1.0 - lone) if self.pairs else 1.0
        used = HELDOUT_SEED if split == "heldout" else options.seed
        self._key = np.random.SeedSequence([used, SPLITS.index(split)]).generate_state(2, np.uint64)
        self._order = EpochOrder(self.sequences_per_epoch, self._key)
        special = text.special_ids()
        self._pad, self._cls, self._sep, self._mask = (special[f"[{n}]"] for n in ("PAD", "CLS", "SEP", "MASK"))
        pieces = text.vocabulary()
        self._continues = continues(pieces) & options.whole_word
        self._replaceable = np.setdiff1d(np.arange(len(pieces)), list(special.values()))

    @property
    def sequences_per_epoch(self) -> int:
        """Number of chunks: each is visited once before any is visited again."""
        return len(self._chunks) - 1

    def first_batches(self, count: int) -> range:
        """The numbers of the first `count` batches, fewer where they would go beyond one pass over the text."""
        return range(min(count, -(-self.sequences_per_epoch // self.options.batch_size)))

    def never_asked(self, batch: Batch) -> np.ndarray:
        """Of a batch of this text, the tokens of words of more pieces than their sequence asks for: bool [B, S]."""
        options, lengths = self.options, batch.attention_mask.numpy().sum(1)
        ids, _ = unmasked(batch)
        special = np.isin(ids, (self._pad, self._cls, self._sep))
        sizes = word_sizes(word_starts(self._continues[ids], special), special)
        beyond: np.ndarray = sizes > wanted(lengths, options.max_predictions, options.mask_probability)[:, None]
        return beyond

    def own_tokens(self, batch: Batch) -> int:
        """Of a batch of this text, how many tokens are the text's own: neither [PAD], [CLS] nor [SEP]."""
        return int((~np.isin(batch.input_ids.numpy(), (self._pad, self._cls, self._sep))).sum())

    def batch(self, index: int) -> Batch:
        """Batch number `index`: examples index * B and following. Raises ValueError for an index below 0."""
        return self.share(index, 0, 1)

    def share(self, index: int, part: int, parts: int) -> Batch:
        """Part number `part` of `parts` equal ones of batch number `index`; the others are not made.

        Raises ValueError for an index below 0 and a batch that does not divide.
        """
        if index < 0:
            raise ValueError(f"batch index: expected 0 or more, found {index}")
        if self.options.batch_size % parts:
            raise ValueError(f"batch size: expected a multiple of {parts} parts, found {self.options.batch_size}")
        size, width, places = (
            self.options.batch_size // parts,
            self.options.sequence_length,
            self.options.max_predictions,
        )
        first = index * self.options.batch_size + part * size
        ids = np.full((size, width), self._pad, np.int64)
        length_a = np.empty(size, np.int64)
        length_b = np.empty(size, np.int64)
        is_random = np.empty(size, np.int64)
        draws = np.empty((size, width + 2 * places))
        for row in range(size):
            example = first + row
            generator = self._generator(example)
            is_random[row], (a, a_end), (b, b_end) = self._layout(self._order[example], generator)
            length_a[row], length_b[row] = a_end - a, b_end - b
            ids[row, 1 : 1 + a_end - a] = self._tokens[a:a_end]
            ids[row, 2 + a_end - a : 2 + a_end - a + b_end - b] = self._tokens[b:b_end]
            generator.random(out=draws[row])
        rows, place = np.arange(size), np.arange(width)
        middle, lengths = (length_a + 1)[:, None], length_a + length_b + 3
        ids[rows, 0] = self._cls
        ids[rows, length_a + 1] = ids[rows, lengths - 1] = self._sep
        attention = place < lengths[:, None]
        maskable = (place > 0) & (place != middle) & (place < (lengths - 1)[:, None])
        starts = word_starts(self._continues[ids], ~maskable)
        priority = draws[:, :width]
        chosen = choose_tokens(starts, maskable, lengths, priority, places, self.options.mask_probability)
        kind, replacement = draws[:, width : width + places], draws[:, width + places :]
        inputs, positions, labels = mask_tokens(ids, chosen, kind, replacement, self._mask, self._replaceable)
        return Batch(
            input_ids=torch.from_numpy(inputs),
            token_type_ids=torch.from_numpy((attention & (place > middle)).astype(np.int64)),
            attention_mask=torch.from_numpy(attention),
            masked_positions=torch.from_numpy(positions),
            masked_labels=torch.from_numpy(labels),
            next_sentence_labels=torch.from_numpy(is_random if self.pairs else np.full_like(is_random, IGNORED_LABEL)),
        )

    def _generator(self, example: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self._key, counter=[0, example, 0, 0]))

    def _layout(self, chunk: int, generator: np.random.Generator) -> tuple[bool, tuple[int, int], tuple[int, int]]:
        """(B is random, token range of A, token range of B) of an example made from a chunk."""
        short, length, begin, cut, coin, other, place = generator.random(_DRAWS).tolist()
        most = self.options.sequence_length - 3
        target = most
        first, last = int(self._chunks[chunk]), int(self._chunks[chunk + 1])
        if short < self.options.short_sequence_probability:
            target = 2 + int(length * (most - 1))
            if last - first > 2:
                first += int(begin * (last - first - 1))
                last = max(first + 2, self._run(first, last, target))
        count = last - first
        is_random = count == 1 or coin < self._random_share
        split = last if count == 1 else first + 1 + int(cut * (count - 1))
        a, a_end = int(self._sentences[first]), int(self._sentences[split])
        if is_random:
            own = int(np.searchsorted(self._documents, first, "right")) - 1
            document = int(other * (len(self._documents) - 2))
            document += document >= own
            first, end = int(self._documents[document]), int(self._documents[document + 1])
            split = first + int(place * (end - first))
            last = self._run(split, end, target - (a_end - a))
        b, b_end = int(self._sentences[split]), int(self._sentences[last])
        keep_a, keep_b = shares(a_end - a, b_end - b, most)
        a, a_end = _truncate(a, a_end, keep_a, generator)
        b, b_end = _truncate(b, b_end, keep_b, generator)
        return is_random, (a, a_end), (b, b_end)

    def _run(self, first: int, end: int, tokens: int) -> int:
        """End of the shortest run of sentences from `first` with `tokens` tokens: one at least, none past `end`."""
        offsets = self._sentences[first + 1 : end + 1]
        wanted = int(self._sentences[first]) + tokens
        return min(first + 1 + int(np.searchsorted(offsets, wanted, "left")), end)


def shares(length_a: int, length_b: int, most: int) -> tuple[int, int]:
    """Lengths of A and B after tokens are taken one by one from the longer (B if equal) until `most` remain."""
    if length_a + length_b <= most:
        return length_a, length_b
    if length_a <= most // 2:
        return length_a, most - length_a
    if length_b <= most // 2:
        return most - length_b, length_b
    return most - most // 2, most // 2


def _truncate(begin: int, end: int, keep: int, generator: np.random.Generator) -> tuple[int, int]:
    """`keep` tokens of a range. The surplus goes from both ends, every division equally likely.

    BERT tosses a coin for each token, which takes about half from either end: then the ends of long sentences are
    hardly ever seen (measured on sotu at length 128: seven times as many tokens unseen after 40 epochs).
    """
    surplus = end - begin - keep
    front = int(generator.integers(surplus + 1)) if surplus else 0
    return begin + front, begin + front + keep
