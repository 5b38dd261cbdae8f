"""The numbers of a report, from how the run ended and the records of its metrics; touches no file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any, Iterable, Mapping, Sequence

from ipu_bert.record.outcome import RunOutcome
from ipu_bert.record.verdict import Training
from ipu_bert.sizes.exchange import StepBytes, step_bytes
from ipu_bert.sizes.footprint import ParameterCounts
from ipu_bert.stopwatch import OUTSIDE_TRAINING, PHASES

MAX_WARMUP_STEPS = 10

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class HeldoutNumbers:
    """The last held-out losses [nats] and accuracies, and what they say; None where a number is missing or not finite.

    initial_mlm_loss is the untrained model's, from the evaluation at step 0; unigram_entropy [nats] is of the whole
    held-out text; other_words_loss, other_words_error and word_frequencies_loss [nats] are of the mlm_labels that
    mlm_loss is of, too, and other_words_share is of the tokens around these (Context). context_gain [nats] is
    other_words_loss - mlm_loss, and reads_context says whether that is clearly more than nothing; nsp_learned whether
    NSP is clearly under ln 2. best_mlm_loss and best_step come from those evaluations of the whole run that are
    `alike`. best_checkpoint: step of the one in best/.
    """

    mlm_loss: float | None
    nsp_loss: float | None
    unigram_entropy: float | None
    other_words_loss: float | None
    other_words_error: float | None
    word_frequencies_loss: float | None
    mlm_labels: int | None
    other_words_share: float | None
    initial_mlm_loss: float | None
    mlm_accuracy: float | None
    nsp_accuracy: float | None
    context_gain: float | None
    reads_context: bool | None
    nsp_learned: bool | None
    best_mlm_loss: float | None
    best_step: int | None
    best_checkpoint: int | None


@dataclass(frozen=True)
class Speed:
    """Rates per second; None where no time has passed.

    Executed FLOP/s are the products that were done, dense-equivalent ones those that a dense model of the same shape
    would have needed.
    """

    sequences_per_second: float | None
    tokens_per_second: float | None
    executed_flops_per_second: float | None
    dense_equivalent_flops_per_second: float | None


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of one step, over `measured_steps`.

    warmup_steps_left_out: the first ones, up to the record with which measuring began. resumed_steps_left_out: later
    ones, between two records of which the run was resumed.
    """

    mean: float
    median: float
    measured_steps: int
    warmup_steps_left_out: int
    resumed_steps_left_out: int


@dataclass(frozen=True)
class Throughput(Speed):
    """Speed of training once warm.

    The headline is the mean over all steps after the first ones (data, forward, backward, optimizer and pattern
    updates; no evaluation, no checkpoints); `median` is the typical step beside it; `whole_run` divides by all time
    that passed. A run too short to leave anything out has no `step_seconds`, and three times the same speed.
    """

    step_seconds: StepSeconds | None
    median: Speed
    whole_run: Speed


@dataclass(frozen=True)
class ExchangeNumbers:
    """How the ranks of a run worked together.

    bytes_per_step: of gradients that each rank gives (None of IPUs, which exchange by themselves). waited_share: by
    rank, of its time of training since it was started last. efficiency: the share of all ranks' time in which they did
    not wait.
    """

    ranks: int
    bytes_per_step: StepBytes | None
    waited_share: Sequence[float]
    efficiency: float


@dataclass(frozen=True)
class PatternNumbers:
    """What the pattern updates did; None where there were none, or where their records do not say.

    returned_total: moves to places that the same update had emptied; None where `sparsity.allow_removed` is false.
    density, sparsity: shares of the sparse weights' entries. blocks: of all weights. explored_dof: share of a weight's
    positions tried at least once, a mean over weights of any size. removed_new, churn, seconds_per_update: means over
    updates. searched: whether the seconds have those of finding the gradient's largest blocks, and are of updates that
    do alone. mean_age [steps], transfers and layers (by name): as the last update's record says.
    """

    updates: int
    density: float | None
    sparsity: float | None
    blocks: int | None
    moved_total: int
    returned_total: int | None
    explored_dof: float | None
    removed_new: float | None
    removed_new_last: float | None
    churn: float | None
    mean_age: float | None
    seconds_per_update: float | None
    searched: bool
    transfers: Mapping[str, int] | None
    layers: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """All that report.json and report.md say.

    skipped_steps: those whose loss or gradient was not finite. training_mlm_loss [nats]: a mean of the last recorded
    steps, None where none is finite. time_share: of each phase and of "other"; the shares sum
    to 1. exchange: None of a process alone. recorded_from: the step after which records begin, 0 for all of them.
    """

    outcome: RunOutcome
    skipped_steps: tuple[int, ...]
    training_mlm_loss: float | None
    heldout: HeldoutNumbers
    throughput: Throughput
    time_share: Mapping[str, float]
    exchange: ExchangeNumbers | None
    pattern: PatternNumbers
    recorded_from: int

    @property
    def training(self) -> Training:
        """What is known of how the held-out loss came about."""
        frequencies = finite(self.outcome.training_frequencies_loss)
        return Training(self.heldout.initial_mlm_loss, self.training_mlm_loss, frequencies, self.outcome.passes)


def build_report(records: Records, outcome: RunOutcome) -> Report:
    """The report of a run from its records, in order, and from how it ended."""
    recorded_from = int(records[0]["step"]) if records and records[0]["kind"] == "resume" else 0
    unmoved = not recorded_from or outcome.config.sparsity.method == "static"  # where no update is recorded
    return Report(
        outcome,
        tuple(record["step"] for record in of_kind(records, "skip")),
        training_mlm_loss(records),
        heldout_numbers(records, outcome),
        throughput(records, outcome),
        time_share(outcome.seconds, outcome.elapsed_seconds),
        exchange_numbers(outcome),
        pattern_numbers(records, outcome.parameters, unmoved),
        recorded_from,
    )


def of_kind(records: Records, kind: str) -> list[Mapping[str, Any]]:
    """The records of one kind, in order."""
    return [record for record in records if record["kind"] == kind]


def alike(records: Records) -> list[Mapping[str, Any]]:
    """The evaluations by as many batches as the last one, in order: beside it a loss by others says nothing.

    Those of older versions, which do not say by how many, count as alike.
    """
    evaluations = of_kind(records, "eval")
    last = evaluations[-1].get("batches") if evaluations else None
    return [record for record in evaluations if record.get("batches", last) == last]


def finite(value: Any) -> float | None:
    """`value`, or None where it is not a finite number."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


# ---------------------------------------------------------------- what was learned


def heldout_numbers(records: Records, outcome: RunOutcome) -> HeldoutNumbers:
    """The last held-out results beside word frequencies, a coin toss, and the evaluations before."""
    means = outcome.heldout
    loss, nsp = finite(means.mlm_loss), finite(means.nsp_loss)
    context = outcome.context
    gain = None if loss is None or context is None else finite(context.gain(loss))
    evaluations = [record for record in alike(records) if finite(record.get("mlm_loss")) is not None]
    best: Mapping[str, Any] = min(evaluations, key=lambda record: float(record["mlm_loss"]), default={})
    return HeldoutNumbers(
        mlm_loss=loss,
        nsp_loss=nsp,
        unigram_entropy=finite(outcome.unigram_entropy),
        other_words_loss=finite(context.other_words_loss) if context else None,
        other_words_error=finite(context.other_words_error) if context else None,
        word_frequencies_loss=finite(context.word_frequencies_loss) if context else None,
        mlm_labels=context.mlm_labels if context else None,
        other_words_share=finite(context.other_words_share) if context else None,
        initial_mlm_loss=next((record["mlm_loss"] for record in evaluations if record["step"] == 0), None),
        mlm_accuracy=finite(means.mlm_accuracy),
        nsp_accuracy=finite(means.nsp_accuracy),
        context_gain=gain,
        reads_context=None if gain is None or loss is None or context is None else context.read(loss),
        nsp_learned=None if nsp is None else beats_a_coin(nsp, outcome.judged),
        best_mlm_loss=best.get("mlm_loss"),
        best_step=best.get("step"),
        best_checkpoint=outcome.best_checkpoint,
    )


def training_mlm_loss(records: Records) -> float | None:
    """Mean masked-LM loss [nats] of the last tenth of the recorded training steps, three at least where there are."""
    losses = [loss for r in of_kind(records, "train") if (loss := finite(r.get("mlm_loss"))) is not None]
    return _mean(losses[-max(3, len(losses) // 10) :])


def beats_a_coin(loss: float, judged: int) -> bool:
    """Whether a mean loss [nats] on so many fair coin tosses is clearly below ln 2: by 0.02, and not by luck.

    Luck: exp(judged (ln 2 - loss)) is how much more probable the labels are to the model than to a coin, and is one on
    average whatever a model guesses, so that it is above a hundred at most once in a hundred (Markov's inequality).
    """
    gain = math.log(2.0) - loss
    return gain > 0.02 and judged * gain > math.log(100.0)


# ---------------------------------------------------------------- how fast


def step_times(records: Records, warmup_steps: int) -> list[tuple[int, int, float]]:
    """(step at its start, steps, seconds per step) of each interval between neighbouring train records.

    Without evaluation and checkpoints. Intervals that begin before `warmup_steps`, or in which the run was stopped and
    resumed, are left out.
    """
    times: list[tuple[int, int, float]] = []
    last: Mapping[str, Any] | None = None
    for record in records:
        if record["kind"] == "resume":
            last = None
        if record["kind"] != "train" or finite(record.get("elapsed")) is None:
            continue
        if last is not None and last["step"] >= warmup_steps:
            steps = int(record["step"] - last["step"])
            spent = float(record["elapsed"] - last["elapsed"])
            for phase in OUTSIDE_TRAINING:
                spent -= _phase(record, phase) - _phase(last, phase)
            if steps > 0 and spent > 0:
                times.append((int(last["step"]), steps, spent / steps))
        last = record
    return times


def _phase(record: Mapping[str, Any], phase: str) -> float:
    return float(finite((record.get("seconds") or {}).get(phase)) or 0.0)


def throughput(records: Records, outcome: RunOutcome) -> Throughput:
    """Speed of training once warm, in the mean, in the median step and over the whole run."""
    warmup = min(MAX_WARMUP_STEPS, outcome.steps // 5)
    times = step_times(records, warmup) or step_times(records, 0)
    elapsed = outcome.elapsed_seconds
    whole = _speed(outcome.sequences / elapsed if elapsed else None, outcome)
    if not times:  # too short to leave anything out
        return Throughput(**vars(whole), step_seconds=None, median=whole, whole_run=whole)
    first, measured = times[0][0], sum(count for _, count, _ in times)
    step = StepSeconds(
        mean=sum(count * seconds for _, count, seconds in times) / measured,
        median=median(seconds for _, _, seconds in times),
        measured_steps=measured,
        warmup_steps_left_out=first,
        resumed_steps_left_out=max(0, outcome.steps - first - measured),
    )
    batch_size = outcome.config.train.batch_size
    mean = _speed(batch_size / step.mean, outcome)
    return Throughput(
        **vars(mean), step_seconds=step, median=_speed(batch_size / step.median, outcome), whole_run=whole
    )


def _speed(sequences: float | None, outcome: RunOutcome) -> Speed:
    """All rates that follow from sequences per second."""
    if sequences is None:
        return Speed(None, None, None, None)
    flops = outcome.flops
    return Speed(
        sequences,
        sequences * outcome.config.data.sequence_length,
        sequences * flops.executed,
        sequences * flops.dense_equivalent,
    )


def time_share(seconds: Mapping[str, float], elapsed: float) -> dict[str, float]:
    """Share of the elapsed time in each phase and in "other"; the shares sum to 1."""
    spent = sum(seconds[phase] for phase in PHASES)
    total = max(elapsed, spent)
    if total <= 0:
        return {**{phase: 0.0 for phase in PHASES}, "other": 1.0}
    return {**{phase: seconds[phase] / total for phase in PHASES}, "other": 1 - spent / total}


def exchange_numbers(outcome: RunOutcome) -> ExchangeNumbers | None:
    """What the ranks exchanged, and how long they waited; None of a process alone."""
    shares = outcome.waited_share
    if len(shares) < 2:
        return None
    on_cpus = outcome.config.engine.name == "torch"
    return ExchangeNumbers(
        ranks=len(shares),
        bytes_per_step=step_bytes(outcome.parameters) if on_cpus else None,
        waited_share=shares,
        efficiency=1.0 - sum(shares) / len(shares),
    )


# ---------------------------------------------------------------- how the pattern changed


def pattern_numbers(records: Records, parameters: ParameterCounts, unmoved: bool) -> PatternNumbers:
    """What the updates did in all, and how it stood after the last one.

    unmoved: whether the pattern is that of the start where no update is recorded.
    """
    updates = of_kind(records, "update")
    density = parameters.sparse / parameters.sparse_as_dense if parameters.sparse_as_dense else None
    last: Mapping[str, Any] = updates[-1] if updates else {}
    # Older versions' records of updates by the gradient leave out what finding its blocks took.
    known = all(record.get("returned") is not None for record in updates)  # older versions did not record it
    timed = [record for record in updates if "searched" in record] or updates
    return PatternNumbers(
        updates=len(updates),
        density=density,
        sparsity=None if density is None else 1 - density,
        blocks=last.get("blocks"),
        moved_total=sum(int(record.get("moved") or 0) for record in updates),
        returned_total=sum(int(record["returned"]) for record in updates) if known and updates else None,
        explored_dof=last.get("explored_dof", density if unmoved and not updates else None),
        removed_new=_mean(record.get("removed_new") for record in updates),
        removed_new_last=last.get("removed_new"),
        churn=_mean(record.get("churn") for record in updates),
        mean_age=last.get("mean_age"),
        seconds_per_update=_mean(record.get("seconds") for record in timed),
        searched=any("searched" in record for record in updates),
        transfers=last.get("transfers"),
        layers=last.get("layers") or {},
    )


def _mean(values: Iterable[Any]) -> float | None:
    found = [float(value) for value in values if finite(value) is not None]
    return sum(found) / len(found) if found else None
