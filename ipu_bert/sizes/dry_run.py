"""Everything about a run before it starts: model, sparsity, parameters, FLOPs, memory, steps and data."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import Any, Sequence

from ipu_bert.data.filling import Filling
from ipu_bert.data.quality import TextQuality
from ipu_bert.data.token_files import TokenFiles
from ipu_bert.settings import Config
from ipu_bert.sizes.disk import disk_need
from ipu_bert.sizes.exchange import step_bytes
from ipu_bert.sizes.flops import paper_flops, sequence_flops
from ipu_bert.sizes.footprint import FLOAT32_BYTES, memory_estimate, parameter_counts
from ipu_bert.sizes.placement import Placement
from ipu_bert.sizes.placement import render as render_placement
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.sizes.weights import encoder_weights


def plan(
    config: Config,
    *,
    files: TokenFiles | None,
    quality: TextQuality | None,
    filled: Filling | None,
    decoded: float,
    vocab_size: int,
    placement: Placement | None,
    learning_rate: float,
    updates: Sequence[int],
    ranks: int,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The plan of a run as plain values. `flops_per_sequence` is the paper's count (Appendix A.2), forward + backward.

    files: the prepared corpus, if it is there; quality: what became of it. filled: how full its sequences are.
    decoded: as in `sequence_flops`, where native kernels can be had. placement: on IPUs, where the engine is theirs.
    updates: the steps after which patterns change; the plan has those up to `train.stop_at`, as it has sequences and
    tokens. ranks: processes that share each step. warnings: of the text, known before it is prepared. Raises
    ValueError where a weight cannot have its sparsity.
    """
    data, train = config.data, config.train
    shape = bert_shape(config.model, vocab_size)
    weights = encoder_weights(config.model, config.sparsity)
    return {
        "name": config.run.name,
        "method": config.sparsity.method,
        "model": vars(shape),
        "flops_per_sequence": paper_flops(shape, weights, data.sequence_length),
        "flops": sequence_flops(shape, weights, data.sequence_length, data.max_predictions, decoded).to_dict(),
        "decoded": decoded,
        "parameters": parameter_counts(shape, weights).to_dict(),
        "memory": memory_estimate(shape, weights, *FLOAT32_BYTES).to_dict(),
        "step_bytes": step_bytes(parameter_counts(shape, weights)).to_dict(),
        "disk": disk_need(config, shape, weights, files.manifest if files else None).to_dict(),
        "steps": train.steps,
        "stop_at": train.last_step,
        "batch_size": train.batch_size,
        "micro_batch_size": train.micro_batch_size,
        "ranks": ranks,
        "warmup_steps": config.optim.warmup_steps,
        "sequences": train.last_step * train.batch_size,
        "tokens": train.last_step * train.batch_size * data.sequence_length,
        "learning_rate": learning_rate,
        "pattern_updates": [step for step in updates if step <= train.last_step],
        "data": _data(config, files, quality, filled, shape.vocab_size, warnings),
        "layers": [
            {
                "name": weight.name,
                "shape": list(weight.shape),
                "segments": weight.segments,
                "sparsity": 1.0 - weight.density,
                "blocks": weight.blocks or None,
            }
            for weight in weights
        ],
        "gave_way": config.gave_way,
        "no_effect": config.no_effect,
        "chosen": config.chosen,
        "run_dir": config.run.dir,
        "placement": placement.to_dict() if placement else None,
        "placement_text": render_placement(placement) if placement else "",
    }


def _data(
    config: Config,
    files: TokenFiles | None,
    quality: TextQuality | None,
    filled: Filling | None,
    vocab_size: int,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The text: settings, where it is prepared, and what became of it."""
    warnings = [*warnings, *(quality.warnings() if quality else []), *(filled.warnings() if filled else [])]
    return {
        **vars(config.data),
        "vocab_size": vocab_size,
        "prepared": files.directory if files else None,
        "splits": files.manifest["splits"] if files else None,
        "unigram_entropy": files.unigram_entropy if files else None,
        "quality": asdict(quality) if quality else None,
        "filling": asdict(filled) if filled else None,
        "said": [*(quality.told() if quality else []), *(f"warning: {line}" for line in warnings)],
    }


def render(found: dict[str, Any]) -> str:
    """The plan as text for a reader."""
    model, parameters, memory, data = found["model"], found["parameters"], found["memory"], found["data"]
    updates = found["pattern_updates"]
    lines = [
        f"{found['name']}: {found['method']} BERT, {model['layers']} layers, hidden {model['hidden_size']}, "
        f"feed-forward {model['intermediate_size']}, {model['heads']} heads, dropout {model['dropout']}",
        "",
        f"data        {data['source']} {data['path'] if data['source'] == 'files' else ''}".rstrip()
        + f", vocabulary of {data['vocab_size']}, sequences of {data['sequence_length']}; {_prepared(data)}",
        *(f"text        {line}" for line in data["said"]),
        f"steps       {found['stop_at']:,} of {found['steps']:,}, {found['batch_size']} sequences each "
        f"({found['micro_batch_size']} at a time{_on_ranks(found)}): {found['sequences']:,} sequences, "
        f"{found['tokens']:,} tokens, padding counted",
        f"learning    peak rate {found['learning_rate']:.3g} after {found['warmup_steps']:,} steps of warm-up",
        f"patterns    {len(updates)} updates" + (f", after steps {_shorten(updates)}" if updates else ""),
        f"parameters  {parameters['total']:,}: {parameters['sparse']:,} block-sparse (in place of "
        f"{parameters['sparse_as_dense']:,}), {parameters['dense']:,} dense",
        f"FLOPs       {found['flops_per_sequence']:.4g} a sequence, forward and backward, as the paper counts; "
        f"{found['flops']['executed']:.4g} with heads (predictions: {found['decoded']:.3g}), "
        f"{found['flops']['dense_equivalent']:.4g} if all were dense",
        f"memory      {_megabytes(memory['total'])} for weights, gradients and moments, activations not counted; "
        f"sparse weights {_megabytes(memory['sparse_weights'] + memory['sparse_gradients'] + memory['sparse_moments'])}"
        f" and their index {_megabytes(memory['index'])}",
        *_exchange_lines(found),
        *_disk_lines(found["disk"], found["run_dir"], data["dir"]),
        *(f"gave way    {line}" for line in found["gave_way"]),
        *(f"no effect   {line}" for line in found["no_effect"]),
        *(f"chosen      {line}" for line in found["chosen"]),
        f"goes to     {found['run_dir']}",
        *([f"goes on     from {found['goes_on_from']}"] if found.get("goes_on_from") else []),
        "",
        *_weight_table(found["layers"]),
    ]
    return "\n".join([*lines, "", found["placement_text"]] if found["placement_text"] else lines)


def _on_ranks(found: dict[str, Any]) -> str:
    ranks = found["ranks"]
    return f", on {ranks} ranks with {found['batch_size'] // ranks} each" if ranks > 1 else ""


def _exchange_lines(found: dict[str, Any]) -> list[str]:
    """What ranks exchange, where there are several on CPUs."""
    sent, several = found["step_bytes"], found["ranks"] > 1 and not found["placement"]
    parts = f"{_megabytes(sent['encoder'])} encoder, {_megabytes(sent['embeddings'])} embeddings"
    total = f"{_megabytes(sent['total'])} of gradients a rank and step: {parts}"
    return [f"exchange    {total}; dense {_megabytes(sent['as_dense'])}"] if several else []


def _disk_lines(disk: dict[str, Any], run_dir: str, data_dir: str) -> list[str]:
    """What checkpoints and text need, what is free, and a warning where it does not fit."""
    text = "not known until it is prepared" if disk["prepared_bytes"] is None else _megabytes(disk["prepared_bytes"])
    lines = [
        f"disk        checkpoints {_megabytes(disk['checkpoints_bytes'])}: at most {disk['checkpoints']} at a time of "
        f"{_megabytes(disk['checkpoint_bytes'])}; free for {run_dir}: {_free(disk['run_free'])}",
        f"            prepared text {text}; free for {data_dir}: {_free(disk['data_free'])}",
    ]
    if not disk["fits"]:
        lines.append("warning     the checkpoints do not fit: lower checkpoint.keep, or choose another run.dir")
    return lines


def _free(size: int | None) -> str:
    return "not known" if size is None else _megabytes(size)


def _weight_table(layers: list[dict[str, Any]]) -> list[str]:
    """The encoder's weights; neighbouring layers that are alike are one group of rows."""
    numbered = groupby(layers, key=lambda weight: int(weight["name"].split("layer.")[1].split(".")[0]))
    groups: list[tuple[int, int, list[tuple[str, str]]]] = []  # first and last layer, (kind of weight, what it has)
    for number, weights in numbered:
        rows = [(weight["name"].split(f"layer.{number}.")[1], _weight_text(weight)) for weight in weights]
        if groups and groups[-1][2] == rows:
            groups[-1] = (groups[-1][0], number, rows)
        else:
            groups.append((number, number, rows))
    lines = [f"{'encoder weight':<38} {'shape':>12} {'blocks':>8} {'sparsity':>9}"]
    for first, last, rows in groups:
        which = f"layer {first}" if first == last else f"layers {first}-{last}"
        lines += [f"{which + ', ' + kind:<38} {text}" for kind, text in rows]
    return lines


def _weight_text(weight: dict[str, Any]) -> str:
    shape = "x".join(map(str, weight["shape"]))
    return f"{shape:>12} {weight['blocks'] or 'dense':>8} {weight['sparsity']:>9.4f}"


def _prepared(data: dict[str, Any]) -> str:
    if not data["prepared"]:
        return "not prepared yet"
    training = data["splits"]["train"]
    return f"{training['documents']:,} training documents, {training['tokens']:,} tokens in {data['prepared']}"


def _shorten(steps: list[int]) -> str:
    shown = [f"{step:,}" for step in steps]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", shown[-1]])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
