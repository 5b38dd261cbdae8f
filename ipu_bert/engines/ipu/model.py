"""BERT as it runs on IPUs: the canonical model's modules in pipeline stages, with forms that IPUs are good at.

GELU is PopART's, which has the tanh form alone (docs/ipu.md): it differs from the exact one by at most 5e-4. No other
difference to `model.py` changes the function: sparse layers are popsparse's; attention is written out;
masked positions are gathered by a product with one-hot rows; the vocabulary's product is cut into parts; losses come as
weighted sums, the weights being inputs, so that the mean over micro-batches and replicas is the whole batch's.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipu_bert.engines.ipu.options import IpuRun
from ipu_bert.model import BertForPreTraining, Projection, sparse_layers
from ipu_bert.sizes.stages import pipeline_stages
from sparse_ops.dense import DenseLinear
from sparse_ops.ipu.layer import IpuBlockSparseLinear
from sparse_ops.ipu.layout import Encoder, LayerPlan
from sparse_ops.linear import BlockSparseLinear

MASKED_SCORE = -10000.0  # e to this is 0 in half; the most negative half would overflow when scores are added


class IpuSelfAttention(nn.Module):
    """SelfAttention with scores, softmax and products written out; `qkv` is the canonical module's."""

    def __init__(self, qkv: nn.Module, heads: int, dropout: float) -> None:
        super().__init__()
        self.qkv, self.heads, self.dropout = qkv, heads, nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask_bias: Tensor) -> Tensor:
        """hidden [B, S, H]; mask_bias [B, 1, 1, S], added to scores."""
        batch, length, size = hidden.shape
        width = size // self.heads
        qkv = self.qkv(hidden).reshape(batch, length, 3, self.heads, width)
        query, key, value = (qkv[:, :, i].transpose(1, 2) for i in range(3))  # each [B, N, S, D]
        scores = torch.matmul(query, key.transpose(2, 3)) * (1.0 / math.sqrt(width)) + mask_bias
        context = torch.matmul(self.dropout(torch.softmax(scores, dim=-1)), value)
        return context.transpose(1, 2).reshape(batch, length, size)


class IpuProjection(nn.Module):
    """Projection by torch's own operators; `dense` and `LayerNorm` are the canonical module's."""

    def __init__(self, canonical: Projection) -> None:
        super().__init__()
        self.dense, self.LayerNorm = canonical.dense, canonical.LayerNorm
        self.dropout = nn.Dropout(canonical.dropout)

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(inner)) + residual)
        return normed


class IpuBert(nn.Module):
    """The model that is handed to PopTorch; its parameters are named as the canonical ones, `values` as `nz_values`.

    plan: of a sparse layer and its name. poptorch: PopTorch or the simulator.
    """

    def __init__(
        self,
        model: BertForPreTraining,
        run: IpuRun,
        plan: Callable[[str, BlockSparseLinear], LayerPlan],
        encoder: Encoder,
        poptorch: Any,
    ) -> None:
        super().__init__()
        copied = copy.deepcopy(model)
        shape = model.shape
        for name, layer in sparse_layers(copied):
            parent, _, child = name.rpartition(".")
            device_layer = IpuBlockSparseLinear(layer, plan(name, layer), encoder, poptorch)
            setattr(copied.get_submodule(parent), child, device_layer)
        blocks: Any = copied.bert.encoder.layer
        for block in blocks:
            attention = block.attention
            attention.self = IpuSelfAttention(attention.self.qkv, shape.heads, shape.attention_dropout)
            attention.output, block.output = IpuProjection(attention.output), IpuProjection(block.output)
        for module in copied.modules():
            if isinstance(module, DenseLinear):
                module.kernel = "torch"
            if isinstance(module, nn.GELU):
                module.approximate = "tanh"  # what PopTorch computes whatever is asked for
        self.bert, self.cls = copied.bert, copied.cls
        self.to(run.dtype)
        self._stages, self._poptorch, self._run = tuple(pipeline_stages(run.layers_per_ipu)), poptorch, run

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        masked_positions: Tensor,
        masked_labels: Tensor,
        label_weights: Tensor,
        next_sentence_labels: Tensor,
        sequence_weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """One micro-batch of B sequences.

        input_ids, token_type_ids, attention_mask [B, S], masked_positions, masked_labels [B, P] and
        next_sentence_labels [B] are int64, which PopTorch makes int32; label_weights [B, P] and sequence_weights [B]
        are float32: what each loss counts.
        Training returns the loss and its MLM and NSP parts; otherwise both parts and both weighted hit counts.
        """
        hidden = mask_bias = input_ids  # replaced by the first stage; nothing may be made outside the blocks
        for stage in self._stages:
            with self._poptorch.Block(stage.name, ipu_id=stage.ipu):
                if stage.embeddings:
                    # Outlined with the encoder's, its LayerNorm would give the pipeline's stashes its own layout.
                    with self._poptorch.Attribute(__outline={"layer": "embeddings"}):
                        hidden = self.bert.embeddings(input_ids, token_type_ids)
                    mask_bias = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * MASKED_SCORE
                for i in stage.layers:
                    hidden = self.bert.encoder.layer[i](hidden, mask_bias)
                    if self._run.recompute:
                        hidden = self._poptorch.recomputationCheckpoint(hidden)
                if stage.heads:
                    mlm_logits, nsp_logits = self._heads(hidden, masked_positions)
                    return self._losses(
                        mlm_logits, nsp_logits, masked_labels, label_weights, next_sentence_labels, sequence_weights
                    )
        raise AssertionError("no stage has the heads")

    def _heads(self, hidden: Tensor, masked_positions: Tensor) -> tuple[Tensor, Tensor]:
        one_hot = F.one_hot(masked_positions, hidden.shape[1]).to(hidden.dtype)  # [B, P, S]
        masked = torch.matmul(one_hot, hidden).flatten(0, 1)  # [B P, H]
        predictions = self.cls.predictions
        transformed = predictions.transform(masked)
        words = self.bert.embeddings.word_embeddings.weight.t()  # [H, V]
        if self._run.vocabulary_parts > 1:
            mode = self._poptorch.MatMulSerializationMode.OutputChannels
            scores = self._poptorch.serializedMatMul(transformed, words, mode, self._run.vocabulary_parts)
        else:
            scores = torch.matmul(transformed, words)
        return scores + predictions.bias, self.cls.seq_relationship(self.bert.pooler(hidden))

    def _losses(
        self,
        mlm_logits: Tensor,
        nsp_logits: Tensor,
        masked_labels: Tensor,
        label_weights: Tensor,
        next_sentence_labels: Tensor,
        sequence_weights: Tensor,
    ) -> tuple[Tensor, ...]:
        labels, weights = masked_labels.flatten(), label_weights.flatten()
        mlm = (F.cross_entropy(mlm_logits.float(), labels, reduction="none") * weights).sum()
        nsp = (F.cross_entropy(nsp_logits.float(), next_sentence_labels, reduction="none") * sequence_weights).sum()
        if self.training:
            return self._poptorch.identity_loss(mlm + nsp, reduction="none"), mlm, nsp
        mlm_hits = ((mlm_logits.argmax(-1) == labels).float() * weights).sum()
        nsp_hits = ((nsp_logits.argmax(-1) == next_sentence_labels).float() * sequence_weights).sum()
        return mlm, mlm_hits, nsp, nsp_hits
