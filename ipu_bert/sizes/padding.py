"""What popsparse adds to a sparse weight on an IPU: metaInfo and padding, by figures of its own planner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ipu_bert.sizes.weights import EncoderWeight

KIB = 1024


class Padding(NamedTuple):
    """popsparse's plan for one product: half precision, 4,096 rows, oversize 0.1."""

    out_features: int
    in_features: int
    density: float
    block_size: int
    meta_info_bytes: int
    factor: float  # elements of nz per non-zero


# From a run of the public planner of poplibs 3.4 on a host, with assumed figures of a Mk2 IPU. The last three: 1,024
# rows, and metaInfo at oversize 0.3; the factor of 1x1 was not recorded and is taken as 1 + oversize.
PADDING = tuple(
    Padding(out, inner, density, block, kib * KIB, factor)
    for out, inner, density, block, kib, factor in (
        (768, 768, 0.05, 16, 189, 11.6),
        (768, 768, 0.05, 8, 273, 2.92),
        (768, 768, 0.05, 4, 462, 1.46),
        (768, 768, 0.10, 16, 221, 5.82),
        (768, 768, 0.10, 8, 352, 1.53),
        (768, 768, 0.10, 4, 399, 1.09),
        (768, 768, 0.20, 16, 221, 2.92),
        (768, 768, 0.20, 8, 308, 1.53),
        (768, 768, 0.20, 4, 664, 1.37),
        (768, 768, 0.50, 16, 252, 1.17),
        (768, 768, 0.50, 8, 410, 1.17),
        (768, 768, 0.50, 4, 903, 1.09),
        (3072, 768, 0.10, 16, 305, 1.46),
        (3072, 768, 0.10, 8, 664, 1.17),
        (768, 3072, 0.10, 16, 539, 1.53),
        (768, 3072, 0.10, 8, 416, 1.17),
        (2304, 768, 0.10, 16, 305, 1.94),
        (2304, 768, 0.10, 8, 550, 1.02),
        (1024, 1024, 0.10, 16, 231, 3.43),
        (4096, 1024, 0.10, 16, 319, 1.72),
        (1024, 1024, 0.10, 1, 2904, 1.3),
    )
)


@dataclass(frozen=True)
class LayerPadding:
    """What popsparse needs for a sparse weight beside its non-zeros; metaInfo in bytes."""

    name: str
    non_zeros: int
    factor: float
    meta_info: int
    estimated: bool  # False: the planner's figure for this very product

    @property
    def empty(self) -> int:
        """Elements of nz that are padding."""
        return round(self.non_zeros * (self.factor - 1.0))


def layer_padding(weight: EncoderWeight) -> LayerPadding:
    """By the planner's figure for this product, or the nearest: of the same block size where there is one, then of the
    nearest number of non-zeros, then of the nearest shape.
    """

    def distance(p: Padding) -> tuple[float, float, float]:
        known = p.out_features * p.in_features * p.density
        shape = abs(math.log(weight.shape[0] / weight.shape[1]) - math.log(p.out_features / p.in_features))
        return abs(math.log(p.block_size / weight.block_size)), abs(math.log(known / weight.elements)), shape

    nearest = min(PADDING, key=distance)
    same = (nearest.out_features, nearest.in_features, nearest.block_size) == (*weight.shape, weight.block_size)
    exact = same and abs(nearest.density - weight.density) < 0.005
    return LayerPadding(weight.name, weight.elements, nearest.factor, nearest.meta_info_bytes, not exact)
