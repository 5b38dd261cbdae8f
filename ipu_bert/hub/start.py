"""A model's start from another one's weights, dense or sparse, in whatever pattern this one has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Union

import torch
from torch import Tensor, nn

from ipu_bert.hub.weights import WORD_EMBEDDINGS, own_weights
from ipu_bert.model import BertForPreTraining
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.pattern import named_generator

Weights = Mapping[str, Union[Tensor, BlockSparseLinear]]
_HEADS = {  # what may be missing
    "bert.pooler.": "the pooler",
    "cls.predictions.": "the masked-LM head",
    "cls.seq_relationship.": "the next-sentence head",
}


@dataclass(frozen=True)
class Taken:
    """What became of another model's weights.

    anew: heads that it does not have, which keep their random start. cut: rows of its word embedding that no id stands
    for. kept: share in [0, 1] of the L1 mass of dense weights that the blocks of sparse ones have taken, None where
    nothing was left out.
    """

    anew: tuple[str, ...]
    cut: int
    kept: float | None


@torch.no_grad()
def take_weights(model: BertForPreTraining, source: Weights, pattern: str, seed: int) -> Taken:
    """Put another model's weights into `model`, in place.

    A sparse weight takes a sparse one of its block size and number of blocks as it is, with its positions. From any
    other it takes the blocks at "random" positions, those it has, or those of largest "magnitude", by L1 norm in each
    segment; zero blocks among these are drawn at random from `seed`. Where the source has rows of the word embedding
    after the model's last id, they are left out.
    Raises ValueError that names a weight which is missing, or has another shape.
    """
    rows = model.shape.vocab_size
    source, cut = _cut(source, rows)
    missing = []
    mass = kept = 0.0
    for name, target in own_weights(model).items():
        found = source.get(name)
        if found is None:
            missing.append(name)
        elif not isinstance(target, BlockSparseLinear):
            dense = _dense(found)
            _check(name, dense, tuple(target.shape))
            target.copy_(dense)
        elif isinstance(found, BlockSparseLinear) and _same_slots(found, target):
            _place(target, found)
        else:
            dense = _dense(found)
            _check(name, dense, (target.out_features, target.in_features))
            if pattern == "magnitude":
                _place(target, _largest(dense, target, named_generator(seed, f"start/{name}")))
            target.from_dense(dense)
            mass, kept = mass + float(dense.abs().sum()), kept + float(target.values.abs().sum())
    needed = [name for name in missing if not name.startswith(tuple(_HEADS))]
    if needed:
        raise ValueError(f"expected a whole BERT, found no {', '.join(needed[:3])}")
    anew = tuple(head for prefix, head in _HEADS.items() if any(name.startswith(prefix) for name in missing))
    return Taken(anew, cut, kept / mass if mass else None)


def _cut(source: Weights, rows: int) -> tuple[Weights, int]:
    words = source.get(WORD_EMBEDDINGS)
    if not isinstance(words, Tensor) or words.dim() != 2:
        raise ValueError(f"expected a whole BERT, found no {WORD_EMBEDDINGS}")
    if len(words) < rows:
        raise ValueError(f"expected a row of the word embedding for each of the {rows} ids, found {len(words)}")
    named = ((name, source.get(name)) for name in (WORD_EMBEDDINGS, "cls.predictions.bias"))
    return {**source, **{name: t[:rows] for name, t in named if isinstance(t, Tensor)}}, len(words) - rows


def _dense(weight: Tensor | BlockSparseLinear) -> Tensor:
    return weight.to_dense() if isinstance(weight, BlockSparseLinear) else weight


def _check(name: str, found: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(found.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, found {list(found.shape)}")


def _same_slots(one: BlockSparseLinear, other: BlockSparseLinear) -> bool:
    """Whether a weight can be copied slot by slot."""
    same_shape = (one.out_features, one.in_features, one.values.shape) == (
        other.out_features, other.in_features, other.values.shape,
    )  # fmt: skip
    return same_shape and all(
        torch.equal(x.bincount(minlength=one.segments), y.bincount(minlength=one.segments))
        for x, y in [(one.pattern.slot_segments(), other.pattern.slot_segments())]
    )


def _place(target: BlockSparseLinear, source: BlockSparseLinear) -> None:
    """Values and positions of another layer of as many blocks; the bias stays."""
    mine = target.state_dict()
    target.load_state_dict({**mine, "values": source.values, "rows": source.rows, "cols": source.cols})


def _largest(dense: Tensor, target: BlockSparseLinear, generator: torch.Generator) -> BlockSparseLinear:
    """A layer at the largest blocks of a dense weight, as many as the target has; among zero blocks at random."""
    scores = dense.double().abs()
    smallest = scores[scores > 0].min() if bool((scores > 0).any()) else scores.new_ones(())
    # All that is drawn for a block together stays below the smallest weight that is not zero.
    drawn = torch.rand(scores.shape, generator=generator, dtype=torch.float64) * smallest / (2 * target.block_size**2)
    scores = torch.where(scores > 0, scores, drawn)
    linear = nn.Linear(target.in_features, target.out_features, bias=False, dtype=torch.float64)
    linear.weight.copy_(scores)
    sparsity = 1.0 - target.pattern.density
    return BlockSparseLinear.from_linear(linear, target.block_size, sparsity, "magnitude", target.segments)
