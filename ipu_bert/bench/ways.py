"""Which ways of the sparse products a step takes: those chosen on this machine (sparse_ops.tune), else the default."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ipu_bert.bench.models import Implementation, encoder_of, multiplies_natively
from ipu_bert.sizes.shape import BertShape
from sparse_ops import native
from sparse_ops.tune import works
from sparse_ops.variants import DEFAULT, PRODUCTS


@dataclass(frozen=True)
class Way:
    """How a product, of variants.PRODUCTS, of a weight, OUTxIN, is carried out. measured: chosen by its time here."""

    product: str
    weight: str
    name: str
    measured: bool


def ways(choice: Implementation, shape: BertShape, sparsity: float, tokens: int) -> tuple[Way, ...]:
    """Of every product of every shape of sparse weight, by product; none where no native kernel multiplies."""
    if not (choice.block and multiplies_natively(choice)):
        return ()
    found, choices = set(), native.choices()
    for weight in encoder_of(choice, shape, sparsity):
        out_by_in, dtype = "{}x{}".format(*weight.shape), getattr(torch, choice.compute)
        for work in works(weight.shape, weight.block_size, weight.blocks, tokens, dtype):
            number = choices.number(work)
            name = choices.names(work)[choices.default(work) if number == DEFAULT else number]
            found.add(Way(work.product, out_by_in, name, measured=number != DEFAULT))
    return tuple(sorted(found, key=lambda way: (PRODUCTS.index(way.product), way.name, way.weight)))


def render(found: tuple[Way, ...]) -> str:
    """For a reader: a product's way, or its ways with the weights of each."""
    texts = []
    for product in PRODUCTS:
        weights: dict[str, list[str]] = {}
        for way in found:
            if way.product == product:
                weights.setdefault(way.name, []).append(way.weight)
        of = {name: f" ({', '.join(those)})" if len(weights) > 1 else "" for name, those in weights.items()}
        texts.append(f"{product} " + " and ".join(f"`{name}`{those}" for name, those in of.items()))
    return f"{'; '.join(texts)}; {sum(way.measured for way in found)} of {len(found)} chosen by measurement"
