"""What follows from other settings where nothing, or a share of something, was written."""

from __future__ import annotations

from ipu_bert.lr_schedules import LR_SCHEDULES
from ipu_bert.settings import Config
from ipu_bert.sizes.shape import FamilySize
from sparse_ops.dynsparse.updater import steps_between

PAPER_WARMUP = 10_000  # steps, Appendix A


def resolve(config: Config) -> None:
    """Write out the defaults that follow from other settings, and the warm-up in steps; `auto` stays (automatic.py)."""
    model, optim, train, ipu = config.model, config.optim, config.train, config.ipu
    model.heads = model.heads or default_heads(config)
    model.intermediate_size = model.intermediate_size or FamilySize(model.layers, model.hidden_size).intermediate_size
    train.micro_batch_size = train.micro_batch_size or train.batch_size
    written = optim.warmup_steps
    optim.warmup_steps = default_warmup(config) if written is None else in_steps(config, written)
    if config.engine.name == "ipu" and ipu.layers_per_ipu != "auto":
        ipu.layers_per_ipu = ipu.layers_per_ipu or [model.layers]
        micro_batches = train.batch_size // (ipu.replicas * train.micro_batch_size)
        ipu.gradient_accumulation = ipu.gradient_accumulation or max(1, micro_batches)


def default_heads(config: Config) -> int:
    """One attention head for every 64 of the hidden size, as in the BERT family."""
    return max(1, FamilySize(config.model.layers, config.model.hidden_size).heads)


def default_warmup(config: Config) -> int:
    """Steps of warm-up: the paper's 10,000, or a tenth of a run that has no room for them."""
    return PAPER_WARMUP if longest_warmup(config) >= PAPER_WARMUP else _share(0.1, config.train.steps)


def longest_warmup(config: Config) -> int:
    """Most steps that the learning rate can warm up for; a decay to 0 needs at least one after them."""
    return config.train.steps - int(LR_SCHEDULES[config.optim.schedule](0.0) == 0.0)


def most_predictions(config: Config) -> int:
    """Tokens of a sequence that can be predicted: all but [CLS] and two [SEP]."""
    return config.data.sequence_length - 3


def wanted_predictions(config: Config) -> int:
    """Predictions that `data.mask_probability` asks of a full sequence (data/masking.py), as far as there is room."""
    share = round(config.data.mask_probability * config.data.sequence_length)
    return min(max(1, share), most_predictions(config))


def steps_to_update(config: Config) -> int:
    """Whole steps between the start and the stop of pattern updates."""
    return steps_between(config.sparsity.start, config.sparsity.stop, config.train.steps)


def in_steps(config: Config, warmup: float) -> float:
    """A warm-up as it may be written, a share of the run or steps, in steps; what is neither is left to the checks."""
    if 0 < warmup < 1:
        return _share(warmup, config.train.steps)
    return int(warmup) if float(warmup).is_integer() else warmup


def _share(share: float, steps: int) -> int:
    return int(share * steps + 0.5)
