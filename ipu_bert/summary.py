"""What a finished run leaves behind: gathers how it ended for the report, and writes it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch

from ipu_bert import assemble, checkpoint
from ipu_bert.config import Config
from ipu_bert.data.filling import Filling
from ipu_bert.data.quality import TextQuality
from ipu_bert.data.token_files import TokenFiles
from ipu_bert.machine import processor
from ipu_bert.model import starting_pattern
from ipu_bert.record.context import Context
from ipu_bert.record.curves import PatternChange
from ipu_bert.record.metrics import MEANS
from ipu_bert.record.outcome import HeldoutMeans, Machine, RunOutcome
from ipu_bert.record.report import write_report
from ipu_bert.run_layout import BEST
from ipu_bert.sizes.flops import SequenceFlops, sequence_flops
from ipu_bert.sizes.footprint import ParameterCounts, parameter_counts
from ipu_bert.sizes.shape import BertShape, bert_shape
from sparse_ops import native
from sparse_ops.host_memory import peak_memory_bytes
from sparse_ops.linear import BlockSparseLinear

SEGMENT_NAMES = {3: ("query", "key", "value")}


@dataclass(frozen=True)
class RunTotals:
    """How far a run came and what it cost; times in seconds over all its processes."""

    steps: int
    elapsed_seconds: float
    seconds: Mapping[str, float]  # by phase
    heldout: Mapping[str, Any]  # what the last evaluation recorded
    judged: int  # sequences that it was by
    frequencies: float  # in training, as judging.frequencies_in_training gives them
    waited_share: Sequence[float]  # of the last processes' training, for other ranks, by rank


def write_outcome(
    path: Path,
    config: Config,
    data: TokenFiles,
    quality: TextQuality,
    filled: Filling,
    totals: RunTotals,
    layers: Mapping[str, BlockSparseLinear],
) -> None:
    """Write report.md, report.json and the pictures of the run in `path`; `layers` as they are at the end."""
    decoded = assemble.decoded(config, filled, native.available())
    shape, parameters, flops = _counted(config, data.vocab_size, decoded)
    outcome = RunOutcome(
        config=config,
        shape=shape,
        parameters=parameters,
        flops=flops,
        decoded=decoded,
        splits=data.manifest["splits"],
        quality=quality,
        filling=filled,
        unigram_entropy=data.unigram_entropy,
        context=Context.of_record(totals.heldout),
        heldout=HeldoutMeans(**{key: totals.heldout[key] for key in MEANS}),
        judged=totals.judged,
        training_frequencies_loss=totals.frequencies,
        steps=totals.steps,
        seconds=totals.seconds,
        elapsed_seconds=totals.elapsed_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        best_checkpoint=max((step for step, _ in checkpoint.complete(path / BEST)), default=None),
        machine=_machine(),
        waited_share=totals.waited_share,
    )
    write_report(path, outcome, _pattern_change(config, layers, totals.steps))


def _counted(config: Config, vocab_size: int, decoded: float) -> tuple[BertShape, ParameterCounts, SequenceFlops]:
    """The model's sizes, its parameters, and FLOPs of one sequence."""
    shape, weights = bert_shape(config.model, vocab_size), assemble.weights(config)
    flops = sequence_flops(shape, weights, config.data.sequence_length, config.data.max_predictions, decoded)
    return shape, parameter_counts(shape, weights), flops


def _pattern_change(config: Config, layers: Mapping[str, BlockSparseLinear], steps: int) -> PatternChange | None:
    """The first layer's query-key-value weight (or the first sparse one), at the start and now.

    None without sparse weights, and where the start was that of another model.
    """
    if not layers or config.model.init:
        return None
    name = next((name for name in layers if name.endswith("qkv")), next(iter(layers)))
    weight = next(weight for weight in assemble.weights(config) if weight.name == name)
    start, end = starting_pattern(weight, config.run.seed), layers[name].pattern
    return PatternChange(
        layer=name,
        grid=end.grid,
        block_size=end.block_size,
        start_rows=start.rows,
        start_cols=start.cols,
        end_rows=end.rows,
        end_cols=end.cols,
        segment_names=SEGMENT_NAMES.get(end.segments, ()),
        end_step=steps,
    )


def _machine() -> Machine:
    return Machine(
        processor=processor(),
        cpus=os.cpu_count(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
    )
