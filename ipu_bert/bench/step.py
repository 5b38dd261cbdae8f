"""Whole training steps compared: `python -m ipu_bert.bench_step [--sizes base] [--batch 32] [--json PATH]`.

Without --sizes: time at equal loss (bench/headline.py). With them, tables of all implementations of these sizes.

Every step is forward, backward, clipping and AdamW on random batches of BERT's vocabulary, with the dropout that the
size's config trains with unless --no-dropout: our dense model in float32 and under bfloat16 autocast, transformers'
BertForPreTraining (its heads at the masked positions, as ours), and the block-sparse model with each block size. All
alternate in one process; samples whose threads had to wait for a core are discarded and counted
(sparse_ops.bench.sampling).

epsilon is the time of a FLOP of the sparse step over the time of one of the dense step (Eq. 5), all FLOPs counted,
attention and heads too. break_even is the epsilon at which the sparse step takes as long as the dense one of its size;
epsilon_critical (Eq. 7) that of a dense model of equal loss, where the paper gives the loss.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Callable, Mapping, Sequence

import torch

from ipu_bert.bench import headline
from ipu_bert.bench import models as bench_models
from ipu_bert.bench.equal_loss import LENGTH, SPARSE_MLM, SPARSITY
from ipu_bert.bench.memory import StateBytes, peak_bytes, state_bytes
from ipu_bert.bench.models import DENSE_BFLOAT16, DENSE_FLOAT32, IMPLEMENTATIONS, Implementation, Trainer
from ipu_bert.data.batches import Batch
from ipu_bert.engines.torch_engine import TorchEngine
from ipu_bert.record.metrics import dumps
from ipu_bert.settings import SparsitySettings
from ipu_bert.sizes import flops
from ipu_bert.sizes.shape import FAMILY, BertShape
from ipu_bert.sizes.weights import encoder_weights
from ipu_bert.stopwatch import Stopwatch
from sparse_ops import files, native
from sparse_ops.arguments import MOST_THREADS, Parser, file_to_write, fraction, take_threads, whole_number
from sparse_ops.bench.sampling import Sample, alternate, choose, summarize
from sparse_ops.dynsparse.grow import GROW_RULES
from sparse_ops.dynsparse.schedules import constant
from sparse_ops.dynsparse.updater import PatternUpdater, UpdatePlan
from sparse_ops.ends import with_one_line
from sparse_ops.norms import l1
from sparse_ops.saying import answer, say

PHASES = ("forward", "backward", "optimizer")

# What `update s` times: half of the blocks after each of steps 1, 2 and 3.
UPDATE = UpdatePlan(
    updates=4,
    total_steps=4,
    pruning_ratio=0.5,
    schedule=constant,
    start=0.0,
    stop=1.0,
    norm=l1,
    growth=GROW_RULES["random"],
    allow_removed=False,
    seed=0,
)

# Where bfloat16 takes so many times as long as float32, its steps would take minutes.
MAX_SLOWDOWN = 10.0


def measure_size(
    size: str,
    names: Sequence[str],
    *,
    batch: int,
    length: int,
    masked: int,
    sparsity: float,
    dropout: bool,
    repeats: int,
    memory: bool,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One record per implementation: times, shares, speed-up, epsilon, memory; plain values."""
    shape = bench_models.model_shape(size, dropout)
    data = bench_models.random_batch(shape, batch, length, masked, seed=0)
    choices = [IMPLEMENTATIONS[name] for name in names]
    timers = {choice.name: Stopwatch() for choice in choices}
    trainers = {
        choice.name: bench_models.make_trainer(choice, shape, sparsity, timers[choice.name]) for choice in choices
    }
    states: dict[str, StateBytes] = {}
    for name, trainer in trainers.items():
        if isinstance(trainer, TorchEngine):
            say(f"{size}: counting the bytes of {name}")
            states[name] = state_bytes(trainer, data)
    say(f"{size}: {repeats} rounds of {len(names)} implementations, each step after two or more that are not timed")
    runs = {name: _phased(trainer, timers[name], data) for name, trainer in trainers.items()}
    samples = alternate(runs, repeats, rehearsed=True)
    records = [_record(size, choice, batch, length, samples[choice.name]) for choice in choices]
    for record, choice in zip(records, choices):
        trainer = trainers[choice.name]
        if choice.block and isinstance(trainer, TorchEngine):
            record["update_seconds"] = time_update(trainer)
    del trainers, runs
    _compare(records, choices, shape, size, length, masked, sparsity)
    for record, choice in zip(records, choices):
        record.update(_encoder_memory(states, choice))
        record["peak_bytes"] = (
            peak_bytes(choice.name, size, batch, length, masked, sparsity, dropout) if memory else None
        )
    return records


def _phased(trainer: Trainer, timer: Stopwatch, data: Batch) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        before = timer.seconds
        trainer.train_step(data)
        after = timer.seconds
        return {phase: after[phase] - before[phase] for phase in PHASES}

    return run


def _record(size: str, choice: Implementation, batch: int, length: int, samples: Sequence[Sample]) -> dict[str, Any]:
    found = summarize(samples)
    chosen = choose(samples)
    total = sum(s.seconds for s in chosen)
    return {
        "size": size,
        "implementation": choice.name,
        "block": choice.block,
        "dtype": choice.compute,
        "kernel": bench_models.kernel_name(choice),
        "batch": batch,
        "sequence_length": length,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": found.seconds,
        "low": found.low,
        "high": found.high,
        "sequences_per_second": batch / found.seconds,
        "shares": {p: sum(s.result[p] for s in chosen) / total for p in PHASES},
        "samples_kept": found.kept,
        "samples_discarded": found.discarded,
        "disturbed": found.disturbed,
        "waiting": found.waiting,
        "kept": found.kept_text,
    }


def _compare(
    records: Sequence[dict[str, Any]],
    choices: Sequence[Implementation],
    shape: BertShape,
    size: str,
    length: int,
    masked: int,
    sparsity: float,
) -> None:
    """Add FLOPs, and what follows from the dense steps where they were measured."""
    seconds = {record["implementation"]: record["seconds"] for record in records}
    dense_flops = _executed_flops(IMPLEMENTATIONS[DENSE_FLOAT32], shape, length, masked, sparsity)
    for record, choice in zip(records, choices):
        executed = _executed_flops(choice, shape, length, masked, sparsity)
        record["flops_per_sequence"] = executed
        for key, dense in (("speedup_float32", DENSE_FLOAT32), ("speedup_bfloat16", DENSE_BFLOAT16)):
            record[key] = seconds[dense] / record["seconds"] if dense in seconds else None
        record["epsilon"] = record["break_even"] = record["epsilon_critical"] = None
        dense = f"dense {choice.compute}"
        if choice.block:
            record["break_even"] = dense_flops / executed
            record["epsilon_critical"] = critical(size, choice.block, length, sparsity)
            if dense in seconds:
                record["epsilon"] = flops.epsilon(record["seconds"], executed, seconds[dense], dense_flops)


def _executed_flops(choice: Implementation, shape: BertShape, length: int, masked: int, sparsity: float) -> float:
    weights = bench_models.encoder_of(choice, shape, sparsity)
    return flops.sequence_flops(shape, weights, length, masked).executed


def critical(size: str, block: int, length: int, sparsity: float) -> float | None:
    """Eq. 7 from the loss that the paper reached with this block size; None where it gives none."""
    loss = SPARSE_MLM.get(size, {}).get(block)
    if loss is None or sparsity != SPARSITY or length != LENGTH:
        return None
    weights = encoder_weights(FAMILY[size], SparsitySettings(method="static", sparsity=sparsity, block_size=block))
    return flops.epsilon_critical(flops.matched_flops(loss), flops.paper_flops(FAMILY[size], weights, length))


def time_update(engine: TorchEngine) -> float:
    """Seconds of one pattern update that moves half of the blocks of every sparse weight; the least of three."""
    updater = PatternUpdater(UPDATE)
    times = []
    with engine.host_state() as host:
        updater.track(host.layers)
        for step in (1, 2, 3):
            start = time.perf_counter()
            updater.update(host.layers, host.moments, step)
            times.append(time.perf_counter() - start)
    return min(times)


def _encoder_memory(states: Mapping[str, StateBytes], choice: Implementation) -> dict[str, Any]:
    found, dense = states.get(choice.name), states.get(DENSE_FLOAT32)
    return {
        "encoder_bytes": found.trained if found else None,
        "encoder_index_bytes": found.index if found else None,
        "encoder_bytes_over_dense": found.trained / dense.trained if found and dense else None,
    }


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records for a reader."""
    lines = []
    for size in dict.fromkeys(record["size"] for record in records):
        rows = [record for record in records if record["size"] == size]
        lines += [
            "",
            f"BERT-{size.capitalize()}, {rows[0]['batch']} x {rows[0]['sequence_length']} tokens, "
            f"{rows[0]['threads']} threads, torch {rows[0]['torch']}",
            f"{'implementation':<22} {'kernel':<18} {'s/step':>8} {'quartiles':>15} {'seq/s':>7} {'fwd/bwd/opt %':>13} "
            f"{'x f32':>6} {'x bf16':>6} {'epsilon':>7} {'even':>5} {'crit.':>5} {'encoder':>8} {'peak':>7} "
            f"{'update s':>8} {'kept':>5}",
        ]
        lines += [_line(row) for row in rows]
    notes = [
        "",
        "x: times faster than our dense model in float32, in bfloat16. epsilon: time of a FLOP over a dense one's;",
        "the sparse step wins below even (dense model of its size), below crit. (dense model of equal loss).",
        "encoder: its weights, gradients and moments (live tensors, MB). peak: memory growth of a fresh process (MB).",
        "kept: samples, - those discarded because their threads had to wait; * too few were undisturbed, so the least",
        "disturbed ones count.",
    ]
    return "\n".join(lines + notes)


def _line(row: Mapping[str, Any]) -> str:
    shares = "/".join(f"{100 * row['shares'][phase]:.0f}" for phase in PHASES)
    return (
        f"{row['implementation']:<22} {row['kernel']:<18} {row['seconds']:>8.3f} "
        f"{row['low']:>7.3f}-{row['high']:<7.3f} {row['sequences_per_second']:>7.2f} {shares:>13} "
        f"{_number(row['speedup_float32'], 2):>6} {_number(row['speedup_bfloat16'], 2):>6} "
        f"{_number(row['epsilon'], 2):>7} {_number(row['break_even'], 1):>5} {_number(row['epsilon_critical'], 1):>5} "
        f"{_number(row['encoder_bytes'], 1, 1e-6):>8} {_number(row['peak_bytes'], 0, 1e-6):>7} "
        f"{_number(row.get('update_seconds'), 3):>8} {row['kept']:>5}"
    )


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return f"{value * scale:.{digits}f}" if value else "-"


def default_implementations(slowdown: float) -> list[str]:
    """What is compared unless asked for; without bfloat16 where that takes MAX_SLOWDOWN times as long or more."""
    if slowdown < MAX_SLOWDOWN:
        return bench_models.DEFAULT
    _tell(f"{DENSE_BFLOAT16}: left out, as a product takes {slowdown:.0f} times float32's time here")
    return [name for name in bench_models.DEFAULT if name != DENSE_BFLOAT16]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for name, value in (("--length", LENGTH), ("--sparsity", SPARSITY), ("--implementations", None)):
        if not options.sizes and getattr(options, name.strip("-")) != value:
            parser.error(f"argument {name}: expected --sizes with it: the paper's losses are of one setting")
    if options.masked > options.length:
        parser.error(f"argument --masked: expected at most the {options.length} tokens, found {options.masked}")
    try:
        if native.available():
            native.level()
    except ValueError as error:
        parser.error(str(error))
    take_threads(options.threads)
    options.repeats = 2 if options.quick else options.repeats
    return with_one_line(lambda: _measure(options))


def _tell(text: str) -> None:
    say(text, sys.stderr)


def _measure(options: argparse.Namespace) -> None:
    text, numbers = _tables(options) if options.sizes else _headline(options)
    try:
        answer(text)
    finally:  # where one cannot be written, the other may
        if options.json:
            files.write(options.json, dumps(numbers, indent=1))


def _headline(options: argparse.Namespace) -> tuple[str, Any]:
    found = headline.measure(options.batch, options.masked, options.dropout, options.repeats, _tell)
    return found.render(), found.to_dict()


def _tables(options: argparse.Namespace) -> tuple[str, Any]:
    if options.implementations is None:
        options.implementations = default_implementations(bench_models.bfloat16_slowdown())
    records: list[dict[str, Any]] = []
    for size in options.sizes:
        records += measure_size(
            size,
            options.implementations,
            batch=options.batch,
            length=options.length,
            masked=options.masked,
            sparsity=options.sparsity,
            dropout=options.dropout,
            repeats=options.repeats,
            memory=not (options.quick or options.no_memory),
            say=_tell,
        )
    return table(records), records


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m ipu_bert.bench_step", description=(__doc__ or "").split("\n\n")[1])
    known = list(IMPLEMENTATIONS)
    parser.add_argument(
        "--sizes", nargs="+", choices=list(FAMILY), metavar="SIZE", help=f"tables of these, of {list(FAMILY)}"
    )
    parser.add_argument("--implementations", nargs="+", choices=known, default=None, metavar="NAME", help=f"of {known}")
    parser.add_argument("--batch", type=whole_number(1, 2**20), default=32, help="sequences (default: %(default)s)")
    parser.add_argument("--no-dropout", dest="dropout", action="store_false", help="none, not that of the configs")
    parser.add_argument(
        "--length", type=whole_number(1, 2**20), default=LENGTH, help="with --sizes: tokens of a sequence (%(default)s)"
    )
    parser.add_argument("--masked", type=whole_number(1, 2**20), default=20, help="masked positions of a sequence")
    parser.add_argument("--sparsity", type=fraction, default=SPARSITY, help="with --sizes (%(default)s)")
    parser.add_argument(
        "--repeats",
        type=whole_number(1, 1_000_000),
        default=5,
        help="undisturbed samples wanted; at most twice as many are taken",
    )
    parser.add_argument("--threads", type=whole_number(0, MOST_THREADS), default=0, help="0: torch's own choice")
    parser.add_argument("--quick", action="store_true", help="two samples and no peak memory")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, which starts a process each")
    parser.add_argument("--json", type=file_to_write(), default=None, help="also write the records there")
    return parser
