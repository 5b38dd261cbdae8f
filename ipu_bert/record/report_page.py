"""The words of report.md. Every sentence about success or failure is chosen from the numbers."""

from __future__ import annotations

import math
from typing import Any, Mapping, Sequence

from ipu_bert.record.console import format_duration
from ipu_bert.stopwatch import PHASES

_PHASES = {**PHASES, "other": "anything else (start, logging)"}


def render_page(report: Mapping[str, Any]) -> str:
    """report.md as Markdown text, from the numbers of report.json."""
    parts = [
        _opening(report),
        _learning(report),
        _speed(report),
        _time(report),
        _size(report),
        _pattern(report),
        _details(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---------------------------------------------------------------- small words


def number(value: Any, digits: int = 3) -> str:
    """A decimal with thousands separators, or "not measured"."""
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def scaled(value: Any, unit: str) -> str:
    """1.23 G<unit>: three digits and a power of 1000."""
    if value is None:
        return "not measured"
    value = float(value)
    sizes = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    prefix, size = next((pair for pair in sizes if abs(value) >= pair[1]), ("", 1.0))
    value /= size
    return f"{value:.3g} {prefix}{unit}" if abs(value) < 999.5 else f"{value:,.0f} {prefix}{unit}"


def memory(value: Any) -> str:
    """Bytes as MiB or GiB."""
    if value is None:
        return "not measured"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def percent(value: Any, digits: int = 1) -> str:
    """A share as a percentage."""
    return "not measured" if value is None else f"{100 * value:.{digits}f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column left, the others right."""
    lines = [head, [":--"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(report: Mapping[str, Any], name: str, caption: str) -> str:
    file = (report.get("figures") or {}).get(name)
    return f"![{caption.split('.')[0]}]({file})\n\n*{caption}*" if file else ""


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


# ---------------------------------------------------------------- sections


def _opening(report: Mapping[str, Any]) -> str:
    model, parameters = report.get("model") or {}, report["parameters"]
    shape = ""
    if model.get("layers") and model.get("hidden_size"):
        shape = f" with {model['layers']} layers of width {model['hidden_size']}"
    sparsity, block = report["pattern"]["sparsity"], _setting(report, "sparsity", "block_size")
    if parameters.get("sparse"):
        in_blocks = f" in blocks of {block} x {block}" if block else ""
        kind = f"Its encoder weights are block-sparse: {percent(sparsity)} of their entries do not exist, "
        kind += "and the rest is "
        kind += f"kept{in_blocks}. No dense copy of them, or of their gradient, is ever made."
    else:
        kind = "All its weights are dense."
    corpus = _corpus(report.get("data") or {})
    return (
        f"# Run `{report['name']}`\n\n"
        f"A BERT{shape} was pre-trained for {number(report['steps'])} steps on "
        f"{number(report['sequences'])} sequences ({number(report['tokens'])} tokens) in "
        f"{format_duration(report['elapsed_seconds'] or 0)}. It had two tasks at once: to fill in "
        "masked words (masked LM, MLM) and to tell whether one text follows another (next sentence, NSP). "
        f"{kind}{corpus}"
    )


def _corpus(data: Mapping[str, Any]) -> str:
    """Documents, tokens and vocabulary; counts are given for the whole corpus or split by split."""
    splits = list((data.get("splits") or {}).values()) or [data]
    words = []
    for key in ("documents", "tokens"):
        if all(isinstance(split.get(key), int) for split in splits):
            words.append(f"{number(sum(split[key] for split in splits))} {key}")
    if data.get("vocab_size"):
        words.append(f"a vocabulary of {number(data['vocab_size'])} word pieces")
    return f" The corpus: {', '.join(words)}." if words else ""


def verdict(heldout: Mapping[str, Any]) -> str:
    """Did it learn, in one or two sentences: masked LM against word frequencies, in nats."""
    loss, entropy, gap = heldout.get("mlm_loss"), heldout.get("unigram_entropy"), heldout.get("below_unigram")
    if loss is None:
        return "**Unknown: there is no finite held-out loss**, so nothing can be said about what was learned."
    if gap is None:
        return (
            f"The held-out masked-LM loss is {loss:.3f} nats; without word frequencies to compare with, "
            "it cannot be said whether that is more than counting words."
        )
    if heldout["beats_unigram"]:
        return (
            f"**Yes: the model reads context.** Its held-out masked-LM loss, {loss:.3f} nats, is {gap:.3f} "
            f"below the {entropy:.3f} that word frequencies alone reach. It gives the hidden word "
            f"{math.exp(gap):.2f} times the probability (geometric mean) that a guess by frequency gives it."
        )
    if gap > 0:
        return (
            f"**Not clearly.** The held-out masked-LM loss, {loss:.3f} nats, is only {gap:.3f} below the "
            f"{entropy:.3f} of word frequencies alone: too little to say that the model uses context."
        )
    initial = heldout.get("initial_mlm_loss")
    nothing = initial is not None and loss >= initial - 0.01
    learned = "It is no better than the untrained model." if nothing else (
        "What it has learned so far is no more than which words are frequent."
    )  # fmt: skip
    return (
        f"**No: the model has NOT beaten word frequencies.** Its held-out masked-LM loss, {loss:.3f} nats, "
        f"is {-gap:.3f} above the {entropy:.3f} that a guess by word frequency reaches. {learned} Small "
        "models stay near that value for a while before they go on: train longer, or check the learning rate."
    )


def _learning(report: Mapping[str, Any]) -> str:
    held = report["heldout"]
    frequencies = f"{number(held['unigram_entropy'])} (word frequencies)"
    right = percent(held.get("mlm_accuracy")), percent(held.get("nsp_accuracy"))
    rows = [
        ["masked LM (MLM)", number(held["mlm_loss"]), frequencies, right[0]],
        ["next sentence (NSP)", number(held["nsp_loss"]), "0.693 (coin toss, ln 2)", right[1]],
    ]
    notes = []
    if held.get("initial_mlm_loss") is not None:
        notes.append(f"Before training the masked-LM loss was {held['initial_mlm_loss']:.3f}.")
    if held["nsp_learned"] is not None:
        notes.append(
            "Next-sentence prediction is better than a coin toss."
            if held["nsp_learned"]
            else "Next-sentence prediction has NOT moved clearly below a coin toss."
        )
    best = held.get("best_mlm_loss")
    if best is not None and held["mlm_loss"] is not None and held["mlm_loss"] > best + 0.05:
        notes.append(
            f"The best evaluation was {best:.3f} at step {number(held['best_step'])}; since then the "
            "held-out loss has risen, as it does when a model learns its training text by heart."
        )
    return _join(
        "## Did it learn?",
        verdict(held),
        table(["on held-out text", "loss [nats]", "to beat", "right answers"], rows),
        " ".join(notes),
        "Held-out documents are never trained on. *Word frequencies alone* is the unigram cross-entropy: "
        "the loss of a model that ignores the sentence and always answers with how frequent each word is.",
        _figure(
            report,
            "loss_curves",
            "Loss over training steps. Only below the dashed line has the model learned more than word "
            "frequencies (above) or a coin toss (below).",
        ),
    )


def _speed(report: Mapping[str, Any]) -> str:
    speed, flops, step = (
        report["throughput"],
        report["flops_per_sequence"],
        report["throughput"]["step_seconds"],
    )
    typical, whole = speed["median"], speed["whole_run"]
    rows = [
        [label, *(scaled_or_number(column[key], unit) for column in (speed, typical, whole))]
        for label, key, unit in (
            ("sequences per second", "sequences_per_second", ""),
            ("tokens per second", "tokens_per_second", ""),
            ("executed FLOP/s", "executed_flops_per_second", "FLOP/s"),
            ("dense-equivalent FLOP/s", "dense_equivalent_flops_per_second", "FLOP/s"),
        )
    ]
    if step is None:
        how = "The run was too short to leave the first steps out: the columns are the same."
    else:
        how = (
            f"A step took {1000 * step['mean']:.1f} ms on average and {1000 * step['median']:.1f} ms in "
            f"the median. Mean and median leave out the first {step['warmup_steps_left_out']} steps, "
            "evaluations and checkpoints; the mean contains the pattern updates, the median is the "
            "typical step; *whole run* divides by all time that passed."
        )
    executed, dense = flops.get("executed"), flops.get("dense_equivalent")
    if executed and dense and dense > 1.005 * executed:
        apart = (
            f"*Executed* counts the products that were really done, {scaled(executed, 'FLOP')} per sequence. "
            f"*Dense-equivalent* counts what a dense model of this shape would need for the same sequence, "
            f"{scaled(dense, 'FLOP')}, {dense / executed:.1f} times as much. Compare the hardware's peak "
            "with the first only; the second says how fast a dense run would have to be to keep up."
        )
    elif executed:
        apart = f"Every product is dense here, so both counts are {scaled(executed, 'FLOP')} per sequence."
    else:
        apart = ""
    counted = (
        "Counted are the matrix products of a forward and a backward pass: the encoder as in Appendix A.2 of the "
        "paper, and the pooler and the heads."
    )
    if flops.get("encoder"):
        counted += f" The encoder alone, which is what the paper counts: {scaled(flops['encoder'], 'FLOP')}."
    return _join(
        "## How fast?",
        table(["", "mean", "median step", "whole run"], rows),
        how,
        f"{apart} {counted}".strip(),
        _stream(report),
    )


def scaled_or_number(value: Any, unit: str) -> str:
    """FLOP/s with a prefix, counts as plain numbers."""
    return scaled(value, unit) if unit else number(value, 1 if value is not None and value < 1000 else 0)


def _stream(report: Mapping[str, Any]) -> str:
    stream = (report.get("data") or {}).get("stream_sequences_per_second")
    used = report["throughput"]["sequences_per_second"]
    if not stream or not used:
        return ""
    text = f"The data stream alone makes {number(float(stream), 0)} sequences/s, "
    text += f"{stream / used:.1f} times what training used."
    return text if stream > 2 * used else text + " **That is close: training may be waiting for data.**"


def _time(report: Mapping[str, Any]) -> str:
    shares = report["time_share"]
    rows = []
    for phase, words in _PHASES.items():
        share = shares.get(phase)
        if share is not None:
            bar = "`" + "#" * max(1, round(30 * share)) + "`" if share > 0.005 else ""
            rows.append([words, percent(share), bar])
    head = f"## Where did the time go?\n\nOf {format_duration(report['elapsed_seconds'] or 0)} in all:"
    lines = table(["phase", "share", ""], rows).replace("| --: |\n", "| :-- |\n", 1)
    return f"{head}\n\n{lines}"


def _size(report: Mapping[str, Any]) -> str:
    parameters = report["parameters"]
    sparse, equal = parameters.get("sparse"), parameters.get("sparse_dense_equivalent")
    rows = [
        ["sparse weights, stored", number(sparse)],
        ["the same weights, were they dense", number(equal)],
        ["dense parameters (embeddings, biases, LayerNorm, heads)", number(parameters.get("dense"))],
        ["trained parameters in all", number(parameters.get("total"))],
        ["peak memory of the process", memory(report["peak_memory_bytes"])],
    ]
    return "## How large?\n\n" + table(["", ""], rows)


def _pattern(report: Mapping[str, Any]) -> str:
    pattern = report["pattern"]
    start_end = _figure(
        report,
        "pattern_start_end",
        "The blocks of one weight before and after training. Blue blocks are in the same place, orange "
        "ones are where the updates put the grey ones.",
    )
    if not report["parameters"].get("sparse"):
        return "## How did the pattern change?\n\nThere is no pattern: this run is dense."
    if not pattern["updates"]:
        static = "The pattern was drawn at random at the start and no update changed it."
        return _join("## How did the pattern change?", static, start_end)
    blocks = f" blocks (of {number(pattern['blocks'])})" if pattern["blocks"] is not None else " blocks"
    said = (
        f"{number(pattern['updates'])} pattern update{'s' if pattern['updates'] > 1 else ''} removed the "
        f"weakest{blocks} and put as many elsewhere, {number(pattern['moved_total'])} moves in all; the "
        f"number of blocks never changes. At any time {percent(pattern['density'])} of the positions hold "
        f"weights; over the whole run {percent(pattern['explored_dof'])} were tried at least once "
        "(*explored degrees of freedom*, DOF)."
    )
    if pattern["removed_new"] is not None:
        said += (
            f" Of the blocks that an update added, the next one removed {percent(pattern['removed_new'])} "
            "on average (*removed-new ratio*). The paper's best runs explore nearly all positions and "
            "remove few new blocks (Figure 5)."
        )
    if pattern["seconds_per_update"] is not None:
        said += f" An update took {1000 * pattern['seconds_per_update']:.0f} ms."
    if pattern.get("transfers"):
        said += _transfers(pattern["transfers"])
    return _join(
        "## How did the pattern change?",
        said,
        _figure(
            report,
            "pattern_updates",
            "Explored degrees of freedom (above), and how much each update moves and how much of it the "
            "next one takes back (below).",
        ),
        start_end,
    )


def _transfers(transfers: Mapping[str, Any]) -> str:
    """What the last update moved between host and device, and how often the executable was compiled."""
    count = transfers["compilations"]
    return (
        f" The last one moved {number(transfers['bytes_down'])} bytes from the device and "
        f"{number(transfers['bytes_up'])} bytes to it; the training executable was compiled "
        f"{'once' if count == 1 else f'{count} times'} in the whole run."
    )


def _setting(report: Mapping[str, Any], section: str, key: str) -> Any:
    return ((report.get("config") or {}).get(section) or {}).get(key)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _details(report: Mapping[str, Any]) -> str:
    machine = "\n".join(f"- {key}: {value}" for key, value in _flat(report.get("machine") or {}))
    config = "\n".join(f"{key} = {value}" for key, value in _flat(report.get("config") or {}))
    return _join(
        f"## On which machine?\n\n{machine}" if machine else "",
        f"## With which settings?\n\n<details><summary>every setting</summary>\n\n```\n{config}\n```\n\n</details>"
        if config
        else "",
        "The numbers of this page are in `report.json`, every record of the run in `metrics.jsonl`.",
    )
