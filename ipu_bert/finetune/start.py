"""The classifier at its start: encoder and tokenizer of a run, a checkpoint, a folder in either form, or a hub name."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ipu_bert.data.errors import one_line
from ipu_bert.finetune.options import Start, Training
from ipu_bert.hub.auto import MODEL_TYPE, SparseBertConfig, SparseBertForSequenceClassification, SparseBertModel
from ipu_bert.hub.folders import CONFIG
from ipu_bert.hub.source import read_bert
from ipu_bert.hub.start import take_weights
from ipu_bert.hub.tokenizer_files import save_tokenizer
from ipu_bert.hub.weights import own_weights
from ipu_bert.hub_files import find_file
from ipu_bert.json_file import read_object
from ipu_bert.model import BertForPreTraining, dense_linear, sparse_layers, sparse_linear, truncated_normal_
from ipu_bert.settings import SparsitySettings
from ipu_bert.sizes.config_json import shape_from_config, sizes
from ipu_bert.sizes.weights import encoder_weights
from ipu_bert.trained import is_run, load_model
from sparse_ops.pattern import named_generator
from sparse_ops.saying import say


@dataclass(frozen=True)
class Source:
    """A pre-trained model and the tokenizer of its ids, one of transformers."""

    model: BertForPreTraining
    tokenizer: Any


def border_ids(tokenizer: Any) -> tuple[int | None, int | None]:
    """Ids of [CLS] and [SEP], also of a tokenizer whose files do not declare them, or as RoBERTa's <s> and </s>."""
    words = tokenizer.get_vocab()
    cls, sep = (
        next((number for number in (declared, words.get(name), other) if number is not None), None)
        for declared, name, other in (
            (tokenizer.cls_token_id, "[CLS]", tokenizer.bos_token_id),
            (tokenizer.sep_token_id, "[SEP]", tokenizer.eos_token_id),
        )
    )
    return cls, sep


def check_borders(tokenizer: Any, where: str, columns: int) -> None:
    """Raises ValueError unless [CLS] comes before a row of so many texts and [SEP] after each, as in pre-training."""
    ids = tokenizer(*["a"] * columns)["input_ids"]
    first, last = border_ids(tokenizer)
    if not ids or None in (first, last) or [ids[0], ids[-1]] != [first, last] or ids.count(last) < columns:
        found = " ".join(map(str, tokenizer.convert_ids_to_tokens(ids))) or "nothing"
        raise ValueError(
            f"{where}: expected a tokenizer that puts [CLS] before a row and [SEP] after each text (post_processor in "
            f"tokenizer.json), found {found!r:.80} for {' and '.join(['a'] * columns)}"
        )


def read_source(start: Start, seed: int) -> Source:
    """Raises ValueError, one line, for what is none of these, and for sparsity or blocks that it cannot have."""
    source = _of_run(start.where) if is_run(start.where) else _of_folder(start.where, seed)
    model = source.model
    if start.sparsity is not None:
        settings = SparsitySettings(
            method="static" if start.sparsity else "dense", sparsity=start.sparsity, block_size=start.block_size
        )
        linear = sparse_linear(encoder_weights(model.shape, settings), seed, kernel="auto")
        model = BertForPreTraining(model.shape, linear, seed, kernel="auto")
        taken = take_weights(model, own_weights(source.model), "magnitude", seed)
        if taken.kept is not None:
            say(
                f"largest blocks hold {100 * taken.kept:.1f} % of the L1 mass of the weights that are sparse",
                sys.stdout,
            )
    if start.from_scratch:
        model.initialize(seed)
    return Source(model, source.tokenizer)


def classifier(source: BertForPreTraining, outputs: int, training: Training) -> SparseBertForSequenceClassification:
    """The encoder with a new linear layer over the pooled first token; dropout is that of the fine-tuning."""
    shape = replace(source.shape, dropout=training.dropout, attention_dropout=training.dropout)
    blocks = {name: [layer.block_size, layer.values.shape[0]] for name, layer in sparse_layers(source)}
    config = SparseBertConfig(blocks=blocks, num_labels=outputs, **sizes(shape))
    with torch.random.fork_rng(devices=[]):  # weights that are replaced below
        model = SparseBertForSequenceClassification(config)
    model.bert.load_state_dict(source.bert.state_dict())
    generator = named_generator(training.seed, "init/classifier.weight")
    truncated_normal_(model.classifier.weight, shape.initializer_range, generator)
    torch.nn.init.zeros_(model.classifier.bias)
    return model


def _of_run(where: str) -> Source:
    trained = load_model(Path(where))
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(trained.text, trained.config.data.sequence_length, Path(folder))
        return Source(trained.model, AutoTokenizer.from_pretrained(folder))


def _of_folder(where: str, seed: int) -> Source:
    """A model that transformers loads, with or without this package."""
    file = find_file(where, CONFIG)
    if file is None:
        raise ValueError(f"{where}: expected a run, a checkpoint, or a model's folder or name, found no {CONFIG}")
    try:
        config = read_object(file)
        if config.get("model_type") == MODEL_TYPE:
            encoder = SparseBertModel.from_pretrained(where)
            model = BertForPreTraining(encoder.config.shape, encoder.config.linear(), seed, kernel="auto")
            model.bert.load_state_dict(encoder.bert.state_dict())
        else:
            state, _left = read_bert(where)
            model = BertForPreTraining(shape_from_config(config), dense_linear, seed, kernel="auto")
            take_weights(model, state, "magnitude", seed)
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)  # which also asks nobody
    except Exception as error:  # transformers raises many kinds for files that are none
        raise ValueError(
            f"{where}: expected a tokenizer that AutoTokenizer opens, found none: {one_line(error)}"
        ) from None
    if len(tokenizer) > model.shape.vocab_size:
        raise ValueError(
            f"{where}: expected a row of the word embedding for each of the tokenizer's {len(tokenizer)} ids, found "
            f"{model.shape.vocab_size}"
        )
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes where there are no files of one
        raise ValueError(f"{where}: expected word pieces beside the tokenizer's special tokens, found none")
    return Source(model, tokenizer)
