"""The sparse form for transformers: weights stay blocks, on disk and in the products. Importing this registers it.

After `import ipu_bert.hub.auto`, AutoModel, AutoModelForMaskedLM and AutoModelForSequenceClassification load a folder
of `save_sparse`, and so do `pipeline` and `Trainer`. Files are safetensors and JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Mapping

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    ModelOutput,
    SequenceClassifierOutput,
)

from ipu_bert.data.errors import one_line
from ipu_bert.hub.folders import CONFIG, WEIGHTS
from ipu_bert.hub.packed import packed, row_major, unpacked
from ipu_bert.hub.source import load_files, numbers, weight_files
from ipu_bert.hub.weights import NOT_WEIGHTS, TIED, WORD_EMBEDDINGS
from ipu_bert.json_file import is_count
from ipu_bert.model import Bert, BertForPreTraining, LinearFactory, PretrainingHeads, sparse_layers
from ipu_bert.sizes.config_json import CONFIG_KEYS, FIXED_CONFIG, check_labels, hugging_face_config, shape_from_config
from ipu_bert.sizes.shape import BertShape
from sparse_ops import files
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.pattern import BlockPattern, named_generator
from sparse_ops.saying import say

MODEL_TYPE = "block-sparse-bert"

# Arguments of from_pretrained: what the hub's client is handed; what changes nothing here; and what transformers takes
# out of them without a word as it reads a config.
_OF_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_OF_NO_MATTER = (
    "_commit_hash", "_from_auto", "_from_pipeline", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors",
    "weights_only",
)  # fmt: skip
_ATTENTION = (None, "eager", "sdpa")  # names of what is computed here, too
_OUTPUTS = ("output_attentions", "output_hidden_states")  # of a config, which a call would then refuse
_TAKEN_OUT = ("gguf_file", "proxies", "subfolder")


class SparseBertConfig(PretrainedConfig):
    """BertConfig's sizes, and `blocks`: [block size, number of blocks] of each encoder weight that is sparse."""

    model_type = MODEL_TYPE

    def __init__(self, blocks: dict[str, list[int]] | None = None, **values: Any) -> None:
        check_labels(values)
        self.blocks = blocks or {}  # transformers makes configs without any value
        super().__init__(**values)

    @property
    def shape(self) -> BertShape:
        """The sizes. Raises ValueError that names one which is missing, or what this model cannot be."""
        missing = [key for key in CONFIG_KEYS.values() if not hasattr(self, key)]
        if missing:
            raise ValueError(f"{CONFIG}: expected a {MODEL_TYPE} config, found no {', '.join(missing)}")
        found = {key: getattr(self, key, None) for key in (*CONFIG_KEYS.values(), *FIXED_CONFIG)}
        given = {key: value for key, value in found.items() if value is not None or key not in FIXED_CONFIG}
        return shape_from_config({**given, "model_type": FIXED_CONFIG["model_type"]})

    def linear(self) -> LinearFactory:
        """Layers with as many blocks as there are; the positions come with the weights.

        Raises ValueError for `blocks` that are no pairs of whole numbers by name.
        """
        if not isinstance(self.blocks, dict):
            raise ValueError(f"{CONFIG}: expected an object as blocks, found {self.blocks!r:.60}")
        for name, pair in self.blocks.items():
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(map(is_count, pair)):
                raise ValueError(
                    f"{CONFIG}: blocks: {name}: expected [block size, number of blocks], found {pair!r:.60}"
                )

        def make(name: str, in_features: int, out_features: int, segments: int) -> nn.Module:
            if name not in self.blocks:
                return nn.Linear(in_features, out_features)
            size, count = self.blocks[name]
            shape, generator = (out_features, in_features), named_generator("pattern", name)
            pattern = BlockPattern.of_count(shape, size, count // segments, generator, segments)
            return BlockSparseLinear.from_pattern(pattern)

        return make


class SparseBertPreTrainedModel(PreTrainedModel):
    """What the three models share: how they are loaded and called."""

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
        cls, where: Any, *args: Any, config: Any = None, dtype: Any = None, torch_dtype: Any = None, **rest: Any
    ) -> SparseBertPreTrainedModel:
        """The model of a folder or a name on the hub, for inference; heads that are not there start at random.

        dtype, torch_dtype: one of torch's or its name; "auto", as without: the config's, else float32. rest: what the
        hub's client takes (revision, token ...), and, where no config is given, values of it. Raises ValueError, one
        line, for files that are missing, damaged, or of another model, and for arguments that nothing here heeds.
        """
        hub = {name: rest.pop(name) for name in _OF_HUB if rest.get(name) is not None}
        parts = _files_of(str(where), hub)
        state = load_files(parts)
        # Auto classes always hand it on where there is peft; with a path where there is an adapter.
        rest["adapter_kwargs"] = (rest.get("adapter_kwargs") or {}).get("_adapter_model_path")
        try:
            _refuse("from_pretrained", {name: rest.pop(name, None) for name in _TAKEN_OUT})
            if rest.get("attn_implementation") not in _ATTENTION:
                _refuse("from_pretrained", {"attn_implementation": rest["attn_implementation"]})
            if config is None:
                config, rest = cls._config_of(where, {**hub, **rest})
            _refuse("from_pretrained", {name: value for name, value in rest.items() if name not in _OF_NO_MATTER})
            _refuse("from_pretrained", {name: getattr(config, name, None) for name in _OUTPUTS})
            dtype = _dtype_of(torch_dtype if dtype is None else dtype, config)
            check_sizes(config, state)
            model = cls(config, *args)
            nn.Module.to(model, dtype)
            missing = model._take(state)
        except ValueError as error:
            raise ValueError(f"{parts[0]}: {error}") from None
        if missing:
            say(f"{where}: not in it, starts at random: {', '.join(missing)}", sys.stdout)
        return model.eval()

    @staticmethod
    def _config_of(where: Any, options: Mapping[str, Any]) -> tuple[SparseBertConfig, dict[str, Any]]:
        """The config with the values of it that are among the options, and the other options."""
        try:
            found: Any = SparseBertConfig.from_pretrained(where, return_unused_kwargs=True, **options)
            config, others = found
            return config, others
        except (ValueError, OSError):
            raise
        except Exception as error:  # transformers raises many kinds for values that are none
            raise ValueError(f"{CONFIG}: cannot be read: {one_line(error)}") from None

    def _take(self, state: Mapping[str, Tensor]) -> list[str]:
        """Load the weights of a file, in the model's dtype; the names of heads that are not in it.

        Raises ValueError, and nothing changed.
        """
        state, mine = unpacked(state, _columns(self)), self.state_dict()
        missing = [name for name in mine if name not in state]
        wrong = [name for name in missing if name.startswith("bert.")]
        wrong += [name for name in mine if name in state and state[name].shape != mine[name].shape]
        wrong += [name for name in state if name.startswith("bert.") and name not in mine and name not in NOT_WEIGHTS]
        if wrong:
            raise ValueError(f"expected the weights that {CONFIG} describes, found other {wrong[:3]}")
        for tied, name in TIED.items():
            if tied in state and name in state and not torch.equal(state[tied], state[name]):
                raise ValueError(f"expected {tied} to be tied to {name}, found another tensor")
        found = {name: state.get(name, tensor) for name, tensor in mine.items()}
        places = {f"{layer}.{key}" for layer in _columns(self) for key in ("rows", "cols")}
        self.load_state_dict(
            {name: t if name in places else numbers(name, t, mine[name].dtype) for name, t in found.items()}
        )
        return missing

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, **options: Any
    ) -> None:
        """As of every PreTrainedModel, with the positions of blocks packed and slots in their order; no pickle."""
        if options.get("safe_serialization") is False:
            raise ValueError("save_pretrained: safe_serialization=False: expected safetensors, found pickle asked for")
        state = packed(self.state_dict() if state_dict is None else state_dict, _columns(self))
        super().save_pretrained(save_directory, is_main_process, state, **options)

    def load_state_dict(self, state_dict: Any, *args: Any, **options: Any) -> Any:
        """As of every module; packed positions, as `Trainer` finds them in a file, are taken too."""
        return super().load_state_dict(unpacked(state_dict, _columns(self)), *args, **options)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """What `output` makes of the encoder's work. input_ids, attention_mask, token_type_ids, position_ids: [B, S].

        No `**`: with one, Trainer believes that the model scales its loss by the accumulated steps. Raises ValueError
        for what is asked for, by argument or config, and is not here.
        """
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = {name: getattr(self.config, name, None) if value is None else value for name, value in asked.items()}
        _refuse("forward", {"inputs_embeds": inputs_embeds, **asked})
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden, pooled = self.bert(input_ids, types, mask, position_ids)
        output = self.output(hidden, pooled, labels)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def output(self, hidden: Tensor, pooled: Tensor, labels: Tensor | None) -> ModelOutput:
        """The answer of a model's heads. hidden: [B, S, H]. pooled: [B, H]."""
        raise NotImplementedError


class SparseBertModel(SparseBertPreTrainedModel):
    """The encoder and its pooler."""

    def __init__(self, config: SparseBertConfig) -> None:
        super().__init__(config)
        self.bert = Bert(config.shape, config.linear(), kernel="auto")
        self.post_init()

    def output(self, hidden: Tensor, pooled: Tensor, labels: Tensor | None) -> BaseModelOutputWithPooling:
        """Hidden states [B, S, H], and pooled [B, H]; there is nothing to have labels for."""
        _refuse("forward", {"labels": labels})
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


class SparseBertForMaskedLM(SparseBertPreTrainedModel):
    """With the masked-LM head, at every position."""

    def __init__(self, config: SparseBertConfig) -> None:
        super().__init__(config)
        self.bert = Bert(config.shape, config.linear(), kernel="auto")
        self.cls = PretrainingHeads(config.shape, kernel="auto")
        self.post_init()

    def output(self, hidden: Tensor, pooled: Tensor, labels: Tensor | None) -> MaskedLMOutput:
        """Logits [B, S, V]; with labels [B, S], -100 where there is none, their mean cross-entropy in nats."""
        logits = self.cls.predictions(hidden, self.bert.embeddings.word_embeddings.weight)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class SparseBertForSequenceClassification(SparseBertPreTrainedModel):
    """With a classifier over the pooled first token; a regression where there is one label, or config says so."""

    def __init__(self, config: SparseBertConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.bert = Bert(config.shape, config.linear(), kernel="auto")
        self.dropout = nn.Dropout(config.shape.dropout)
        self.classifier = nn.Linear(config.shape.hidden_size, config.num_labels)
        self.post_init()

    def output(self, hidden: Tensor, pooled: Tensor, labels: Tensor | None) -> SequenceClassifierOutput:
        """Logits [B, labels]; with labels the loss that config.problem_type asks for, as BertForSequenceClassification:
        cross-entropy of classes int64 [B], binary cross-entropy of [B, labels] 0.0 or 1.0, mean squared error of
        numbers [B, labels]. Where it is None it follows from the first labels, and is kept.
        """
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else ForSequenceClassificationLoss(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def save_sparse(model: BertForPreTraining, folder: Path, pad_token_id: int) -> None:
    """Write config.json and model.safetensors of the sparse form of a pre-trained model; pad_token_id: its [PAD]'s."""
    config = hugging_face_config(model.shape, pad_token_id)
    write_sparse(model, {**config, "architectures": [SparseBertForMaskedLM.__name__]}, folder)


def write_sparse(model: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Write a model's weights, values and positions of blocks among them, and `config` with what the form adds.

    No optimizer's file goes by these slots, so they are put in row-major order, which takes a byte a block.
    """
    blocks = {name: [layer.block_size, layer.values.shape[0]] for name, layer in sparse_layers(model)}
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    state = packed(row_major(state, _columns(model)), _columns(model))
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    with files.replacing(folder / WEIGHTS) as aside:
        save_file(state, str(aside), metadata={"format": "pt"})
    whole = {**config, "model_type": MODEL_TYPE, "blocks": blocks}
    files.write(folder / CONFIG, json.dumps(whole, indent=2, sort_keys=True) + "\n")


def check_sizes(config: SparseBertConfig, state: Mapping[str, Tensor]) -> None:
    """ValueError where a file cannot have what its config says, asked before memory is taken for it."""
    shape, hidden, layers = config.shape, config.shape.hidden_size, config.shape.layers
    expected: dict[str, tuple[int, ...]] = {
        WORD_EMBEDDINGS: (shape.vocab_size, hidden),
        "bert.embeddings.position_embeddings.weight": (shape.max_positions, hidden),
        "bert.pooler.dense.weight": (hidden, hidden),
        f"bert.encoder.layer.{layers - 1}.intermediate.dense.bias": (shape.intermediate_size,),
    }
    config.linear()  # says what is no pair
    expected.update({f"{name}.values": (count, size, size) for name, (size, count) in config.blocks.items()})
    for name, sizes in expected.items():
        found = list(state[name].shape) if name in state else "none"
        if found != list(sizes):
            raise ValueError(f"{name}: expected {list(sizes)}, as {CONFIG} has it, found {found}")


def _files_of(where: str, hub: Mapping[str, Any]) -> list[Path]:
    """The files of the weights: one, or as many as save_pretrained(max_shard_size=...) has made."""
    files = weight_files(where, **hub)
    if not files:
        raise ValueError(f"{where}: expected {CONFIG} and {WEIGHTS}, found no {WEIGHTS}")
    return files


def _refuse(where: str, options: Mapping[str, Any]) -> None:
    """ValueError that names the options which are asked for; one that is None, False or "" is not."""
    found = [name for name, value in options.items() if not (value is None or value is False or value == "")]
    if found:
        raise ValueError(f"{where}: the sparse form has nothing for {', '.join(found)}: leave out")


def _dtype_of(asked: Any, config: Any) -> torch.dtype:
    """The dtype of torch that is asked for, by itself or by name; where none is, the config's, else float32."""
    if asked is None or asked == "auto":
        older = not hasattr(config, "dtype")  # transformers 4; newer ones warn of whoever asks by that name
        asked = (config.torch_dtype if older else config.dtype) or torch.float32
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype: expected a floating dtype of torch or its name, found {asked!r:.60}")
    return found


def _columns(model: nn.Module) -> dict[str, int]:
    """Block columns of each sparse layer's grid."""
    return {name: layer.in_features // layer.block_size for name, layer in sparse_layers(model)}


AutoConfig.register(MODEL_TYPE, SparseBertConfig)
AutoModel.register(SparseBertConfig, SparseBertModel)
AutoModelForMaskedLM.register(SparseBertConfig, SparseBertForMaskedLM)
AutoModelForSequenceClassification.register(SparseBertConfig, SparseBertForSequenceClassification)
