"""What bench_step compares: whole training steps of one BERT, ours dense and block-sparse, and transformers' own."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Mapping, Protocol

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ipu_bert.config import load_config
from ipu_bert.data.batches import Batch
from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.engines.torch_engine import TorchEngine
from ipu_bert.model import BertForPreTraining, sparse_linear
from ipu_bert.optim import Optimization, adamw
from ipu_bert.precision import Precision
from ipu_bert.settings import OptimSettings, SparsitySettings
from ipu_bert.sizes.config_json import hugging_face_config
from ipu_bert.sizes.shape import BertShape, bert_shape
from ipu_bert.sizes.weights import EncoderWeight, encoder_weights
from ipu_bert.stopwatch import Stopwatch
from sparse_ops import native
from sparse_ops.norms import l1

VOCABULARY = 30522  # bert-base-uncased
_OPTIM = OptimSettings()  # the defaults of a run
OPTIMIZATION = Optimization(
    lr=1e-4,
    schedule=lambda step: 1.0,
    beta1=_OPTIM.beta1,
    beta2=_OPTIM.beta2,
    eps=_OPTIM.eps,
    weight_decay=_OPTIM.weight_decay,
    group_lasso=_OPTIM.group_lasso,
    clip_norm=_OPTIM.clip_norm,
)
BLOCKS = (16, 8, 4, 1)


@dataclass(frozen=True)
class Implementation:
    """One way to run a step. block 0: dense. compute: the dtype of products, float32 or bfloat16 (autocast)."""

    name: str
    block: int = 0
    compute: str = "float32"
    transformers: bool = False


DENSE_FLOAT32, DENSE_BFLOAT16, TRANSFORMERS = "dense float32", "dense bfloat16", "transformers float32"
IMPLEMENTATIONS = {
    x.name: x
    for x in [
        Implementation(DENSE_FLOAT32),
        Implementation(DENSE_BFLOAT16, compute="bfloat16"),
        Implementation(TRANSFORMERS, transformers=True),
        *(Implementation(f"sparse {b}x{b} float32", b) for b in BLOCKS),
        *(Implementation(f"sparse {b}x{b} bfloat16", b, "bfloat16") for b in BLOCKS),
    ]
}
SPARSE_SIZE = "base"  # of the sparse models that are compared at equal loss
SPARSE = {block: f"sparse {block}x{block} float32" for block in BLOCKS}
DEFAULT = [name for name in IMPLEMENTATIONS if not (name.startswith("sparse") and name.endswith("bfloat16"))]


def bfloat16_slowdown() -> float:
    """How many times longer a dense product takes in bfloat16 than in float32; large without instructions for it."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(256, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        x @ w
        start = time.perf_counter()
        x @ w
        seconds.append(time.perf_counter() - start)
    return seconds[1] / seconds[0]


class Trainer(Protocol):
    """Anything that can run a whole training step: forward, backward, clipping, AdamW."""

    @property
    def model(self) -> nn.Module:
        """A BERT for pre-training, whose `bert` takes input_ids, token_type_ids and attention_mask [B, S]."""

    def train_step(self, batch: Batch) -> Any:
        """Run one."""


def model_shape(size: str, dropout: bool) -> BertShape:
    """BERT of the family with the real vocabulary. dropout: as the size's config has it, or none."""
    model = load_config(f"bert_{size}_dense", []).model
    if not dropout:
        model = replace(model, dropout=0.0, attention_dropout=0.0)
    return bert_shape(model, VOCABULARY)


def encoder_of(choice: Implementation, shape: BertShape, sparsity: float) -> tuple[EncoderWeight, ...]:
    """The encoder's weights as this implementation has them."""
    method = "static" if choice.block else "dense"
    return encoder_weights(shape, SparsitySettings(method=method, sparsity=sparsity, block_size=choice.block or 1))


def random_batch(shape: BertShape, batch: int, length: int, masked: int, seed: int) -> Batch:
    """Random ids; every tenth sequence is half as long and padded, as one in ten of BERT's is short."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((batch,), length)
    lengths[::10] = max(length // 2, masked)
    mask = torch.arange(length)[None] < lengths[:, None]
    positions = [torch.randperm(int(n), generator=generator)[:masked].sort().values for n in lengths]
    return Batch(
        input_ids=torch.randint(1, shape.vocab_size, (batch, length), generator=generator) * mask,
        token_type_ids=((torch.arange(length)[None] >= lengths[:, None] // 2) & mask).long(),
        attention_mask=mask,
        masked_positions=torch.stack(positions),
        masked_labels=torch.randint(shape.vocab_size, (batch, masked), generator=generator),
        next_sentence_labels=torch.randint(2, (batch,), generator=generator),
    )


def make_trainer(choice: Implementation, shape: BertShape, sparsity: float, timer: Stopwatch) -> Trainer:
    """A model at its start and the optimizer that goes with it."""
    if choice.transformers:
        return TransformersTrainer(shape, timer)
    return make_engine(choice, shape, sparsity, timer)


def make_engine(choice: Implementation, shape: BertShape, sparsity: float, timer: Stopwatch) -> TorchEngine:
    """Our engine, as a run builds it."""
    linear = sparse_linear(encoder_of(choice, shape, sparsity), seed=0, kernel="auto")
    return TorchEngine(
        BertForPreTraining(shape, linear, seed=0, kernel="auto"),
        optimization=OPTIMIZATION,
        precision=Precision(choice.compute, loss_scale=1.0),
        micro_batch_size=1 << 30,  # whole batches
        block_norm=l1,
        seed=0,
        timer=timer,
    )


def sparse_and_dense(seconds: Mapping[tuple[str, str], float]) -> tuple[dict[int, float], dict[str, float]]:
    """Seconds by size and implementation, as time at equal loss is reckoned: sparse by block, dense by size."""
    sparse = {block: seconds[SPARSE_SIZE, name] for block, name in SPARSE.items()}
    return sparse, {size: taken for (size, name), taken in seconds.items() if name == DENSE_FLOAT32}


def multiplies_natively(choice: Implementation) -> bool:
    """Whether native kernels multiply with the sparse weights."""
    example = torch.empty(0, dtype=getattr(torch, choice.compute))
    return native.supports(example, choice.block) and native.available()


def kernel_name(choice: Implementation) -> str:
    """Which code multiplies with the sparse weights: native with its instruction level, torch, or - when dense."""
    if not choice.block:
        return "-"
    return f"native {native.level()}" if multiplies_natively(choice) else "torch"


class TransformersTrainer:
    """transformers' BertForPreTraining (attention through torch's fused kernel, its default), with our AdamW.

    Its heads get the masked positions alone, as ours do; its own `labels` would ask for logits at every position.
    """

    def __init__(self, shape: BertShape, timer: Stopwatch) -> None:
        from transformers import BertConfig
        from transformers import BertForPreTraining as Peer

        torch.manual_seed(0)
        self.model = Peer(BertConfig.from_dict(hugging_face_config(shape, pad_token_id=0))).train()
        self._optimizer = adamw(self.model, OPTIMIZATION)
        self._timer = timer

    def train_step(self, batch: Batch) -> float:
        """The loss, mean of MLM plus mean of NSP as ours."""
        with self._timer("forward"):
            hidden, pooled = self.model.bert(
                input_ids=batch.input_ids,
                token_type_ids=batch.token_type_ids,
                attention_mask=batch.attention_mask.long(),
            )[:2]
            where = batch.masked_positions[..., None].expand(-1, -1, hidden.shape[-1])
            mlm, nsp = self.model.cls(hidden.gather(1, where), pooled)
            loss = cross_entropy(mlm.flatten(0, 1), batch.masked_labels.flatten(), ignore_index=IGNORED_LABEL)
            loss = loss + cross_entropy(nsp, batch.next_sentence_labels)
            value = float(loss.detach())
        with self._timer("backward"):
            loss.backward()
        with self._timer("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZATION.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
        return value
