"""Layers on IPUs before anything is compiled: memory and FLOPs of each pipeline stage, balance, bubble, refusals.

What is exact: parameters, blocks, FLOPs, the pipeline's schedule. What is estimated, and on what it rests:
- metaInfo and padding of sparse layers: figures of popsparse's own planner for BERT's shapes
(placement_sizes.PADDING), the
nearest one
  where a shape is not among them. They move a little with batch, options and SDK.
- activations: tensors that a layer's backward pass needs, one copy each; the compiler may keep more or fewer.
- not counted: code, exchange buffers, working space of products, alignment. `HEADROOM` leaves room for them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Mapping, Sequence

from ipu_bert.sizes.placement_sizes import KIB, LayerPadding, ModelSizes, layer_of
from ipu_bert.sizes.shape import BertShape

TILES, TILE_BYTES = 1472, 624 * 1024
IPU_BYTES = TILES * TILE_BYTES
HEADROOM = 0.6  # share of an IPU that counted memory may fill before the report warns


@dataclass(frozen=True)
class StageMemory:
    """One pipeline stage of one replica; memory in bytes on the IPU, FLOPs forward and backward of one sequence."""

    name: str
    ipu: int
    layers: tuple[int, ...]
    flops: float
    weights: int
    gradients: int
    moments: int
    activations: int
    meta_info: int
    padding: int  # of nz, its accumulator and its moments; in none of the others

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.moments + self.activations + self.meta_info + self.padding


@dataclass(frozen=True)
class Placement:
    """A model over the IPUs of one replica, and the pipeline's figures."""

    stages: tuple[StageMemory, ...]
    padding: tuple[LayerPadding, ...]
    ipus: int
    balance: float  # mean work of an IPU over that of the busiest; 1: even
    bubble: float  # share of a step that an IPU waits for the pipeline to fill and empty
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def ipu_memory(self, ipu: int) -> int:
        """Bytes on one IPU."""
        return sum(stage.memory for stage in self.stages if stage.ipu == ipu)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self),
            "stages": [{**asdict(stage), "memory": stage.memory} for stage in self.stages],
            "ipu_memory": [self.ipu_memory(ipu) for ipu in range(self.ipus)],
            "memory_of_an_ipu": IPU_BYTES,
        }


def minimum_accumulation(layers_per_ipu: Sequence[int]) -> int:
    """Fewest micro-batches of a step: PopART wants one for each stage of the pipeline, forward and back."""
    return 2 * len(stage_layers(layers_per_ipu)) - 1


def stage_layers(layers_per_ipu: Sequence[int]) -> list[tuple[str, int, tuple[int, ...]]]:
    """(name, IPU, encoder layers) of each stage. Embeddings and heads share a weight, so both are on IPU 0."""
    if len(layers_per_ipu) == 1:
        return [("all", 0, tuple(range(layers_per_ipu[0])))]
    found, first = [], 0
    for ipu, count in enumerate(layers_per_ipu):
        if ipu == 0 or count:
            found.append(("embeddings" if ipu == 0 else f"encoder{ipu}", ipu, tuple(range(first, first + count))))
        first += count
    return [*found, ("heads", 0, ())]


def place(
    shape: BertShape,
    sparsity: Mapping[str, float],
    block_size: int,
    *,
    layers_per_ipu: Sequence[int],
    replicas: int,
    gradient_accumulation: int,
    micro_batch_size: int,
    batch_size: int,
    sequence_length: int,
    max_predictions: int,
    half: bool = True,
    recompute: bool = True,
    optimizer_off_chip: bool = True,
    optimizer_sharded: bool = False,
    vocabulary_parts: int = 1,
) -> Placement:
    """Where everything goes. `sparsity` by weight name; a weight without one is dense.

    Nothing is refused here: what cannot work is in `problems`, each with what to change.
    """
    sizes = ModelSizes(shape, sparsity, block_size, sequence_length, micro_batch_size, max_predictions, half, recompute)
    on_chip = 0 if optimizer_off_chip else 8  # both moments, float32
    moment_bytes = on_chip / (replicas if optimizer_sharded else 1)
    plan = stage_layers(layers_per_ipu)
    padding = tuple(sizes.layer_padding(weight) for weight in sizes.weights if sizes.is_sparse(weight))
    by_name = {layer.name: layer for layer in padding}
    stages = []
    for number, (name, ipu, layers) in enumerate(plan):
        embeddings, heads = number == 0, number == len(plan) - 1
        in_flight = 1 if len(plan) == 1 else 2 * (len(plan) - 1 - number) + 1
        parameters = sum(sizes.layer_parameters(i) for i in layers)
        parameters += sizes.embedding_parameters if embeddings else 0
        parameters += sizes.head_parameters if heads else 0
        mine = [by_name[w.name] for w in sizes.weights if layer_of(w) in layers and w.name in by_name]
        empty = sum(round(layer.non_zeros * (layer.factor - 1.0)) for layer in mine)
        value = 2 if half else 4
        stages.append(
            StageMemory(
                name=name,
                ipu=ipu,
                layers=layers,
                flops=sum(sizes.layer_flops(i) for i in layers) + (sizes.head_flops if heads else 0.0),
                weights=parameters * value,
                gradients=parameters * value,
                moments=round(parameters * moment_bytes),
                activations=sizes.activations(layers, embeddings, heads, in_flight),
                meta_info=sum(layer.meta_info for layer in mine),
                padding=round(empty * (2 * value + moment_bytes)),
            )
        )
    ipus = len(layers_per_ipu)
    work = [sum(s.flops for s in stages if s.ipu == ipu) for ipu in range(ipus)]
    waiting = 2 * (len(stages) - 1)
    placement = Placement(
        stages=tuple(stages),
        padding=padding,
        ipus=ipus,
        balance=sum(work) / ipus / max(work) if max(work) else 0.0,
        bubble=waiting / (gradient_accumulation + waiting),
        problems=(),
        warnings=(),
    )
    problems = [
        *_count_problems(shape, layers_per_ipu, replicas, gradient_accumulation, micro_batch_size, batch_size),
        *_memory_problems(placement),
    ]
    if vocabulary_parts > 1 and shape.vocab_size % vocabulary_parts:
        problems.append(
            f"ipu.vocabulary_parts: expected a divisor of the vocabulary's {shape.vocab_size}, found {vocabulary_parts}"
        )
    warnings = _warnings(placement, micro_batch_size * sequence_length, replicas)
    return Placement(**{**vars(placement), "problems": tuple(problems), "warnings": tuple(warnings)})


def _count_problems(
    shape: BertShape, layers_per_ipu: Sequence[int], replicas: int, accumulation: int, micro: int, batch: int
) -> list[str]:
    problems = []
    if sum(layers_per_ipu) != shape.layers or min(layers_per_ipu) < 0:
        problems.append(
            f"ipu.layers_per_ipu: expected counts that add up to the model's {shape.layers} layers, found "
            f"{list(layers_per_ipu)}, which make {sum(layers_per_ipu)}"
        )
    if replicas * accumulation * micro != batch:
        problems.append(
            "train.batch_size: expected ipu.replicas x ipu.gradient_accumulation x train.micro_batch_size = "
            f"{replicas} x "
            f"{accumulation} x {micro} = {replicas * accumulation * micro}, found {batch}: change one of the four"
        )
    least = minimum_accumulation(layers_per_ipu)
    if accumulation < least:
        problems.append(
            f"ipu.gradient_accumulation: expected at least {least}, the stages of this pipeline forward and back, "
            "found "
            f"{accumulation}: use a smaller train.micro_batch_size, fewer replicas or fewer IPUs a replica"
        )
    return problems


def _memory_problems(placement: Placement) -> list[str]:
    problems = []
    for ipu in range(placement.ipus):
        used = placement.ipu_memory(ipu)
        if used > IPU_BYTES:
            largest = max((s for s in placement.stages if s.ipu == ipu), key=lambda s: s.memory)
            parts = {key: getattr(largest, key) for key in _ADVICE}
            what = max(parts, key=lambda key: parts[key])
            problems.append(
                f"IPU {ipu}: expected at most {_mib(IPU_BYTES)}, found an estimate of {_mib(used)}, most of it "
                f"{what} of stage "
                f"{largest.name}: {_ADVICE[what]}"
            )
    return problems


_ADVICE = {
    "weights": "put fewer layers on it (ipu.layers_per_ipu)",
    "gradients": "put fewer layers on it (ipu.layers_per_ipu)",
    "moments": "set ipu.optimizer_off_chip or ipu.optimizer_sharded, or put fewer layers on it",
    "activations": "use a smaller train.micro_batch_size, or set ipu.recompute",
    "padding": "use smaller blocks (sparsity.block_size) or a higher density",
}


def _warnings(placement: Placement, rows: int, replicas: int) -> list[str]:
    warnings = []
    for ipu in range(placement.ipus):
        share = placement.ipu_memory(ipu) / IPU_BYTES
        if HEADROOM < share <= 1.0:
            warnings.append(f"IPU {ipu}: {share:.0%} of its memory is counted; code and working space may not fit")
    if rows % 16 and placement.padding:
        warnings.append(f"{rows} rows a micro-batch: a multiple of 16 gets popsparse's fast weight gradient")
    total = placement.ipus * replicas
    if total & (total - 1):
        warnings.append(f"{total} IPUs: systems give a power of two, the rest would be idle")
    if placement.bubble > 0.3:
        waiting = f"{placement.bubble:.0%}"
        warnings.append(f"the pipeline is empty or filling for {waiting} of a step: use more, smaller micro-batches")
    return warnings


def render(placement: Placement) -> str:
    """The placement as text for a reader."""
    total = sum(stage.flops for stage in placement.stages) or 1.0
    sizes = ("weights", "gradients", "moments", "activations", "meta_info", "padding", "memory")
    header = ["stage", "IPU", "layers", "FLOPs", *sizes]
    rows = [header]
    for s in placement.stages:
        layers = f"{s.layers[0]}-{s.layers[-1]}" if s.layers else "-"
        rows.append([s.name, str(s.ipu), layers, f"{s.flops / total:.1%}", *(_mib(getattr(s, key)) for key in sizes)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["placement   of one replica; MiB; meta_info, padding and activations are estimates (docs/ipu.md)"]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    used = ", ".join(f"IPU {i} {placement.ipu_memory(i) / IPU_BYTES:.0%}" for i in range(placement.ipus))
    lines.append(f"memory      {used} of {_mib(IPU_BYTES)} ({TILES:,} tiles x 624 KiB); no code, no working space")
    lines.append(
        f"pipeline    {len(placement.stages)} stages; balance {placement.balance:.0%} (mean work of an IPU over the "
        "busiest); "
        f"bubble {placement.bubble:.0%}"
    )
    seen = set()
    for layer in placement.padding:
        kind = layer.name.split("layer.")[1].partition(".")[2]
        if kind not in seen:
            seen.add(kind)
            source = "nearest figure of popsparse's planner" if layer.estimated else "popsparse's planner"
            lines.append(
                f"padding     {kind}: nz x{layer.factor:.2f}, metaInfo {layer.meta_info / KIB:.0f} KiB a layer "
                f"({source})"
            )
    return "\n".join([*lines, *(f"warning     {text}" for text in placement.warnings)])


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
