"""BERT for pre-training (MLM and NSP), with Hugging Face's parameter names but for the fused query-key-value.

Sizes in comments: B sequences, S tokens each, P masked positions, H hidden, N heads, D = H / N, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.sizes.shape import BertShape
from ipu_bert.sizes.weights import EncoderWeight
from sparse_ops.add_norm import add_norm
from sparse_ops.attention import attention
from sparse_ops.dense import DenseLinear, linear
from sparse_ops.feed_forward import feed_forward
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.linear_cross_entropy import linear_cross_entropy
from sparse_ops.pattern import BlockPattern, named_generator
from sparse_ops.sparsify import hooked

# (name, in_features, out_features, segments) -> a module that maps [*, in] to [*, out] and has a bias.
LinearFactory = Callable[[str, int, int, int], nn.Module]


def truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Fill in place from a normal of mean 0 and `std` that is cut (not rescaled) at two `std` (paper, App. A)."""
    limit = math.erf(math.sqrt(2.0))
    with torch.no_grad():
        # Drawn in float32 on the CPU whatever the parameter is, so that every precision starts from the same weights.
        draw = torch.empty(tensor.shape, dtype=torch.float32).uniform_(-limit, limit, generator=generator)
        draw.erfinv_().mul_(math.sqrt(2.0) * std).clamp_(-2.0 * std, 2.0 * std)
        return tensor.copy_(draw)


def dense_linear(name: str, in_features: int, out_features: int, segments: int) -> nn.Module:
    """LinearFactory of the dense model."""
    return DenseLinear(in_features, out_features)


def sparse_linear(weights: Sequence[EncoderWeight], seed: int, kernel: str) -> LinearFactory:
    """LinearFactory of the model that has these encoder weights: block-sparse where they are, else dense.

    kernel: one of sparse_ops.functional.KERNELS.
    """
    by_name = {weight.name: weight for weight in weights}

    def make(name: str, in_features: int, out_features: int, segments: int) -> nn.Module:
        weight = by_name[name]
        if not weight.is_sparse:
            return DenseLinear(in_features, out_features, kernel=kernel)
        return BlockSparseLinear.from_pattern(starting_pattern(weight, seed), kernel=kernel)

    return make


def starting_pattern(weight: EncoderWeight, seed: int) -> BlockPattern:
    """The random pattern of a sparse weight before the first step (Algorithm 1, initialize).

    It depends on (seed, the weight's name) alone, so that every rank and every machine draws the same one.
    """
    generator = named_generator(seed, f"pattern/{weight.name}")
    return BlockPattern.random(weight.shape, weight.block_size, weight.sparsity, generator, weight.segments)


def dropout_key(probability: float) -> int:
    """What the next dropout follows from, drawn from torch's generator; 0, and nothing drawn, where nothing drops."""
    return int(torch.empty((), dtype=torch.int64).random_()) if probability else 0


class Embeddings(nn.Module):
    """Word + position + token type, LayerNorm, dropout: [B, S] -> [B, S, H]."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        # No padding_idx: what stands at [PAD], whatever id that is, is masked, so looking it up sends no gradient.
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.position_embeddings = nn.Embedding(shape.max_positions, shape.hidden_size)
        self.token_type_embeddings = nn.Embedding(shape.type_vocab, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        length, positions = input_ids.shape[1], self.position_embeddings.num_embeddings
        if length > positions:
            raise ValueError(f"sequence length: expected at most the model's {positions} positions, found {length}")
        embedded = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        if position_ids is None:
            embedded = embedded + self.position_embeddings.weight[:length]
        else:
            embedded = embedded + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embedded))


class SelfAttention(nn.Module):
    """Query, key and value from one weight [3H, H], then attention of each head."""

    def __init__(self, shape: BertShape, name: str, linear: LinearFactory, kernel: str) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout, self.kernel = shape.attention_dropout, kernel
        self.qkv = linear(f"{name}.qkv", shape.hidden_size, 3 * shape.hidden_size, 3)

    def forward(self, hidden: Tensor, key_mask: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return attention(self.qkv(hidden), key_mask, self.heads, dropout, dropout_key(dropout), self.kernel)


class Projection(nn.Module):
    """Linear, dropout, residual, LayerNorm: how attention and feed-forward both end (post-LN)."""

    def __init__(self, shape: BertShape, name: str, in_features: int, linear: LinearFactory, kernel: str) -> None:
        super().__init__()
        self.dense = linear(f"{name}.dense", in_features, shape.hidden_size, 1)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.dropout, self.kernel = shape.dropout, kernel

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        return self.end(self.dense(inner), residual)

    def end(self, projected: Tensor, residual: Tensor) -> Tensor:
        """LayerNorm(residual + dropout(projected)), all [B, S, H]."""
        norm, x = self.LayerNorm, projected.to(residual.dtype)
        dropout = self.dropout if self.training else 0.0
        return add_norm(x, residual, norm.weight, norm.bias, norm.eps, dropout, dropout_key(dropout), self.kernel)


class Attention(nn.Module):
    def __init__(self, shape: BertShape, name: str, linear: LinearFactory, kernel: str) -> None:
        super().__init__()
        self.self = SelfAttention(shape, f"{name}.self", linear, kernel)
        self.output = Projection(shape, f"{name}.output", shape.hidden_size, linear, kernel)

    def forward(self, hidden: Tensor, key_mask: Tensor) -> Tensor:
        return self.output(self.self(hidden, key_mask), hidden)


class Intermediate(nn.Module):
    def __init__(self, shape: BertShape, name: str, linear: LinearFactory) -> None:
        super().__init__()
        self.dense = linear(f"{name}.dense", shape.hidden_size, shape.intermediate_size, 1)
        self.gelu = nn.GELU()

    @property
    def exact(self) -> bool:
        """Whether GELU is the exact one, which sparse products apply as they write."""
        return self.gelu.approximate == "none"

    def forward(self, hidden: Tensor) -> Tensor:
        if isinstance(self.dense, BlockSparseLinear) and self.exact:
            return self.dense(hidden, gelu=True)
        activated: Tensor = self.gelu(self.dense(hidden))
        return activated


class EncoderLayer(nn.Module):
    """One transformer block, [B, S, H] -> [B, S, H]; `key_mask` [B, S] is True where a token may be seen."""

    def __init__(self, shape: BertShape, name: str, linear: LinearFactory, kernel: str) -> None:
        super().__init__()
        self.attention = Attention(shape, f"{name}.attention", linear, kernel)
        self.intermediate = Intermediate(shape, f"{name}.intermediate", linear)
        self.output = Projection(shape, f"{name}.output", shape.intermediate_size, linear, kernel)

    def forward(self, hidden: Tensor, key_mask: Tensor) -> Tensor:
        attended = self.attention(hidden, key_mask)
        inner, outer = self.intermediate.dense, self.output.dense
        passed = self.intermediate.exact and not (hooked(self.intermediate) or hooked(self.output))
        if passed and isinstance(inner, BlockSparseLinear) and isinstance(outer, BlockSparseLinear):
            return self.output.end(feed_forward(attended, inner, outer), attended)
        return self.output(self.intermediate(attended), attended)


class Encoder(nn.Module):
    def __init__(self, shape: BertShape, name: str, linear: LinearFactory, kernel: str) -> None:
        super().__init__()
        layers = (EncoderLayer(shape, f"{name}.layer.{i}", linear, kernel) for i in range(shape.layers))
        self.layer = nn.ModuleList(layers)

    def forward(self, hidden: Tensor, key_mask: Tensor) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden, key_mask)
        return hidden


class Pooler(nn.Module):
    """tanh of a linear map of the first token: [B, S, H] -> [B, H]."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))


class Bert(nn.Module):
    def __init__(self, shape: BertShape, linear: LinearFactory, kernel: str) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.encoder = Encoder(shape, "bert.encoder", linear, kernel)
        self.pooler = Pooler(shape)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """position_ids [B, S] or [1, S]: the row of the position embedding of each token; None: from 0 on."""
        embedded = self.embeddings(input_ids, token_type_ids, position_ids)
        hidden = self.encoder(embedded, attention_mask.to(torch.bool))
        return hidden, self.pooler(hidden)


class PredictionTransform(nn.Module):
    def __init__(self, shape: BertShape, kernel: str) -> None:
        super().__init__()
        self.dense = DenseLinear(shape.hidden_size, shape.hidden_size, kernel=kernel)
        self.gelu = nn.GELU()
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(self.gelu(self.dense(hidden)))


class Predictions(nn.Module):
    """MLM head. The decoder's weight is the word embedding, handed in so that the model holds it once."""

    def __init__(self, shape: BertShape, kernel: str) -> None:
        super().__init__()
        self.transform = PredictionTransform(shape, kernel)
        self.bias = nn.Parameter(torch.zeros(shape.vocab_size))
        self.kernel = kernel

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        return linear(self.transform(hidden), word_embeddings, self.bias, self.kernel)

    def loss(self, hidden: Tensor, word_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy at hidden [N, H] in nats, summed over the labels [N] that are not IGNORED_LABEL: 0-d."""
        hidden = self.transform(hidden)
        return linear_cross_entropy(hidden, word_embeddings, self.bias, labels, IGNORED_LABEL, self.kernel)


class PretrainingHeads(nn.Module):
    def __init__(self, shape: BertShape, kernel: str) -> None:
        super().__init__()
        self.predictions = Predictions(shape, kernel)
        self.seq_relationship = nn.Linear(shape.hidden_size, 2)


def layer_norm_parameters(model: nn.Module) -> set[int]:
    """`id` of each scale and shift of the LayerNorms."""
    norms = (module for module in model.modules() if isinstance(module, nn.LayerNorm))
    return {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}


class PretrainingLosses(NamedTuple):
    """Sums, so that splitting a step into micro-batches changes nothing; divide by the step's own counts. All 0-d."""

    mlm_sum: Tensor
    mlm_count: Tensor  # int64: number of labels
    nsp_sum: Tensor


class BertForPreTraining(nn.Module):
    """BERT with both pre-training heads; `linear` alone decides which encoder weights are sparse.

    kernel: one of sparse_ops.operators.KERNELS, for all but what `linear` makes.

    Linear and embedding weights and the values of sparse blocks start truncated normal with `initializer_range`, not
    rescaled for sparsity (paper, App. A and Figure 9); biases zero, LayerNorm weights one. The start of a parameter
    depends on (seed, its name) alone.
    """

    def __init__(self, shape: BertShape, linear: LinearFactory, seed: int, kernel: str) -> None:
        super().__init__()
        self.shape = shape
        self.bert = Bert(shape, linear, kernel)
        self.cls = PretrainingHeads(shape, kernel)
        self.initialize(seed)

    def initialize(self, seed: int) -> None:
        """Draw every parameter anew, in place; patterns stay."""
        scales = layer_norm_parameters(self)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif id(parameter) in scales:
                    parameter.fill_(1.0)
                else:
                    truncated_normal_(parameter, self.shape.initializer_range, named_generator(seed, f"init/{name}"))

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        masked_positions: Tensor,
        labels: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor] | PretrainingLosses:
        """Logits of both heads, the MLM head at the masked positions only; with `labels` the losses in place of them.

        input_ids [B, S] and token_type_ids [B, S] (0 or 1) are int64. attention_mask [B, S] bool is True where there is
        a token, at least one in every sequence. masked_positions [B, P] int64 in [0, S): any position where there is no
        label. labels: (masked_labels, next_sentence_labels), as `pretraining_losses` has them. Returns mlm_logits
        [B, P, V] and nsp_logits [B, 2] (class 0: the second part follows the first), or what `pretraining_losses` makes
        of these. Raises ValueError for sequences longer than the position embedding.
        """
        hidden, pooled = self.bert(input_ids, token_type_ids, attention_mask)
        masked = hidden.gather(1, masked_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))  # [B, P, H]
        words, nsp_logits = self.bert.embeddings.word_embeddings.weight, self.cls.seq_relationship(pooled)
        if labels is None:
            return self.cls.predictions(masked, words), nsp_logits
        masked_labels, next_sentence_labels = labels
        mlm_sum = self.cls.predictions.loss(masked.flatten(0, 1), words, masked_labels.flatten())
        return _losses(mlm_sum, nsp_logits, masked_labels, next_sentence_labels)


def pretraining_losses(
    mlm_logits: Tensor, nsp_logits: Tensor, masked_labels: Tensor, next_sentence_labels: Tensor
) -> PretrainingLosses:
    """Cross-entropy in nats of both tasks, summed; 16-bit logits are summed in float32.

    mlm_logits [B, P, V], nsp_logits [B, 2]; masked_labels [B, P] int64, IGNORED_LABEL where there is no label;
    next_sentence_labels [B] int64.
    """
    mlm_sum = F.cross_entropy(
        _at_least_float32(mlm_logits).flatten(0, 1),
        masked_labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )
    return _losses(mlm_sum, nsp_logits, masked_labels, next_sentence_labels)


def _losses(
    mlm_sum: Tensor, nsp_logits: Tensor, masked_labels: Tensor, next_sentence_labels: Tensor
) -> PretrainingLosses:
    nsp_sum = F.cross_entropy(_at_least_float32(nsp_logits), next_sentence_labels, reduction="sum")
    return PretrainingLosses(mlm_sum, (masked_labels != IGNORED_LABEL).sum(), nsp_sum)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def sparse_layers(model: nn.Module) -> list[tuple[str, BlockSparseLinear]]:
    """(name, layer) of every block-sparse layer, in order of definition."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BlockSparseLinear)]
