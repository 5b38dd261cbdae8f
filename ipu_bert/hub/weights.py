"""Weights to and from Hugging Face's names, with the fused query-key-value.

This is the only place where a sparse weight is made dense, and it is never on the path of a training step.
"""

from __future__ import annotations

from typing import Mapping, Sequence

import torch
from torch import Tensor, nn

from ipu_bert.model import BertForPreTraining, sparse_layers
from sparse_ops.linear import BlockSparseLinear, as_blocks

QKV_PARTS = ("query", "key", "value")
WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"

# transformers' state dict repeats what it ties; its files leave these out, as ours do.
TIED = {
    "cls.predictions.decoder.weight": WORD_EMBEDDINGS,
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

# Constants that older transformers stored among the weights.
NOT_WEIGHTS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


def to_hugging_face(model: BertForPreTraining) -> dict[str, Tensor]:
    """State dict of transformers' BertForPreTraining: that of `dense_state`, and tied entries, shared."""
    state = dense_state(model)
    state.update({tied: state[name] for tied, name in TIED.items()})
    return state


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights by transformers' names: qkv split in three, sparse weights dense, each tensor once.

    Tensors are copies on the CPU in the model's dtype; what lies outside a pattern is 0.
    """
    state: dict[str, Tensor] = {}
    for name, weight in own_weights(model).items():
        dense = weight.to_dense() if isinstance(weight, BlockSparseLinear) else weight
        dense = dense.detach().to("cpu", copy=True).contiguous()
        names = _their_names(name)
        for part, tensor in zip(names, dense.chunk(len(names))):
            state[part] = tensor.clone() if len(names) > 1 else tensor
    return state


@torch.no_grad()
def from_hugging_face(
    model: BertForPreTraining,
    state: Mapping[str, Tensor],
    outside: str = "refuse",
    optional: Sequence[str] = (),
) -> None:
    """Take every weight of `model` from transformers' names, in place; patterns stay, blocks are read at them.

    `from_hugging_face(model, to_hugging_face(model))` changes no bit. A state dict of the encoder alone (BertModel,
    names without `bert.`) is taken too if `optional` allows its heads to be missing. outside: what to do with non-zero
    weights outside a sparse layer's pattern, "refuse" or "drop". optional: name prefixes that may be missing,
    `("cls.",)` for an encoder without heads.
    Raises ValueError for names missing or left over, another shape, an untied decoder, or a non-zero outside the
    pattern; then nothing has changed.
    """
    if outside not in ("refuse", "drop"):
        raise ValueError(f"outside: expected 'refuse' or 'drop', found {outside!r}")
    if not any(name.startswith(("bert.", "cls.")) for name in state):
        state = {f"bert.{name}": tensor for name, tensor in state.items()}
    plan = []
    missing: list[str] = []
    used: set[str] = {*NOT_WEIGHTS, *TIED}
    for name, target in own_weights(model).items():
        names = _their_names(name)
        used.update(names)
        absent = [part for part in names if part not in state]
        if absent:
            missing += [part for part in absent if not part.startswith(tuple(optional))]
            continue
        source = torch.cat([state[part] for part in names]) if len(names) > 1 else state[names[0]]
        _check(name, source, target, outside)
        plan.append((source, target))
    left = sorted(set(state) - used)
    if missing or left:
        raise ValueError(f"Hugging Face weights: missing {missing[:5] or 'none'}, not known {left[:5] or 'none'}")
    for tied, name in TIED.items():
        if tied in state and name in state and not torch.equal(state[tied], state[name]):
            raise ValueError(f"Hugging Face weights: expected {tied} to be tied to {name}, found another tensor")
    for source, target in plan:
        if isinstance(target, BlockSparseLinear):
            target.from_dense(source.to(target.values.device, target.values.dtype))
        else:
            target.copy_(source)


def check_blocks(model: nn.Module, option: str, expected: str) -> None:
    """Raises ValueError for a model without a block, of which there is no sparse form; expected: what was, in words."""
    if not sparse_layers(model):
        raise ValueError(f"{option}: expected {expected}; found dense ones")


def own_weights(model: nn.Module) -> dict[str, Tensor | BlockSparseLinear]:
    """Each parameter by the name it would have if dense; a sparse layer stands for its own weight."""
    found: dict[str, Tensor | BlockSparseLinear] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, BlockSparseLinear) and name == "values":
                found[f"{prefix}.weight"] = module
            else:
                found[f"{prefix}.{name}"] = parameter
    return found


def _their_names(name: str) -> list[str]:
    return [name.replace(".qkv.", f".{part}.") for part in QKV_PARTS] if ".qkv." in name else [name]


def _check(name: str, source: Tensor, target: Tensor | BlockSparseLinear, outside: str) -> None:
    if isinstance(target, BlockSparseLinear):
        expected: tuple[int, ...] = (target.out_features, target.in_features)
    else:
        expected = tuple(target.shape)
    if tuple(source.shape) != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, found {list(source.shape)}")
    if isinstance(target, BlockSparseLinear) and outside == "refuse":
        rows, cols = (at.long().to(source.device) for at in (target.rows, target.cols))
        kept = as_blocks(source, target.block_size)[rows, cols]
        lost = int(source.count_nonzero()) - int(kept.count_nonzero())
        if lost:
            raise ValueError(f"{name}: expected zeros outside the {target.rows.numel()} blocks, found {lost} others")
