"""What follows from other settings where nothing was written."""

from __future__ import annotations

from ipu_bert.settings import Config


def resolve(config: Config) -> None:
    """Write out the defaults that follow from other settings."""
    model, train, ipu = config.model, config.train, config.ipu
    model.heads = model.heads or max(1, model.hidden_size // 64)
    model.intermediate_size = model.intermediate_size or 4 * model.hidden_size
    train.micro_batch_size = train.micro_batch_size or train.batch_size
    if config.engine.name == "ipu":
        ipu.layers_per_ipu = ipu.layers_per_ipu or [model.layers]
        micro_batches = train.batch_size // (ipu.replicas * train.micro_batch_size)
        ipu.gradient_accumulation = ipu.gradient_accumulation or max(1, micro_batches)
