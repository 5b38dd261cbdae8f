"""Half precision at the pods' batch: the loss that the device is given, its scale, and what becomes of gradients."""

from __future__ import annotations

import copy

import torch
from small_models import make_optimization, make_run, make_shape, sparse_model, with_tanh_gelu
from torch import Tensor

from ipu_bert.config import load_config
from ipu_bert.data.batches import Batch
from ipu_bert.engines import simulator as sim
from ipu_bert.engines.ipu.engine import IpuEngine
from ipu_bert.engines.ipu.options import IpuRun
from ipu_bert.engines.torch_engine import TorchEngine
from ipu_bert.model import BertForPreTraining
from ipu_bert.optim import Optimization
from ipu_bert.precision import Precision
from ipu_bert.ranks import ALONE
from ipu_bert.stopwatch import Stopwatch
from sparse_ops.norms import l1

TOKENS, LABELS = 16, 1
SHAPE = make_shape(vocab_size=64)
HALF_ULP = 2.0**-11  # of a half, relative


def random_batch(seed: int, sequences: int) -> Batch:
    """Sequences of TOKENS, of which every third has a label only: micro-batches have 0 to all of their labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, SHAPE.vocab_size, (sequences, LABELS), generator=g)
    labels[torch.rand(sequences, generator=g) < 2 / 3] = -100
    labels[0] = 1
    return Batch(
        input_ids=torch.randint(1, SHAPE.vocab_size, (sequences, TOKENS), generator=g),
        token_type_ids=torch.randint(0, 2, (sequences, TOKENS), generator=g),
        attention_mask=torch.ones(sequences, TOKENS, dtype=torch.bool),
        masked_positions=torch.randint(0, TOKENS, (sequences, LABELS), generator=g),
        masked_labels=labels,
        next_sentence_labels=torch.randint(0, 2, (sequences,), generator=g),
    )


def both_after_one_step(
    model: BertForPreTraining, run: IpuRun, optimization: Optimization, batch: Batch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and moments of the torch engine in float32 and of the IPU engine of `run`, from the same weights."""
    reference = TorchEngine(
        with_tanh_gelu(copy.deepcopy(model)),
        optimization=optimization,
        precision=Precision(compute="float32", loss_scale=1.0),
        micro_batch_size=run.sequences,
        block_norm=l1,
        seed=0,
        timer=Stopwatch(),
    )
    engine = IpuEngine(model, run, sim, sim.SimulatedEncoder(), ALONE, optimization, Stopwatch())
    reference.train_step(batch)
    engine.train_step(batch)
    expected, found = ({**x.state()["model"], **x.state()["optimizer"]} for x in (reference, engine))
    return expected, found


def test_the_smallest_gradients_survive_half_precision_at_the_pods_batch(seed: int) -> None:
    """Those of queries and keys: at the start attention is nearly uniform, and they pass through the product of both.

    A value is rounded some 60 times on its way and 64 times in the running mean, each by at most HALF_ULP. As a random
    walk that is (60 + 64 / 3)^0.5 = 9 of them; twice as much is allowed. With the sum over the batch and a scale of 512
    they were wrong by 60 to 120.
    """
    pod = load_config("bert_base_dynsparse_pod4")
    assert pod.train.micro_batch_size is not None
    run = make_run(
        half=True,
        loss_scale=pod.precision.loss_scale,
        layers_per_ipu=(1,),
        micro_batch_size=2,
        gradient_accumulation=pod.train.batch_size // pod.train.micro_batch_size,
        sequence_length=TOKENS,
    )
    model = sparse_model(SHAPE, 0.5, 8, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half())
    qkv = "bert.encoder.layer.0.attention.self.qkv"
    rows = model.get_submodule(qkv).rows.clone()
    batch = random_batch(seed, run.sequences)
    expected, found = both_after_one_step(model, run, make_optimization(clip_norm=0.0), batch)
    small = rows * 8 < 2 * SHAPE.hidden_size
    a, b = (each[f"exp_avg.{qkv}.values"][small] for each in (expected, found))
    assert float((a - b).norm() / a.norm()) < 18 * HALF_ULP


def test_clipping_and_decay_act_on_gradients_without_the_scale(seed: int) -> None:
    """One step of a model whose biases are not zero: clipped to 0.01, and weights, but no biases and norms, decay."""
    run = make_run(loss_scale=1024.0, layers_per_ipu=(1,), gradient_accumulation=4, sequence_length=TOKENS)
    model = sparse_model(SHAPE, 0.5, 8, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02)
    optimization = make_optimization(clip_norm=0.01, weight_decay=0.5, eps=1e-3)
    expected, found = both_after_one_step(model, run, optimization, random_batch(seed, run.sequences))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
