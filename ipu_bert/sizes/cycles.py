"""Cycles of an IPU for a micro-batch, forward and backward: an estimate to compare placements by, not a time.

Sparse products: what popsparse's planner expects (padding.py). Dense products, attention and heads: their FLOPs at the
peak rate. Nothing else is known here and nothing else is counted: LayerNorm, GELU, dropout, recomputation, exchange
between IPUs, the optimizer and its state's way from the host and back, the all-reduce over replicas.
"""

from __future__ import annotations

from typing import Sequence

from ipu_bert.settings import Config
from ipu_bert.sizes.flops import attention_flops, head_flops, linear_flops
from ipu_bert.sizes.padding import figure_of, product_of
from ipu_bert.sizes.shape import BertShape
from ipu_bert.sizes.weights import EncoderWeight

TILES = 1472
PEAK = {"float16": TILES * 128, "float32": TILES * 32}  # FLOPs a cycle of a Mk2 IPU: 64 and 16 multiply-adds a tile


def layer_cycles(config: Config, shape: BertShape, weights: Sequence[EncoderWeight]) -> float:
    """Of one encoder layer with these weights."""
    length = config.data.sequence_length
    sparse = sum(figure_of(product_of(weight, config))[0].cycles for weight in weights if weight.is_sparse)
    dense = linear_flops(sum(weight.size for weight in weights if not weight.is_sparse), length)
    return sparse + _at_peak(config, dense + attention_flops(shape.hidden_size, length))


def head_cycles(config: Config, shape: BertShape) -> float:
    """Of pooler, NSP and MLM head."""
    return _at_peak(config, head_flops(shape, config.data.max_predictions))


def _at_peak(config: Config, flops: float) -> float:
    assert config.train.micro_batch_size is not None
    return config.train.micro_batch_size * flops / PEAK[config.precision.compute]
