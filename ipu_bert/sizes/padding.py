"""What popsparse plans for a sparse weight on an IPU: metaInfo, padding and cycles, by figures of its own planner."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Mapping, NamedTuple, Sequence

from ipu_bert.settings import Config, IpuSettings
from ipu_bert.sizes.weights import EncoderWeight

KIB = 1024
NEIGHBOURS = 4


class Product(NamedTuple):
    """All that the figures tell products apart by; sizes in elements. data_type: "half" or "float"."""

    data_type: str
    block_size: int
    out_features: int
    in_features: int
    blocks: int
    rows: int

    def distance(self, other: Product) -> float:
        """Between products of one type and block size: of grid, number of blocks and rows, each as a logarithm."""
        return math.sqrt(sum(math.log(a / b) ** 2 for a, b in zip(self[2:], other[2:])))

    def __str__(self) -> str:
        blocks = f"{self.blocks} blocks of {self.block_size}x{self.block_size}"
        return f"{self.out_features}x{self.in_features}, {blocks}, {self.rows:,} rows, {self.data_type}"


class Figure(NamedTuple):
    """Elements that the planner asks for, of nz, padding included, and of metaInfo, 16 bits each; and cycles that it
    expects, forward and both gradients.
    """

    nz: float
    meta_info: float
    cycles: float


@dataclass(frozen=True)
class LayerPadding:
    """What popsparse needs for a sparse weight beside its non-zeros; metaInfo in bytes.

    source: empty where both are the planner's figures for this very product under these options.
    """

    name: str
    non_zeros: int
    factor: float  # elements of nz per non-zero
    meta_info: int
    source: str

    @property
    def empty(self) -> int:
        """Elements of nz that are padding."""
        return round(self.non_zeros * (self.factor - 1.0))


def layer_padding(weight: EncoderWeight, config: Config) -> LayerPadding:
    """By the planner's figure for the product that the config makes of this weight, or by the nearest ones."""
    product = product_of(weight, config)
    figure, nearest = figure_of(product)
    sources = [f"interpolated; nearest: {nearest}"] if nearest else []
    if not _options_of_the_figures(config.ipu, product):
        sources.append("figures are for other options")
    return LayerPadding(
        weight.name, weight.elements, figure.nz / weight.elements, 2 * round(figure.meta_info), "; ".join(sources)
    )


def product_of(weight: EncoderWeight, config: Config) -> Product:
    """The product that a config makes of a sparse weight."""
    assert config.train.micro_batch_size is not None
    data_type = "half" if config.precision.half else "float"
    rows = config.train.micro_batch_size * config.data.sequence_length
    return Product(data_type, weight.block_size, *weight.shape, weight.blocks, rows)


@lru_cache(maxsize=4096)
def figure_of(product: Product) -> tuple[Figure, Product | None]:
    """The planner's figure for this very product, or one interpolated from others, and then the nearest of them."""
    known = figures()[product[:2]]
    if product in known:
        return known[product], None
    return interpolated(product, known), min(known, key=product.distance)


def interpolated(product: Product, known: Mapping[Product, Figure]) -> Figure:
    """From figures of its type and block size: the weighted geometric mean of the nearest, by inverse squared distance.

    nz goes by its ratio to the blocks. The product itself may not be among `known`.
    """
    nearest = sorted(known, key=product.distance)[:NEIGHBOURS]
    weights = [product.distance(other) ** -2 for other in nearest]

    def mean(values: Sequence[float]) -> float:
        return math.exp(sum(w * math.log(v) for v, w in zip(values, weights)) / sum(weights))

    found = [known[other] for other in nearest]
    ratio = mean([figure.nz / other.blocks for figure, other in zip(found, nearest)])
    return Figure(ratio * product.blocks, mean([f.meta_info for f in found]), mean([f.cycles for f in found]))


def _options_of_the_figures(ipu: IpuSettings, product: Product) -> bool:
    """Partials of the figures are half for half, but 1x1 blocks have float ones in any case."""
    same_partials = ipu.half_partials or product.data_type == "float" or product.block_size == 1
    return (ipu.sparse_available_memory, ipu.sparse_oversize) == (0.6, 0.1) and same_partials


@lru_cache(maxsize=1)
def figures() -> dict[tuple[str, int], dict[Product, Figure]]:
    """The planner's figures (padding.csv, which says where they are from), by data type and block size."""
    found: dict[tuple[str, int], dict[Product, Figure]] = defaultdict(dict)
    with Path(__file__).with_name("padding.csv").open(encoding="ascii", newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            data_type = row.pop("data_type")
            numbers = {name: int(value) for name, value in row.items()}
            figure = Figure(*(numbers.pop(name) for name in Figure._fields))
            product = Product(data_type, **numbers)
            found[product[:2]][product] = figure
    return dict(found)
