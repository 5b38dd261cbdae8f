"""The sparse form for transformers: weights stay blocks, on disk and in the products. Importing this registers it.

After `import ipu_bert.hub.auto`, AutoModel, AutoModelForMaskedLM and AutoModelForSequenceClassification load a folder
of `save_sparse`, and so do `pipeline` and `Trainer`. Files are safetensors and JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput

from ipu_bert.data.errors import one_line
from ipu_bert.hub.folders import CONFIG, WEIGHTS
from ipu_bert.hub_files import find_file
from ipu_bert.model import Bert, BertForPreTraining, LinearFactory, PretrainingHeads, sparse_layers
from ipu_bert.sizes.config_json import CONFIG_KEYS, hugging_face_config
from ipu_bert.sizes.shape import BertShape
from sparse_ops import files
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.pattern import BlockPattern, named_generator
from sparse_ops.saying import say

MODEL_TYPE = "block-sparse-bert"


class SparseBertConfig(PretrainedConfig):
    """BertConfig's sizes, and `blocks`: [block size, number of blocks] of each encoder weight that is sparse."""

    model_type = MODEL_TYPE

    def __init__(self, blocks: dict[str, list[int]] | None = None, **values: Any) -> None:
        self.blocks = blocks or {}  # transformers makes configs without any value
        super().__init__(**values)

    @property
    def shape(self) -> BertShape:
        """The sizes. Raises ValueError that names one which is missing."""
        missing = [key for key in CONFIG_KEYS.values() if not hasattr(self, key)]
        if missing:
            raise ValueError(f"{CONFIG}: expected a {MODEL_TYPE} config, found no {', '.join(missing)}")
        return BertShape(**{ours: getattr(self, theirs) for ours, theirs in CONFIG_KEYS.items()})

    def linear(self) -> LinearFactory:
        """Layers with as many blocks as there are; the positions come with the weights."""

        def make(name: str, in_features: int, out_features: int, segments: int) -> nn.Module:
            if name not in self.blocks:
                return nn.Linear(in_features, out_features)
            size, count = self.blocks[name]
            shape, generator = (out_features, in_features), named_generator("pattern", name)
            pattern = BlockPattern.of_count(shape, size, count // segments, generator, segments)
            return BlockSparseLinear.from_pattern(pattern)

        return make


class SparseBertPreTrainedModel(PreTrainedModel):
    """What the three models share: how they are loaded."""

    bert: Bert
    config_class = SparseBertConfig
    base_model_prefix = "bert"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, where: Any, *args: Any, config: Any = None, dtype: Any = None, **rest: Any
    ) -> SparseBertPreTrainedModel:
        """The model of a folder or a name on the hub, for inference; heads that are not there start at random.

        Raises ValueError, one line, for files that are missing, damaged, or of another model.
        """
        file = find_file(str(where), WEIGHTS)
        if file is None:
            raise ValueError(f"{where}: expected {CONFIG} and {WEIGHTS}, found no {WEIGHTS}")
        model = cls(SparseBertConfig.from_pretrained(where) if config is None else config)
        try:
            state = load_file(str(file))
        except Exception as error:  # safetensors raises many kinds for a file that is none
            raise ValueError(f"{file}: cannot be read as safetensors: {one_line(error)}") from None
        mine = model.state_dict()
        missing = [name for name in mine if name not in state]
        encoder = [name for name in missing if name.startswith("bert.")]
        wrong = [name for name in mine if name in state and state[name].shape != mine[name].shape]
        if encoder or wrong:
            raise ValueError(
                f"{file}: expected the weights that {CONFIG} describes, found other {(encoder + wrong)[:3]}"
            )
        if missing:
            say(f"{where}: not in it, starts at random: {', '.join(missing)}", sys.stdout)
        model.load_state_dict({name: state.get(name, tensor) for name, tensor in mine.items()})
        if isinstance(dtype, torch.dtype):
            nn.Module.to(model, dtype)
        return model.eval()

    def _encoded(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden, pooled = self.bert(input_ids, types, mask)
        return hidden, pooled


class SparseBertModel(SparseBertPreTrainedModel):
    """The encoder and its pooler."""

    def __init__(self, config: SparseBertConfig) -> None:
        super().__init__(config)
        self.bert = Bert(config.shape, config.linear(), kernel="auto")
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """input_ids, attention_mask, token_type_ids: [B, S]. Hidden states [B, S, H], and pooled [B, H]."""
        hidden, pooled = self._encoded(input_ids, attention_mask, token_type_ids)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


class SparseBertForMaskedLM(SparseBertPreTrainedModel):
    """With the masked-LM head, at every position."""

    def __init__(self, config: SparseBertConfig) -> None:
        super().__init__(config)
        self.bert = Bert(config.shape, config.linear(), kernel="auto")
        self.cls = PretrainingHeads(config.shape)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Logits [B, S, V]; with labels [B, S], -100 where there is none, their mean cross-entropy in nats."""
        hidden, _pooled = self._encoded(input_ids, attention_mask, token_type_ids)
        logits = self.cls.predictions(hidden, self.bert.embeddings.word_embeddings.weight)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class SparseBertForSequenceClassification(SparseBertPreTrainedModel):
    """With a classifier over the pooled first token; a regression where there is one label."""

    def __init__(self, config: SparseBertConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.bert = Bert(config.shape, config.linear(), kernel="auto")
        self.dropout = nn.Dropout(config.shape.dropout)
        self.classifier = nn.Linear(config.shape.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits [B, labels]; with labels, int64 [B] classes or numbers [B], cross-entropy or mean squared error."""
        _hidden, pooled = self._encoded(input_ids, attention_mask, token_type_ids)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def save_sparse(model: BertForPreTraining, folder: Path) -> None:
    """Write config.json and model.safetensors: values and positions of blocks, and all else, as the model has them."""
    blocks = {name: [layer.block_size, layer.values.shape[0]] for name, layer in sparse_layers(model)}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with files.replacing(folder / WEIGHTS) as aside:
        save_file(state, str(aside), metadata={"format": "pt"})
    config = {
        **hugging_face_config(model.shape),
        "model_type": MODEL_TYPE,
        "architectures": [SparseBertForMaskedLM.__name__],
        "blocks": blocks,
    }
    files.write(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


AutoConfig.register(MODEL_TYPE, SparseBertConfig)
AutoModel.register(SparseBertConfig, SparseBertModel)
AutoModelForMaskedLM.register(SparseBertConfig, SparseBertForMaskedLM)
AutoModelForSequenceClassification.register(SparseBertConfig, SparseBertForSequenceClassification)
