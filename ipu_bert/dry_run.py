"""Everything about a run before it starts: model, sparsity, parameters, FLOPs, memory, steps and data."""

from __future__ import annotations

from typing import Any

from ipu_bert import assemble
from ipu_bert.config import Config, ConfigError
from ipu_bert.sizes.flops import actual_sparsity, block_total, encoder_flops, sequence_flops
from ipu_bert.sizes.footprint import memory_estimate, parameter_counts
from ipu_bert.sizes.placement import render as render_placement


def plan(config: Config) -> dict[str, Any]:
    """The plan of a run as plain values. `flops_per_sequence` is the paper's count (Appendix A.2), forward + backward.

    Until the corpus is prepared, its vocabulary counts as large as the config asks for.
    Raises ValueError where a weight cannot have its sparsity, or a file that is to be read cannot be.
    """
    folder, files = assemble.find_data(config)
    shape = assemble.bert_shape(config, files.vocab_size if files else config.data.vocab_size)
    sparsity, block_size = assemble.weight_sparsity(config), config.sparsity.block_size
    data, train, model = config.data, config.train, config.model
    executed = actual_sparsity(assemble.weights(config), sparsity, block_size)
    paper = encoder_flops(model.layers, model.hidden_size, model.intermediate_size, data.sequence_length, sparsity)
    whole = sequence_flops(shape, data.sequence_length, data.max_predictions, executed)
    updater = assemble.make_updater(config)
    placement = assemble.make_placement(config, config.data.vocab_size) if config.engine.name == "ipu" else None
    if placement is not None and placement.problems:
        raise ConfigError(placement.problems)
    return {
        "name": config.run.name,
        "method": config.sparsity.method,
        "model": vars(shape),
        "flops_per_sequence": paper.encoder,
        "flops": whole.to_dict(),
        "parameters": parameter_counts(shape, sparsity, block_size).to_dict(),
        "memory": memory_estimate(shape, sparsity, block_size).to_dict(),
        "steps": train.steps,
        "stop_at": train.stop_at or train.steps,
        "batch_size": train.batch_size,
        "micro_batch_size": train.micro_batch_size,
        "sequences": train.steps * train.batch_size,
        "tokens": train.steps * train.batch_size * data.sequence_length,
        "learning_rate": assemble.learning_rate(config),
        "pattern_updates": sorted(updater.ratios) if updater else [],
        "data": {
            **vars(data),
            "vocab_size": shape.vocab_size,
            "prepared": folder if files else None,
            "splits": files.manifest["splits"] if files else None,
            "unigram_entropy": files.unigram_entropy if files else None,
        },
        "layers": [
            {
                "name": weight.name,
                "shape": list(weight.shape),
                "segments": weight.segments,
                "sparsity": executed.get(weight.name, 0.0),
                "blocks": block_total(weight, sparsity[weight.name], block_size) if weight.name in executed else None,
            }
            for weight in assemble.weights(config)
        ],
        "gave_way": config.gave_way,
        "run_dir": config.run.dir,
        "placement": placement.to_dict() if placement else None,
        "placement_text": render_placement(placement) if placement else "",
    }


def render(found: dict[str, Any]) -> str:
    """The plan as text for a reader."""
    model, parameters, memory, data = found["model"], found["parameters"], found["memory"], found["data"]
    updates = found["pattern_updates"]
    lines = [
        f"{found['name']}: {found['method']} BERT, {model['layers']} layers, hidden {model['hidden_size']}, "
        f"feed-forward {model['intermediate_size']}, {model['heads']} heads, dropout {model['dropout']}",
        "",
        f"data        {data['source']} {data['path'] or ''}".rstrip()
        + f", vocabulary of {data['vocab_size']}, sequences of {data['sequence_length']}; {_prepared(data)}",
        f"steps       {found['stop_at']:,} of {found['steps']:,}, {found['batch_size']} sequences each "
        f"({found['micro_batch_size']} at a time): {found['sequences']:,} sequences, {found['tokens']:,} tokens",
        f"learning    peak rate {found['learning_rate']:.3g}",
        f"patterns    {len(updates)} updates" + (f", after steps {_shorten(updates)}" if updates else ""),
        f"parameters  {parameters['total']:,}: {parameters['sparse']:,} block-sparse (in place of "
        f"{parameters['sparse_as_dense']:,}), {parameters['dense']:,} dense",
        f"FLOPs       {found['flops_per_sequence']:.4g} a sequence, forward and backward, as the paper counts; "
        f"{found['flops']['executed']:.4g} with heads, {found['flops']['dense_equivalent']:.4g} if all were dense",
        f"memory      {_megabytes(memory['total'])} for weights, gradients and moments, activations not counted; "
        f"sparse weights {_megabytes(memory['sparse_weights'] + memory['sparse_gradients'] + memory['sparse_moments'])}"
        f" and their index {_megabytes(memory['index'])}",
        *(f"gave way    {line}" for line in found["gave_way"]),
        f"goes to     {found['run_dir']}",
        "",
        f"{'encoder weight':<48} {'shape':>12} {'blocks':>8} {'sparsity':>9}",
    ]
    for layer in found["layers"]:
        shape = "x".join(map(str, layer["shape"]))
        lines.append(f"{layer['name']:<48} {shape:>12} {layer['blocks'] or 'dense':>8} {layer['sparsity']:>9.4f}")
    return "\n".join([*lines, "", found["placement_text"]] if found["placement_text"] else lines)


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
