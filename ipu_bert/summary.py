"""What a finished run leaves behind: the numbers that only the trainer knows, gathered for the report."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import torch

from ipu_bert import assemble
from ipu_bert.config import Config, as_dict
from ipu_bert.data.token_files import TokenFiles
from ipu_bert.record.plots import PatternChange
from ipu_bert.record.report import write_report
from ipu_bert.sizes.flops import actual_sparsity, sequence_flops
from ipu_bert.sizes.footprint import parameter_counts
from sparse_ops.host_memory import peak_memory_bytes
from sparse_ops.linear import BlockSparseLinear

SEGMENT_NAMES = {3: ("query", "key", "value")}


@dataclass(frozen=True)
class RunTotals:
    """How far a run came and what it cost; times in seconds over all its processes."""

    steps: int
    elapsed_seconds: float
    seconds: Mapping[str, float]  # by phase
    heldout: Mapping[str, float]


def write_outcome(
    path: Path, config: Config, data: TokenFiles, totals: RunTotals, layers: Mapping[str, BlockSparseLinear]
) -> None:
    """Write report.md, report.json and the pictures of the run in `path`; `layers` as they are at the end."""
    shape = assemble.bert_shape(config, data.vocab_size)
    block_size = config.sparsity.block_size
    sparsity = assemble.weight_sparsity(config)
    counts = parameter_counts(shape, sparsity, block_size)
    executed = actual_sparsity(assemble.weights(config), sparsity, block_size)
    flops = sequence_flops(shape, config.data.sequence_length, config.data.max_predictions, executed)
    sequences = totals.steps * config.train.batch_size
    reading = totals.seconds["data"]
    summary: dict[str, Any] = {
        "name": config.run.name,
        "config": as_dict(config),
        "model": {**vars(shape), "method": config.sparsity.method},
        "parameters": {
            "sparse": counts.sparse,
            "dense": counts.dense,
            "sparse_dense_equivalent": counts.sparse_as_dense,
            "total": counts.total,
        },
        "flops_per_sequence": {"executed": flops.executed, "dense_equivalent": flops.dense_equivalent},
        "heldout": {**totals.heldout, "unigram_entropy": data.unigram_entropy},
        "data": {
            "source": config.data.source,
            "vocab_size": data.vocab_size,
            "splits": data.manifest["splits"],
            "stream_sequences_per_second": sequences / reading if reading else None,
        },
        "seconds": dict(totals.seconds),
        "steps": totals.steps,
        "sequences": sequences,
        "tokens": sequences * config.data.sequence_length,
        "elapsed_seconds": totals.elapsed_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "machine": {
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    write_report(path, summary, _pattern_change(config, data.vocab_size, layers, totals.steps))


def _pattern_change(
    config: Config, vocab_size: int, layers: Mapping[str, BlockSparseLinear], steps: int
) -> PatternChange | None:
    """The first layer's query-key-value weight (or the first sparse one), at the start and now."""
    if not layers:
        return None
    name = next((name for name in layers if name.endswith("qkv")), next(iter(layers)))
    start, end = assemble.starting_pattern(config, name), layers[name].pattern
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


def _processor() -> str:
    """The CPU's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
