"""How a model is cut into pipeline stages: the same answer for the dry run and for the engine."""

from __future__ import annotations

from typing import NamedTuple, Sequence

from ipu_bert.settings import IpuSettings


class Stage(NamedTuple):
    """A pipeline stage: an IPU and what runs on it; `layers` are numbers of encoder layers."""

    name: str
    ipu: int
    layers: tuple[int, ...]
    embeddings: bool
    heads: bool


def pipeline_stages(layers_per_ipu: Sequence[int]) -> list[Stage]:
    """The stages in the order of the forward pass. Embeddings and heads share a weight, so both are on IPU 0."""
    if len(layers_per_ipu) == 1:
        return [Stage("all", 0, tuple(range(layers_per_ipu[0])), embeddings=True, heads=True)]
    found, first = [], 0
    for ipu, count in enumerate(layers_per_ipu):
        if ipu == 0 or count:
            name = "embeddings" if ipu == 0 else f"encoder{ipu}"
            found.append(Stage(name, ipu, tuple(range(first, first + count)), embeddings=ipu == 0, heads=False))
        first += count
    return [*found, Stage("heads", 0, (), embeddings=False, heads=True)]


def minimum_accumulation(layers_per_ipu: Sequence[int]) -> int:
    """Fewest micro-batches of a step: PopART wants one for each stage of the pipeline, forward and back."""
    return 2 * len(pipeline_stages(layers_per_ipu)) - 1


def written_layers(ipu: IpuSettings) -> list[int]:
    """The layers of each IPU of a checked config, where `auto` has become numbers."""
    assert not isinstance(ipu.layers_per_ipu, str)
    return ipu.layers_per_ipu
