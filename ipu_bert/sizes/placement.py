"""Layers on IPUs before anything is compiled: memory and FLOPs of each pipeline stage, balance, bubble, refusals.

What is exact: parameters, blocks, FLOPs, the pipeline's schedule. What is estimated, and on what it rests:

- metaInfo and padding of sparse layers: figures of popsparse's own planner (padding.py), interpolated where a product
  is not among them, and the report says so.
- cycles: cycles.py.
- activations: tensors that a layer's backward pass needs, one copy each; the compiler may keep more or fewer.
- not counted: code, exchange buffers, working space of products, alignment. `HEADROOM` leaves room for them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Mapping, Sequence

from ipu_bert.settings import Config
from ipu_bert.sizes.cycles import TILES, head_cycles, layer_cycles
from ipu_bert.sizes.flops import attention_flops, head_flops, linear_flops
from ipu_bert.sizes.footprint import embedding_parameters, encoder_parameters, head_parameters
from ipu_bert.sizes.padding import KIB, LayerPadding, layer_padding
from ipu_bert.sizes.shape import BertShape, bert_shape
from ipu_bert.sizes.stages import Stage, minimum_accumulation, pipeline_stages, written_layers
from ipu_bert.sizes.weights import EncoderWeight, encoder_weights

TILE_BYTES = 624 * 1024
IPU_BYTES = TILES * TILE_BYTES
MOMENT_BYTES = 8  # both of a parameter, in float32
HEADROOM = 0.6  # share of an IPU that counted memory may fill before the report warns


@dataclass(frozen=True)
class StageMemory:
    """One pipeline stage of one replica; memory in bytes on the IPU, FLOPs forward and backward of one sequence, cycles
    of one micro-batch.
    """

    name: str
    ipu: int
    layers: tuple[int, ...]
    flops: float
    cycles: float
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

    def ipu_cycles(self, ipu: int) -> float:
        """Cycles of one IPU for a micro-batch."""
        return sum(stage.cycles for stage in self.stages if stage.ipu == ipu)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self),
            "stages": [{**asdict(stage), "memory": stage.memory} for stage in self.stages],
            "ipu_memory": [self.ipu_memory(ipu) for ipu in range(self.ipus)],
            "ipu_cycles": [self.ipu_cycles(ipu) for ipu in range(self.ipus)],
            "memory_of_an_ipu": IPU_BYTES,
        }


def place(config: Config, vocab_size: int) -> Placement:
    """Where everything of a checked config goes.

    Nothing is refused here: what cannot work is in `problems`, each with what to change.
    """
    shape, ipu = bert_shape(config.model, vocab_size), config.ipu
    weights = encoder_weights(config.model, config.sparsity)
    layers = written_layers(ipu)
    padding = {weight.name: layer_padding(weight, config) for weight in weights if weight.is_sparse}
    plan = pipeline_stages(layers)
    stages = tuple(
        _stage_memory(
            config, shape, stage, [w for w in weights if w.layer in stage.layers], padding, behind=len(plan) - 1 - i
        )
        for i, stage in enumerate(plan)
    )
    work = [sum(s.flops for s in stages if s.ipu == i) for i in range(len(layers))]
    waiting = 2 * (len(stages) - 1)
    placement = Placement(
        stages=stages,
        padding=tuple(padding.values()),
        ipus=len(work),
        balance=sum(work) / len(work) / max(work) if max(work) else 0.0,
        bubble=waiting / (ipu.gradient_accumulation + waiting),
        problems=(),
        warnings=(),
    )
    problems = (*_setting_problems(config, vocab_size), *_memory_problems(placement))
    return replace(placement, problems=problems, warnings=tuple(_warnings(placement, config)))


def _stage_memory(
    config: Config,
    shape: BertShape,
    stage: Stage,
    weights: Sequence[EncoderWeight],
    padding: Mapping[str, LayerPadding],
    behind: int,
) -> StageMemory:
    """What a stage with these weights holds; padding: of every sparse weight; behind: how many stages come after it."""
    ipu, length, hidden = config.ipu, config.data.sequence_length, shape.hidden_size
    value = value_bytes(config)
    moment_bytes = 0.0 if ipu.optimizer_off_chip else MOMENT_BYTES / (ipu.replicas if ipu.optimizer_sharded else 1)
    parameters = encoder_parameters(weights, hidden, len(stage.layers))
    parameters += embedding_parameters(shape) if stage.embeddings else 0
    parameters += head_parameters(shape) if stage.heads else 0
    # Recomputation is not counted: it is the same share everywhere.
    flops = linear_flops(sum(w.elements for w in weights), length) + len(stage.layers) * attention_flops(hidden, length)
    own = [padding[weight.name] for weight in weights if weight.is_sparse]
    cycles = sum(layer_cycles(config, shape, [w for w in weights if w.layer == layer]) for layer in stage.layers)
    return StageMemory(
        name=stage.name,
        ipu=stage.ipu,
        layers=stage.layers,
        flops=flops + (head_flops(shape, config.data.max_predictions) if stage.heads else 0.0),
        cycles=cycles + (head_cycles(config, shape) if stage.heads else 0.0),
        weights=parameters * value,
        gradients=parameters * value,
        moments=round(parameters * moment_bytes),
        activations=_activations(config, shape, stage, in_flight=2 * behind + 1),
        meta_info=sum(layer.meta_info for layer in own),
        padding=round(sum(layer.empty for layer in own) * (2 * value + moment_bytes)),
    )


def value_bytes(config: Config) -> int:
    """Of a weight, a gradient or an activation."""
    return 2 if config.precision.half else 4


def _activations(config: Config, shape: BertShape, stage: Stage, in_flight: int) -> int:
    """Bytes kept for `in_flight` micro-batches, and once what recomputing or finishing one of them needs."""
    assert config.train.micro_batch_size is not None
    micro, length, value = config.train.micro_batch_size, config.data.sequence_length, value_bytes(config)
    hidden, rows = shape.hidden_size, micro * length
    one_input = rows * hidden * value
    # Queries, keys, values, context, two projections, two LayerNorms; feed-forward before and after GELU; scores and
    # probabilities.
    attention = 2 * micro * shape.heads * length**2
    inside = (rows * (8 * hidden + 2 * shape.intermediate_size) + attention) * value
    if config.ipu.recompute:
        kept = len(stage.layers) * one_input * in_flight + (inside if stage.layers else 0)
    else:
        kept = len(stage.layers) * inside * in_flight
    if stage.embeddings:
        kept += one_input * in_flight
    if stage.heads:
        positions = micro * config.data.max_predictions
        # Logits, and in float32 their copy and the probabilities.
        kept += one_input + positions * (3 * hidden * value + shape.vocab_size * (value + 8))
    return kept


def _setting_problems(config: Config, vocab_size: int) -> list[str]:
    """What a config's own checks cannot know; the others have been made (ipu_bert/config)."""
    problems, ipu = [], config.ipu
    least = minimum_accumulation(written_layers(ipu))
    if ipu.gradient_accumulation < least:
        problems.append(
            f"ipu.gradient_accumulation: expected at least {least}, the stages of this pipeline forward and back, "
            f"found {ipu.gradient_accumulation}: use a smaller train.micro_batch_size, fewer replicas or fewer IPUs a "
            "replica"
        )
    if vocab_size % ipu.vocabulary_parts:
        problems.append(
            f"ipu.vocabulary_parts: expected a divisor of the vocabulary's {vocab_size}, found {ipu.vocabulary_parts}"
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
                f"IPU {ipu}: expected at most {_mib(IPU_BYTES)}, found an estimate of {_mib(used)}, most of it {what} "
                f"of stage {largest.name}: {_ADVICE[what]}"
            )
    return problems


_ADVICE = {
    "weights": "put fewer layers on it (ipu.layers_per_ipu)",
    "gradients": "put fewer layers on it (ipu.layers_per_ipu)",
    "moments": "set ipu.optimizer_off_chip or ipu.optimizer_sharded, or put fewer layers on it",
    "activations": "use a smaller train.micro_batch_size, or set ipu.recompute",
    "padding": "use smaller blocks (sparsity.block_size) or a higher density",
    "meta_info": "use a smaller train.micro_batch_size or larger blocks (sparsity.block_size)",
}


def _warnings(placement: Placement, config: Config) -> list[str]:
    warnings = []
    for ipu in range(placement.ipus):
        share = placement.ipu_memory(ipu) / IPU_BYTES
        if HEADROOM < share <= 1.0:
            warnings.append(f"IPU {ipu}: {share:.0%} of its memory is counted; code and working space may not fit")
    assert config.train.micro_batch_size is not None
    rows = config.train.micro_batch_size * config.data.sequence_length
    if rows % 16 and placement.padding:
        warnings.append(f"{rows} rows a micro-batch: a multiple of 16 gets popsparse's fast weight gradient")
    total = placement.ipus * config.ipu.replicas
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
        f"busiest); bubble {placement.bubble:.0%}"
    )
    lines.append(_cycles_line(placement))
    lines += _padding_lines(placement.padding)
    return "\n".join([*lines, *(f"warning     {text}" for text in placement.warnings)])


def _cycles_line(placement: Placement) -> str:
    cycles = [placement.ipu_cycles(ipu) for ipu in range(placement.ipus)]
    shares = ", ".join(f"IPU {ipu} {found / max(cycles):.0%}" for ipu, found in enumerate(cycles))
    return (
        f"cycles      {max(cycles) / 1e3:,.0f} thousand a micro-batch on the busiest IPU; {shares} of that; expected "
        "by popsparse's planner for sparse products, dense ones at the peak rate, nothing else"
    )


def _padding_lines(padding: Sequence[LayerPadding]) -> list[str]:
    """A line for each kind of weight, by its first layer."""
    by_kind: dict[str, LayerPadding] = {}
    for layer in padding:
        by_kind.setdefault(layer.name.split("layer.")[1].partition(".")[2], layer)
    return [
        f"padding     {kind}: nz x{layer.factor:.2f}, metaInfo {layer.meta_info / KIB:.0f} KiB a layer "
        f"({layer.source or 'exactly as popsparse plans'})"
        for kind, layer in by_kind.items()
    ]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
