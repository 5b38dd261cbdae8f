"""Whether a machine's memory can hold a run at all, asked before anything is built."""

from __future__ import annotations

from ipu_bert.settings import Config
from ipu_bert.sizes.footprint import FLOAT32_BYTES, memory_estimate, parameter_counts
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.sizes.weights import encoder_weights


def check_memory(config: Config, vocab_size: int, available: int) -> None:
    """ValueError when a run cannot fit `available` bytes; what it needs is counted from below.

    The torch engine holds weights, gradients and moments, and of each micro-batch at least every layer's input and the
    logits; an evaluation, in micro-batches too, takes less. With IPUs only the weights are counted, since all else may
    be elsewhere.
    """
    shape, weights = bert_shape(config.model, vocab_size), encoder_weights(config.model, config.sparsity)
    if config.engine.name == "ipu":
        held, working = 4 * parameter_counts(shape, weights).total, 0
    else:
        sequences = config.train.micro_batch_size
        assert sequences is not None
        held = memory_estimate(shape, weights, *FLOAT32_BYTES).total
        working = 4 * sequences * config.data.sequence_length * shape.layers * shape.hidden_size
        working += 4 * sequences * config.data.max_predictions * shape.vocab_size
    if held + working > available:
        raise ValueError(
            f"memory: expected a run that fits the {available / 1e9:,.1f} GB here, found {held / 1e9:,.1f} GB for "
            f"weights, gradients and moments and at least {working / 1e9:,.1f} GB for a micro-batch; "
            "try a smaller model or train.micro_batch_size"
        )
