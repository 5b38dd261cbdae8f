"""The words of report.md. Every sentence about success or failure is chosen from the numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Mapping, Sequence

from ipu_bert.config import as_dict
from ipu_bert.record.console import format_duration
from ipu_bert.record.context import LEAST_GAIN
from ipu_bert.record.metrics import to_plain
from ipu_bert.record.outcome import RunOutcome
from ipu_bert.record.report_numbers import ExchangeNumbers, PatternNumbers, Report
from ipu_bert.record.verdict import verdict
from ipu_bert.record.words import Figures, figure, join, memory, number, percent, scaled, table
from ipu_bert.stopwatch import PHASES


def render_page(report: Report, figures: Figures, not_drawn: Sequence[str] = ()) -> str:
    """report.md as Markdown text; only `figures` that were drawn are shown. not_drawn: a line for others."""
    parts = [
        _opening(report),
        _part(report),
        _skipped(report),
        _learning(report, figures),
        _speed(report),
        _time(report),
        _together(report.exchange),
        _size(report.outcome),
        _pattern(report, figures),
        *(f"**Not drawn:** {line}" for line in not_drawn),
        _details(report.outcome),
    ]
    return join(*parts) + "\n"


def _part(report: Report) -> str:
    """Of a run that has gone on in another folder, without its records."""
    if not report.recorded_from:
        return ""
    return (
        f"The records here begin after step {report.recorded_from}: losses, skipped steps and pattern updates before "
        "it are not counted on this page. Steps, sequences and times are of the whole run."
    )


def _opening(report: Report) -> str:
    outcome = report.outcome
    block = outcome.config.sparsity.block_size
    if outcome.parameters.sparse:
        flops = outcome.flops
        share = flops.sparse_as_dense / (flops.sparse_as_dense + flops.dense)
        which = "Its encoder weights" if share == 1 else f"Of its encoder weights {percent(share)}, by entries,"
        kind = (
            f"{which} are block-sparse: {percent(report.pattern.sparsity)} of their entries do not exist, "
            f"and the rest is kept in blocks of {block} x {block}. No dense copy of them, or of their gradient, is "
            "ever made."
        )
    else:
        kind = "All its weights are dense."
    tasks = (
        "It had two tasks at once: to fill in masked words (masked LM, MLM) and to tell whether one text follows "
        "another (next sentence, NSP)."
        if outcome.quality.pairs
        else "Its task was to fill in masked words (masked LM, MLM)."
    )
    return (
        f"# Run `{outcome.config.run.name}`\n\n"
        f"A BERT with {outcome.shape.layers} layers of width {outcome.shape.hidden_size} was pre-trained for "
        f"{number(outcome.steps)} steps on {number(outcome.sequences)} sequences ({number(outcome.tokens)} tokens, "
        f"padding counted) in {format_duration(outcome.elapsed_seconds)}. {tasks} {kind} {_corpus(outcome)}"
        + "".join(f"\n\n**About the text:** {warning}." for warning in outcome.text_warnings)
    )


def _corpus(outcome: RunOutcome) -> str:
    """Documents and tokens of all splits, the vocabulary, what tokenization made of the text, and what that took."""
    documents, tokens = (sum(split[key] for split in outcome.splits.values()) for key in ("documents", "tokens"))
    return (
        f"The corpus: {number(documents)} documents, {number(tokens)} tokens, a vocabulary of "
        f"{number(outcome.shape.vocab_size)} word pieces; {outcome.quality.summary()}."
        + (f" It was {outcome.quality.cost.summary()}." if outcome.quality.cost else "")
    )


def _skipped(report: Report) -> str:
    """Nothing where every step counted."""
    skipped = report.skipped_steps
    if not skipped:
        return ""
    which = ", ".join(map(number, skipped[:10])) + (", ..." if len(skipped) > 10 else "")
    return (
        f"**Skipped: {number(len(skipped))} of {number(report.outcome.steps)} steps**, since the loss or the gradient "
        f"was not finite (step {which}). They used up their batches and changed nothing."
    )


def _learning(report: Report, figures: Figures) -> str:
    outcome = report.outcome
    training = report.training
    heldout, by_whom = report.heldout, " by this run" if report.outcome.config.model.init else ""
    share = heldout.other_words_share
    became = "" if share is None else f" ({percent(share)} of the tokens around became others)"
    frequencies = f"{number(heldout.word_frequencies_loss)} (word frequencies)"
    rows = [
        ["masked LM (MLM)", number(heldout.mlm_loss), frequencies, percent(heldout.mlm_accuracy)],
        ["the same, other words around", number(heldout.other_words_loss), "", ""],
    ]
    if heldout.nsp_loss is not None:
        beaten = "0.693 (coin toss, ln 2)"
        rows.append(["next sentence (NSP)", number(heldout.nsp_loss), beaten, percent(heldout.nsp_accuracy)])
    notes = []
    if heldout.initial_mlm_loss is not None:
        notes.append(f"Before training the masked-LM loss was {heldout.initial_mlm_loss:.3f}.")
    if heldout.nsp_learned is not None:
        notes.append(
            "Next-sentence prediction is better than a coin toss."
            if heldout.nsp_learned
            else "Next-sentence prediction has NOT moved clearly below a coin toss."
        )
    best = heldout.best_mlm_loss
    if best is not None and heldout.mlm_loss is not None and heldout.mlm_loss > best + 0.05:
        by_heart = ", as it does when a model learns its training text by heart"
        because = by_heart if training.by_heart(heldout.mlm_loss) else ""
        if training.last is not None and not training.below(best):
            because = ", and training losses are not clearly below that: check the learning rate"
        notes.append(
            f"The held-out loss has risen since the best evaluation, {best:.3f} at step {number(heldout.best_step)}"
            f"{because}."
        )
    if best is not None and heldout.best_checkpoint not in (None, heldout.best_step):
        notes.append(
            f"`best/` is the checkpoint of step {number(heldout.best_checkpoint)}, not of the lowest loss, {best:.3f} "
            f"at step {number(heldout.best_step)}."
        )
    return join(
        "## Did it learn?",
        verdict(heldout.mlm_loss, training, outcome.context),
        _languages(outcome),
        table(["on held-out text", "loss [nats]", "to beat", "right answers"], rows),
        " ".join(notes),
        f"Held-out documents are never trained on{by_whom}. The masked-LM losses are of the same "
        f"{number(heldout.mlm_labels)} predictions. *Other words around*: each word around them is replaced by one of "
        f"as many pieces, drawn from the held-out text{became}, which a model that reads no context does not notice. "
        "*Word frequencies*: of a guess that knows how often each word is in the training text.",
        figure(
            figures,
            "loss_curves",
            "Loss over training steps. Above: the model reads context where its loss with other words around is "
            "clearly the larger one, and has learned more than word frequencies below the dashed line."
            + " Below: it has learned more than a coin toss below the dashed line."
            * outcome.quality.pairs,
        ),
    )


def _languages(outcome: RunOutcome) -> str:
    """Of a text of several languages, what telling these apart does to its losses."""
    if outcome.context is None or outcome.quality.which_language < LEAST_GAIN:
        return ""
    pairs = (
        " To tell them apart is enough, too, to be better than a coin toss by next sentences: many random ones are of "
        "another language." * outcome.quality.pairs
    )
    return (
        "**Its documents were taken for several languages.** Which of them stands around a word is context, too, and "
        f"other words may be of another one.{pairs} What the model knows beside that is told by "
        "`python -m ipu_bert.evaluate RUN --text FILE`, on text of one language."
    )


def _speed(report: Report) -> str:
    speed, flops = report.throughput, report.outcome.flops
    columns = (speed, speed.median, speed.whole_run)
    rows = [
        ["sequences per second", *(_rate(column.sequences_per_second) for column in columns)],
        ["tokens per second, padding counted", *(_rate(column.tokens_per_second) for column in columns)],
        ["executed FLOP/s", *(scaled(column.executed_flops_per_second, "FLOP/s") for column in columns)],
        [
            "dense-equivalent FLOP/s",
            *(scaled(column.dense_equivalent_flops_per_second, "FLOP/s") for column in columns),
        ],
    ]
    step = speed.step_seconds
    if step is None:
        how = "The run was too short to leave the first steps out: the columns are the same."
    else:
        resumed = step.resumed_steps_left_out
        gone_on = f", {number(resumed)} more in which it was resumed" if resumed else ""
        how = (
            f"A step took {1000 * step.mean:.1f} ms on average and {1000 * step.median:.1f} ms in the median. Mean and "
            f"median leave out the run's first {number(step.warmup_steps_left_out)} steps{gone_on}, evaluations and "
            "checkpoints; the mean contains the pattern updates, the median is the typical step; *whole run* divides "
            "by all time that passed."
        )
    executed, dense = flops.executed, flops.dense_equivalent
    if dense > 1.005 * executed:
        apart = (
            f"*Executed* counts the products that were really done, {scaled(executed, 'FLOP')} per sequence. "
            f"*Dense-equivalent* counts what a dense model of this shape would need for the same sequence, "
            f"{scaled(dense, 'FLOP')}, {dense / executed:.1f} times as much. Compare the hardware's peak with the "
            "first only; the second says how fast a dense run would have to be to keep up."
        )
    else:
        apart = f"Every product is dense here, so both counts are {scaled(executed, 'FLOP')} per sequence."
    places = report.outcome.config.data.max_predictions
    counted = (
        "Counted are the matrix products of a forward and a backward pass, those of padding, too: the encoder as in "
        "Appendix A.2 of the paper, the pooler and the heads, with a word's scores at "
        f"{number(report.outcome.decoded, 1)} of the {places} places for predictions of a sequence."
    )
    return join(
        "## How fast?",
        table(["", "mean", "median step", "whole run"], rows),
        how,
        f"{apart} {counted}",
        _stream(report),
    )


def _rate(value: float | None) -> str:
    return number(value, 1 if value is not None and value < 1000 else 0)


def _stream(report: Report) -> str:
    """How fast batches were made beside how fast they were used."""
    stream, used = report.outcome.stream_sequences_per_second, report.throughput.sequences_per_second
    if not stream or not used:
        return ""
    text = f"The data stream alone makes {number(stream, 0)} sequences/s, {stream / used:.1f} times what training used."
    return text if stream > 2 * used else text + " **That is close: training may be waiting for data.**"


def _time(report: Report) -> str:
    rows = []
    told = {phase: words for phase, words in PHASES.items() if phase != "exchange" or report.exchange}
    for phase, words in {**told, "other": "anything else (start, logging)"}.items():
        share = report.time_share[phase]
        bar = "`" + "#" * max(1, round(30 * share)) + "`" if share > 0.005 else ""
        rows.append([words, percent(share), bar])
    head = f"## Where did the time go?\n\nOf {format_duration(report.outcome.elapsed_seconds)} in all:"
    lines = table(["phase", "share", ""], rows).replace("| --: |\n", "| :-- |\n", 1)
    return f"{head}\n\n{lines}"


def _together(exchange: ExchangeNumbers | None) -> str:
    """Nothing of a process alone."""
    if exchange is None:
        return ""
    least, most = min(exchange.waited_share), max(exchange.waited_share)
    slowest = exchange.waited_share.index(least)
    told = (
        f"{exchange.ranks} ranks had equal parts of every batch. They waited for each other {percent(least)} (rank "
        f"{slowest}, the slowest) to {percent(most)} of the training time since they were started, so that together "
        f"they did the work of {exchange.ranks * exchange.efficiency:.2f} that never wait: a scaling efficiency of "
        f"{percent(exchange.efficiency)} as far as waiting goes."
    )
    sent = exchange.bytes_per_step
    if sent is None:
        return join("## How did the ranks work together?", told)
    rows = [
        ["encoder", scaled(sent.encoder, "B")],
        ["embeddings, tied to the decoder", scaled(sent.embeddings, "B")],
        ["heads", scaled(sent.heads, "B")],
        ["in all", scaled(sent.total, "B")],
        ["the same model, were it dense", scaled(sent.as_dense, "B")],
    ]
    ring = (
        f"In a ring each rank sends {2 * (exchange.ranks - 1) / exchange.ranks:.2f} times that, "
        f"{scaled(sent.on_the_wire(exchange.ranks), 'B')} a step."
    )
    return join("## How did the ranks work together?", told, table(["gradients of a step, per rank", ""], rows), ring)


def _size(outcome: RunOutcome) -> str:
    counts, process = outcome.parameters, "rank 0" if len(outcome.waited_share) > 1 else "the process"
    rows = [
        ["sparse weights, stored", number(counts.sparse)],
        ["the same weights, were they dense", number(counts.sparse_as_dense)],
        ["dense parameters (embeddings, biases, LayerNorm, heads)", number(counts.dense)],
        ["trained parameters in all", number(counts.total)],
        [f"peak memory of {process}", memory(outcome.peak_memory_bytes)],
    ]
    return "## How large?\n\n" + table(["", ""], rows)


def _pattern(report: Report, figures: Figures) -> str:
    pattern = report.pattern
    start_end = figure(
        figures,
        "pattern_start_end",
        "The blocks of one weight before and after training. Blue blocks are in the same place, orange ones are where "
        "the updates put the grey ones.",
    )
    allowed = report.outcome.config.sparsity.allow_removed
    if not report.outcome.parameters.sparse:
        return "## How did the pattern change?\n\nThere is no pattern: this run is dense."
    if not pattern.updates:
        return join("## How did the pattern change?", _unchanged(report), start_end)
    return join(
        "## How did the pattern change?",
        _updates(pattern, allowed),
        figure(
            figures,
            "pattern_updates",
            "Explored degrees of freedom (above), and how much each update moves and how much of it the next one takes "
            f"back (below).{' A block at a place just emptied has moved, too.' if allowed else ''}",
        ),
        start_end,
    )


def _unchanged(report: Report) -> str:
    """Where the pattern is from, as far as this run's settings and records say."""
    config = report.outcome.config
    if report.recorded_from and config.sparsity.method != "static":
        return (
            f"No update after step {number(report.recorded_from)} changed the pattern; those before it are not known."
        )
    begun = "was drawn at random at the start"
    if config.model.init:
        begun = "is the one that `model.init` and `sparsity.init_pattern` gave it at the start,"
    return f"The pattern {begun} and no update changed it."


def _updates(pattern: PatternNumbers, allow_removed: bool) -> str:
    blocks = f" blocks (of {number(pattern.blocks)})" if pattern.blocks is not None else " blocks"
    where = "at places that were free or just emptied," if allow_removed else "elsewhere,"
    done = f"removed the weakest{blocks} and put as many {where} {number(pattern.moved_total)} moves in all"
    if pattern.returned_total is not None:
        done += f", {number(pattern.returned_total)} of them to places just emptied"
    said = (
        f"{number(pattern.updates)} pattern update{'s' if pattern.updates > 1 else ''} "
        f"{done if pattern.moved_total else 'moved no block'}; the number of blocks never changes. At any "
        f"time {percent(pattern.density)} of the positions hold weights; over the whole run "
        f"{percent(pattern.explored_dof)} of a weight's positions were tried at least once, a mean over weights of any "
        "size (*explored degrees of freedom*, DOF)."
    )
    if pattern.removed_new is not None:
        said += (
            f" Of the blocks that an update added, the next one removed {percent(pattern.removed_new)} on average "
            "(*removed-new ratio*). The paper's best runs explore nearly all positions and remove few new blocks "
            "(Figure 5)."
        )
    if pattern.seconds_per_update is not None:
        found = ", finding the dense gradient's largest blocks included" if pattern.searched else ""
        said += f" An update took {1000 * pattern.seconds_per_update:.0f} ms{found}."
    if pattern.transfers:
        said += _transfers(pattern.transfers)
    return said


def _transfers(transfers: Mapping[str, int]) -> str:
    """What the last update moved between host and device, and how often the executable was compiled."""
    count = transfers["compilations"]
    return (
        f" The last one moved {number(transfers['bytes_down'])} bytes from the device and "
        f"{number(transfers['bytes_up'])} bytes to it; the training executable was compiled "
        f"{'once' if count == 1 else f'{count} times'} in the whole run."
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _details(outcome: RunOutcome) -> str:
    machine = "\n".join(f"- {key}: {value}" for key, value in asdict(outcome.machine).items())
    config = "\n".join(f"{key} = {value}" for key, value in _flat(to_plain(as_dict(outcome.config))))
    return join(
        f"## On which machine?\n\n{machine}",
        "## With which settings?",
        "\n".join(f"- no effect: `{line}`" for line in outcome.config.no_effect),
        f"<details><summary>every setting</summary>\n\n```\n{config}\n```\n\n</details>",
        "The numbers of this page are in `report.json`, every record of the run in `metrics.jsonl`.",
    )
