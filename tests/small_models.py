"""Small models for tests: every setting has a value here, and each test changes the ones that it is about."""

from __future__ import annotations

from typing import Any, Sequence

from torch import nn

from ipu_bert.engines.ipu.options import IpuRun
from ipu_bert.model import BertForPreTraining, dense_linear, sparse_linear
from ipu_bert.optim import Optimization
from ipu_bert.settings import SparsitySettings
from ipu_bert.sizes.shape import BertShape, EncoderSize
from ipu_bert.sizes.weights import EncoderWeight, encoder_weights
from sparse_ops.dynsparse.grow import GROW_RULES
from sparse_ops.dynsparse.schedules import constant
from sparse_ops.dynsparse.updater import UpdatePlan
from sparse_ops.norms import l1


def make_shape(**changes: Any) -> BertShape:
    """A shape without dropout; by default 1 x 32 with two heads."""
    sizes = {"layers": 1, "hidden_size": 32, "heads": 2, "intermediate_size": 64, "vocab_size": 50, "max_positions": 16}
    fixed = {"type_vocab": 2, "dropout": 0.0, "attention_dropout": 0.0, "layer_norm_eps": 1e-12}
    return BertShape(**{**sizes, **fixed, "initializer_range": 0.02, **changes})


def family_shape(size: EncoderSize) -> BertShape:
    """A member of the BERT family with bert-base-uncased's vocabulary."""
    return make_shape(
        layers=size.layers,
        hidden_size=size.hidden_size,
        heads=size.hidden_size // 64,
        intermediate_size=size.intermediate_size,
        vocab_size=30522,
        max_positions=512,
    )


def make_weights(
    size: EncoderSize, sparsity: float, block_size: int = 16, layers: Sequence[str] = ("*",)
) -> tuple[EncoderWeight, ...]:
    """The encoder's weights, those whose names match `layers` of this sparsity; all dense at sparsity 0."""
    settings = SparsitySettings(
        method="static" if sparsity else "dense", sparsity=sparsity, block_size=block_size, layers=list(layers)
    )
    return encoder_weights(size, settings)


def dense_model(shape: BertShape, seed: int = 0) -> BertForPreTraining:
    """The dense model at its start."""
    return BertForPreTraining(shape, dense_linear, seed, kernel="auto")


def sparse_model(
    shape: BertShape, sparsity: float, block_size: int, seed: int = 0, layers: Sequence[str] = ("*",)
) -> BertForPreTraining:
    """The sparse model at its start."""
    weights = make_weights(shape, sparsity, block_size, layers)
    return BertForPreTraining(shape, sparse_linear(weights, seed, kernel="auto"), seed, kernel="auto")


def with_tanh_gelu(model: BertForPreTraining) -> BertForPreTraining:
    """The model with the GELU that IPUs have, to compare them with; changed in place."""
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
    return model


def make_optimization(**changes: Any) -> Optimization:
    """AdamW with a constant rate of 0.01, decay 0.01 and clipping at 1."""
    values = {"lr": 1e-2, "schedule": lambda done: 1.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6}
    return Optimization(**{**values, "weight_decay": 0.01, "group_lasso": 0.0, "clip_norm": 1.0, **changes})


def make_run(**changes: Any) -> IpuRun:
    """A float32 run of 12 micro-batches of one sequence of 16 tokens on two simulated IPUs."""
    values: dict[str, Any] = {
        "device": "simulated",
        "layers_per_ipu": (0, 1, 1),
        "replicas": 1,
        "gradient_accumulation": 12,
        "micro_batch_size": 1,
        "sequence_length": 16,
        "available_memory": (0.25,),
        "sparse_available_memory": "0.6",
        "sparse_oversize": "0.1",
        "half": False,
        "loss_scale": 1.0,
        "automatic_loss_scale": False,
        "half_partials": True,
        "stochastic_rounding": False,
        "optimizer_off_chip": True,
        "optimizer_sharded": False,
        "recompute": True,
        "vocabulary_parts": 1,
        "executable_cache": "",
        "profile_dir": "",
        "seed": 0,
    }
    return IpuRun(**{**values, **changes})


def make_plan(**changes: Any) -> UpdatePlan:
    """Half of the blocks, by the paper's rules, after steps 10, 20 and 30 of 40."""
    when = {"updates": 4, "total_steps": 40, "pruning_ratio": 0.5, "schedule": constant, "start": 0.0, "stop": 1.0}
    rules = {"norm": l1, "growth": GROW_RULES["random"], "allow_removed": False, "seed": 1}
    return UpdatePlan(**{**when, **rules, **changes})


def make_peer(shape: BertShape) -> Any:
    """transformers' BertForPreTraining of this shape, not told its sizes by the code under test."""
    from transformers import BertConfig
    from transformers import BertForPreTraining as Peer

    return Peer(
        BertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=shape.max_positions,
            type_vocab_size=shape.type_vocab,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.attention_dropout,
            layer_norm_eps=shape.layer_norm_eps,
            pad_token_id=None,  # id 0 may be any word
        )
    )
