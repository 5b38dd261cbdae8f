"""The headline of bench_step: steps of dense models and of the sparse Base, all in turn, and time at equal loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import torch

from ipu_bert.bench import equal_loss, forward, models, parts, ways
from ipu_bert.bench.forward import Forward
from ipu_bert.bench.models import DENSE_FLOAT32, IMPLEMENTATIONS, SPARSE, SPARSE_SIZE, TRANSFORMERS
from ipu_bert.machine import processor
from ipu_bert.sizes.flops import SequenceFlops, sequence_flops
from ipu_bert.stopwatch import Stopwatch
from sparse_ops.bench.sampling import Summary, alternate, summarize

STEPS = (
    *((size, DENSE_FLOAT32) for size in ("mini", "small", "medium", "base")),
    *((SPARSE_SIZE, name) for name in SPARSE.values()),
    (SPARSE_SIZE, TRANSFORMERS),
)


@dataclass(frozen=True)
class TimedStep:
    """The step of a model. flops: of one sequence. part_seconds: of one more step, under torch's profiler."""

    size: str
    implementation: str
    kernel: str
    summary: Summary
    flops: SequenceFlops
    part_seconds: dict[str, float]
    ways: tuple[ways.Way, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        what = {"size": self.size, "implementation": self.implementation, "kernel": self.kernel}
        of_parts = {"flops": self.flops.to_dict(), "part_seconds": self.part_seconds}
        return {**what, **vars(self.summary), **of_parts, "ways": [vars(way) for way in self.ways]}


@dataclass(frozen=True)
class Headline:
    """Steps of `batch` sequences, forward passes without gradients, and what this machine reaches by itself."""

    title: str
    batch: int
    steps: tuple[TimedStep, ...]
    forward: tuple[Forward, ...]
    ceilings: parts.Ceilings

    @property
    def seconds(self) -> dict[tuple[str, str], float]:
        """Median of each step by size and implementation."""
        return {(step.size, step.implementation): step.summary.seconds for step in self.steps}

    @property
    def at_equal_loss(self) -> list[equal_loss.EqualLoss]:
        """The sparse model's block sizes against the dense models of their losses."""
        return equal_loss.equal_loss(SPARSE_SIZE, *models.sparse_and_dense(self.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.title,
            "equal_loss": [one.to_dict() for one in self.at_equal_loss],
            "steps": [step.to_dict() for step in self.steps],
            "forward": [one.to_dict() for one in self.forward],
            "ceilings": vars(self.ceilings),
        }

    def render(self) -> str:
        """For a reader: the comparison first, then the steps that it rests on."""
        base = self.seconds[SPARSE_SIZE, DENSE_FLOAT32]
        lines = [f"Time at equal loss: {self.title}", "", equal_loss.render(self.at_equal_loss), ""]
        lines.append(
            f"{'step':<25} {'kernel':<18} {'s/step':>7} {'quartiles':>15} {'x dense':>7} {'GFLOP/s':>7} {'kept':>5}"
        )
        for step in self.steps:
            found, name = step.summary, f"{step.size} {step.implementation}"
            rate = 1e-9 * self.batch * step.flops.executed / found.seconds
            lines.append(
                f"{name:<25} {step.kernel:<18} {found.seconds:>7.3f} {found.low:>7.3f}-{found.high:<7.3f} "
                f"{base / found.seconds:>7.2f} {rate:>7.0f} {found.kept_text:>5}"
            )
        lines += ["", "Where a step's seconds go (one step under torch's profiler):"]
        for step in self.steps:
            flops = {part: self.batch * value for part, value in parts.flops_by_part(step.flops).items()}
            lines.append(f"{step.size} {step.implementation}: {parts.render(step.part_seconds, flops)}")
        lines += ["", "Ways of the sparse products (python -m sparse_ops.tune):"]
        lines += [f"{step.size} {step.implementation}: {ways.render(step.ways)}" for step in self.steps if step.ways]
        lines += ["", forward.render(self.forward)]
        lines += ["", f"This machine by itself: {self.ceilings.render()}"]
        return "\n".join(lines)


def measure(batch: int, masked: int, dropout: bool, repeats: int, say: Callable[[str], None]) -> Headline:
    """Time all steps in turn. dropout: that of each size's config, or none."""
    trainers, timed = {}, []
    data = models.random_batch(models.model_shape(SPARSE_SIZE, dropout), batch, equal_loss.LENGTH, masked, seed=0)
    for size, name in STEPS:
        say(f"building {size} {name}")
        shape = models.model_shape(size, dropout)
        trainers[size, name] = models.make_trainer(IMPLEMENTATIONS[name], shape, equal_loss.SPARSITY, Stopwatch())
    runs = {
        f"{size} {name}": lambda trainer=trainer: trainer.train_step(data) for (size, name), trainer in trainers.items()
    }
    say(f"{repeats} rounds of {len(runs)} steps, each after two or more that are not timed")
    samples = alternate(runs, repeats, rehearsed=True)
    for size, name in STEPS:
        choice, shape = IMPLEMENTATIONS[name], models.model_shape(size, dropout)
        weights = models.encoder_of(choice, shape, equal_loss.SPARSITY)
        timed.append(
            TimedStep(
                size,
                name,
                models.kernel_name(choice),
                summarize(samples[f"{size} {name}"]),
                sequence_flops(shape, weights, equal_loss.LENGTH, masked),
                parts.seconds_by_part(runs[f"{size} {name}"]),
                ways.ways(choice, shape, equal_loss.SPARSITY, batch * equal_loss.LENGTH),
            )
        )
    title = (
        f"BERT-{SPARSE_SIZE.capitalize()} at sparsity {equal_loss.SPARSITY}, {batch} x {equal_loss.LENGTH} tokens, "
        f"{'dropout as trained' if dropout else 'no dropout'}, {torch.get_num_threads()} threads, {processor()}"
    )
    say(f"forward passes without gradients, {' and '.join(map(str, forward.BATCHES))} sequences")
    passes = forward.measure({step: trainer.model for step, trainer in trainers.items()}, repeats)
    return Headline(title, batch, tuple(timed), tuple(passes), parts.ceilings())
