"""From a checked config to the objects of a run; the only place where settings become arguments."""

from __future__ import annotations

import math
from typing import Any, Callable

import torch

from ipu_bert.config import Config
from ipu_bert.data.batches import BatchStream
from ipu_bert.data.prepare import find_prepared, prepare
from ipu_bert.data.token_files import TokenFiles
from ipu_bert.dynsparse.updater import PatternUpdater
from ipu_bert.engines.base import Engine
from ipu_bert.model import BertForPreTraining, LinearFactory, sparse_linear
from ipu_bert.optim import DENSE_OPTIMA, constant_schedule, dense_learning_rate, linear_schedule, sparse_learning_rate
from ipu_bert.precision import Precision
from ipu_bert.record.metrics import Stopwatch
from ipu_bert.sizes.distribution import sparsity_by_weight
from ipu_bert.sizes.placement import Placement, place
from ipu_bert.sizes.shape import FAMILY, BertShape, EncoderWeight, encoder_weights
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.pattern import BlockPattern

NORMS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


def open_data(config: Config, progress: bool) -> TokenFiles:
    """Prepare the corpus, or open it where it has been prepared before."""
    data = config.data
    return prepare(data.source, data.dir, workers=data.workers or None, progress=progress, **_corpus(config))


def find_data(config: Config) -> tuple[str, TokenFiles | None]:
    """Where the corpus is or will be prepared, and its token files if they are there; nothing is made."""
    return find_prepared(config.data.source, config.data.dir, **_corpus(config))


def _corpus(config: Config) -> dict[str, Any]:
    data = config.data
    return {
        "paths": [data.path] if isinstance(data.path, str) and data.path else data.path,
        "column": data.column,
        "vocab_size": data.vocab_size,
        "vocab_file": data.tokenizer or None,
        "heldout_fraction": data.heldout_fraction,
    }


def make_stream(config: Config, files: TokenFiles, split: str) -> BatchStream:
    """The batches of one split; held-out ones do not depend on the run's seed."""
    data = config.data
    return BatchStream(
        files,
        split,
        batch_size=config.train.batch_size,
        sequence_length=data.sequence_length,
        max_predictions=data.max_predictions,
        mask_probability=data.mask_probability,
        whole_word=data.whole_word_masking,
        short_sequence_probability=data.short_sequence_probability,
        seed=config.run.seed if split == "train" else 0,
    )


def bert_shape(config: Config, vocab_size: int) -> BertShape:
    """The model's sizes."""
    model = config.model
    return BertShape(
        layers=model.layers,
        hidden_size=model.hidden_size,
        heads=model.heads,
        intermediate_size=model.intermediate_size,
        vocab_size=vocab_size,
        max_positions=model.max_positions,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        layer_norm_eps=model.layer_norm_eps,
        initializer_range=model.initializer_range,
    )


def weights(config: Config) -> list[EncoderWeight]:
    """The encoder's weight matrices."""
    model = config.model
    return encoder_weights(model.layers, model.hidden_size, model.intermediate_size)


def weight_sparsity(config: Config) -> dict[str, float]:
    """Sparsity by weight; a weight that is not named is dense."""
    sparsity = config.sparsity
    if sparsity.method == "dense":
        return {}
    return sparsity_by_weight(weights(config), sparsity.sparsity, sparsity.distribution, sparsity.layers)


def learning_rate(config: Config) -> float:
    """The peak learning rate: as given, or Eq. 3 from the dense optimum of this size."""
    optim, model = config.optim, config.model
    if not isinstance(optim.lr, str):
        return optim.lr
    dense_lr = optim.dense_lr
    if dense_lr is None:
        names = {size: name for name, size in FAMILY.items()}
        name = names.get((model.layers, model.hidden_size))
        dense_lr = DENSE_OPTIMA[name] if name else dense_learning_rate(sum(weight.size for weight in weights(config)))
    return sparse_learning_rate(dense_lr, 0.0 if config.sparsity.method == "dense" else config.sparsity.sparsity)


def schedule(config: Config) -> Callable[[int], float]:
    """Factor of the learning rate after so many steps."""
    optim = config.optim
    assert isinstance(optim.warmup_steps, int)
    if optim.schedule == "constant":
        return constant_schedule(optim.warmup_steps)
    return linear_schedule(config.train.steps, optim.warmup_steps)


def make_updater(config: Config) -> PatternUpdater | None:
    """What changes patterns, where the method is dynamic."""
    sparsity = config.sparsity
    if sparsity.method != "dynsparse":
        return None
    return PatternUpdater(
        updates=sparsity.updates,
        total_steps=config.train.steps,
        pruning_ratio=sparsity.pruning_ratio,
        seed=config.run.seed,
        schedule=sparsity.schedule,
        growth=sparsity.growth,
        norm=NORMS[sparsity.norm],
        allow_removed=sparsity.allow_removed,
        start=sparsity.start,
        stop=sparsity.stop,
    )


def _linear(config: Config) -> LinearFactory:
    return sparse_linear(
        config.sparsity.block_size, weight_sparsity(config), config.run.seed, kernel=config.engine.kernel
    )


def make_model(config: Config, vocab_size: int) -> BertForPreTraining:
    """BERT with its starting weights and patterns, which depend on the seed alone."""
    return BertForPreTraining(bert_shape(config, vocab_size), _linear(config), seed=config.run.seed)


def starting_pattern(config: Config, name: str) -> BlockPattern:
    """The pattern that a sparse weight has before the first step."""
    weight = next(weight for weight in weights(config) if weight.name == name)
    layer = _linear(config)(name, weight.shape[1], weight.shape[0], weight.segments)
    assert isinstance(layer, BlockSparseLinear)
    return layer.pattern


def make_placement(config: Config, vocab_size: int) -> Placement:
    """Layers on IPUs, for `engine.name: ipu`."""
    ipu, train = config.ipu, config.train
    assert train.micro_batch_size is not None
    return place(
        bert_shape(config, vocab_size),
        weight_sparsity(config),
        config.sparsity.block_size,
        layers_per_ipu=ipu.layers_per_ipu,
        replicas=ipu.replicas,
        gradient_accumulation=ipu.gradient_accumulation,
        micro_batch_size=train.micro_batch_size,
        batch_size=train.batch_size,
        sequence_length=config.data.sequence_length,
        max_predictions=config.data.max_predictions,
        half=config.precision.compute == "float16",
        recompute=ipu.recompute,
        optimizer_off_chip=ipu.optimizer_off_chip,
        optimizer_sharded=ipu.optimizer_sharded,
        vocabulary_parts=ipu.vocabulary_parts,
    )


def make_engine(config: Config, vocab_size: int, timer: Stopwatch) -> Engine:
    """The engine that the config names, with a model at its start."""
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    make = _ipu_engine if config.engine.name == "ipu" else _torch_engine
    return make(config, vocab_size, timer)


def _optimizer(config: Config) -> dict[str, Any]:
    """What every engine is told about learning rate, AdamW and regularization."""
    optim = config.optim
    return {
        "lr": learning_rate(config),
        "schedule": schedule(config),
        "betas": (optim.beta1, optim.beta2),
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
        "group_lasso": optim.group_lasso,
        "clip_norm": optim.clip_norm,
    }


def _ipu_engine(config: Config, vocab_size: int, timer: Stopwatch) -> Engine:
    from ipu_bert.engines.ipu.build import build_ipu_engine

    placement = make_placement(config, vocab_size)
    if placement.problems:
        raise ValueError("; ".join(placement.problems))
    return build_ipu_engine(
        make_model(config, vocab_size),
        config.engine.device,
        config.ipu,
        micro_batch_size=config.train.micro_batch_size or config.train.batch_size,
        half=config.precision.compute == "float16",
        seed=config.run.seed,
        **_optimizer(config),
        loss_scale=config.precision.loss_scale,
        sequence_length=config.data.sequence_length,
        timer=timer,
    )


def _torch_engine(config: Config, vocab_size: int, timer: Stopwatch) -> Engine:
    from ipu_bert.engines.torch_engine import TorchEngine

    assert config.train.micro_batch_size is not None
    return TorchEngine(
        make_model(config, vocab_size),
        **_optimizer(config),
        micro_batch_size=config.train.micro_batch_size,
        precision=Precision(config.precision.compute, config.precision.loss_scale),
        block_norm=NORMS[config.sparsity.norm],
        seed=config.run.seed,
        timer=timer,
    )
