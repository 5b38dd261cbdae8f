"""What is wrong between settings that are right one by one; nothing is changed here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Iterator

import yaml

from ipu_bert.config.resolve import longest_warmup, most_predictions, steps_to_update
from ipu_bert.config.written import shortened
from ipu_bert.config.yaml_text import MOST_BYTES, MOST_VALUES
from ipu_bert.data.source import SOURCES
from ipu_bert.settings import Config, SparsitySettings
from ipu_bert.sizes.distribution import match_weights
from ipu_bert.sizes.weights import encoder_weights
from sparse_ops.dynsparse.grow import GROW_RULES

MOST_TOKENS = 2**28  # of a step; the largest in the literature are 2**25
MOST_PATHS = MOST_VALUES - 1000  # of data.path, beside all other settings
MOST_OF_PATHS = MOST_BYTES - (64 << 10)
MOST_PATTERNS = 100  # of sparsity.layers, each of which is held against every weight's name

_FOLDERS = (("run", "dir"), ("data", "dir"), ("ipu", "executable_cache"), ("ipu", "profile_dir"))  # made if missing
_ELSEWHERE = re.compile(r"^[A-Za-z][\w+.-]+://|^~|\$\{?\w")  # s3://..., ~nobody (values.at_home), $NAME


def folder_checks(config: Config) -> Iterator[str]:
    """Folders that would be made under a name that means something elsewhere: to a shell, or as an address.

    One that is there is as it is called, and a run in it goes on.
    """
    for section, name in _FOLDERS:
        found = getattr(getattr(config, section), name)
        if _ELSEWHERE.search(found) and not os.path.isdir(found):
            yield f"{section}.{name}: expected a local folder, as it is called, found {shortened(found)}"


def room_checks(config: Config) -> Iterator[str]:
    """Folders that cannot be made, since a file is there or on the way; a link to nothing is told where it is read."""
    for name, found in (("run.dir", config.run.dir), ("data.dir", config.data.dir)):
        there = next((place for place in (Path(found), *Path(found).parents) if os.path.exists(place)), Path())
        if not os.path.isdir(there):
            yield f"{name}: expected a folder, or nothing yet, found the file {shortened(str(there))}"


def cross_checks(config: Config) -> Iterator[str]:
    """What is wrong between settings that are right one by one."""
    model, data, train = config.model, config.data, config.train
    assert train.micro_batch_size is not None
    if model.hidden_size % model.heads:
        yield f"model.heads: expected a divisor of hidden_size {model.hidden_size}, found {model.heads}"
    if data.sequence_length > model.max_positions:
        limit = f"at most model.max_positions {model.max_positions}"
        yield f"data.sequence_length: expected {limit}, found {data.sequence_length}"
    if data.max_predictions > most_predictions(config):
        yield f"data.max_predictions: expected at most {most_predictions(config)}, found {data.max_predictions}"
    if train.batch_size % train.micro_batch_size:
        divisor = f"a divisor of train.batch_size {train.batch_size}"
        yield f"train.micro_batch_size: expected {divisor}, found {train.micro_batch_size}"
    if train.stop_at is not None and train.stop_at > train.steps:
        yield f"train.stop_at: expected at most train.steps {train.steps}, found {train.stop_at}"
    if train.batch_size * data.sequence_length > MOST_TOKENS:
        found = train.batch_size * data.sequence_length
        yield f"train.batch_size x data.sequence_length: expected at most {MOST_TOKENS:,} tokens, found {found:,}"
    yield from _optim_checks(config)
    if data.source not in SOURCES:
        yield f"data.source: expected one of {', '.join(SOURCES)}, found {shortened(data.source)}"
    if data.source == "files" and not data.path:
        yield "data.path: expected a file or folder with source files, found nothing"
    yield from _place_checks(config)
    if config.sparsity.method != "dense":
        yield from _sparsity_checks(config)
    if isinstance(config.ipu.layers_per_ipu, str) and config.ipu.layers_per_ipu != "auto":
        yield f"ipu.layers_per_ipu: expected counts of layers or auto, found {shortened(config.ipu.layers_per_ipu)}"
    yield from _engine_checks(config)


def _place_checks(config: Config) -> Iterator[str]:
    """Whether there is a folder for prepared text, and a run's config.yaml can be read with such a list of files."""
    path = config.data.path
    if not config.data.dir:
        yield "data.dir: expected a folder, found nothing; . is the one that you are in"
    if isinstance(path, list):
        size = len(yaml.safe_dump({"data": {"path": path}})) if len(path) <= MOST_PATHS else 0
        if not 0 < size <= MOST_OF_PATHS:
            found = f"{len(path):,}" + f" of {size:,}" * bool(size)
            most = f"at most {MOST_PATHS:,} paths of {MOST_OF_PATHS:,} bytes as YAML"
            yield f"data.path: expected {most}, found {found}: name their folder, or give a glob"


def _optim_checks(config: Config) -> Iterator[str]:
    optim, steps = config.optim, config.train.steps
    warmup = optim.warmup_steps
    assert warmup is not None
    if not isinstance(warmup, int):
        yield f"optim.warmup_steps: expected a whole number of steps, or a share of the run below 1, found {warmup}"
    elif warmup > steps:
        yield f"optim.warmup_steps: expected at most train.steps {steps}, found {warmup}"
    elif warmup > longest_warmup(config):
        yield f"optim.warmup_steps: expected less than train.steps {steps} before a decay to 0, found {warmup}"
    if isinstance(optim.lr, str) and optim.lr != "auto":
        yield f"optim.lr: expected a number or auto, found {shortened(optim.lr)}"
    elif not isinstance(optim.lr, str) and optim.lr <= 0:
        yield f"optim.lr: expected more than 0, found {optim.lr}"


def _engine_checks(config: Config) -> Iterator[str]:
    compute, ipu, train = config.precision.compute, config.ipu, config.train
    if config.engine.name != "ipu":
        if compute == "float16":
            yield "precision.compute: expected float32 or bfloat16 on the torch engine, found float16"
        return
    assert train.micro_batch_size is not None
    if compute == "bfloat16":
        yield "precision.compute: expected float16 or float32 on the ipu engine, found bfloat16"
    yield from _placement_checks(config)
    if not all(0.0 < share <= 1.0 for share in ipu.available_memory):
        yield f"ipu.available_memory: expected shares in (0, 1], found {shortened(ipu.available_memory)}"
    if ipu.automatic_loss_scale and compute != "float16":
        yield f"ipu.automatic_loss_scale: expected false with precision.compute {compute}, found true"
    if train.skip_non_finite:
        yield (
            f"train.skip_non_finite: expected 0 on the ipu engine, found {train.skip_non_finite}: a loss that is not "
            "finite is found there after the weights have changed"
        )
    if config.optim.group_lasso:
        yield f"optim.group_lasso: expected 0 on the ipu engine, found {config.optim.group_lasso}"
    if config.sparsity.method == "dynsparse" and GROW_RULES[config.sparsity.growth].needs_gradient:
        yield (
            "sparsity.growth: expected a rule without the dense gradient on the ipu engine, found "
            f"{config.sparsity.growth!r}: the gradient would have to be computed there in every step"
        )


def _placement_checks(config: Config) -> Iterator[str]:
    """What is wrong with a placement that is written out; or whether `auto` can make one."""
    layers, ipu, train = config.ipu.layers_per_ipu, config.ipu, config.train
    assert train.micro_batch_size is not None
    if isinstance(layers, str):
        if layers == "auto" and not ipu.ipus:
            yield "ipu.ipus: expected how many IPUs there are, since ipu.layers_per_ipu is auto, found 0"
        return
    if sum(layers) != config.model.layers or min(layers) < 0:
        made = f"{shortened(layers)}, which make {sum(layers)}"
        yield f"ipu.layers_per_ipu: expected counts that add up to model.layers {config.model.layers}, found {made}"
    made_of = ipu.replicas * ipu.gradient_accumulation * train.micro_batch_size
    if made_of != train.batch_size:
        yield (
            f"train.batch_size: expected ipu.replicas {ipu.replicas} x "
            f"ipu.gradient_accumulation {ipu.gradient_accumulation} x "
            f"train.micro_batch_size {train.micro_batch_size} = {made_of}, found {train.batch_size}"
        )
    if ipu.ipus and ipu.replicas * len(layers) > ipu.ipus:
        taken = f"{ipu.replicas} replica(s) of {len(layers)}"
        yield f"ipu.ipus: expected at least the {ipu.replicas * len(layers)} IPUs of {taken}, found {ipu.ipus}"
    if len(ipu.available_memory) not in (1, len(layers)):
        wanted = "1 share" if len(layers) == 1 else f"1 or {len(layers)} shares"
        yield f"ipu.available_memory: expected {wanted}, found {len(ipu.available_memory)}"


def _sparsity_checks(config: Config) -> Iterator[str]:
    model, sparsity = config.model, config.sparsity
    sizes = (("model.hidden_size", model.hidden_size), ("model.intermediate_size", model.intermediate_size))
    undivided = [(name, size) for name, size in sizes if size % sparsity.block_size]
    for name, size in undivided:
        yield f"{name}: expected a multiple of sparsity.block_size {sparsity.block_size}, found {size}"
    if not undivided:
        yield from _sparse_weight_checks(config)
    if sparsity.method == "dynsparse":
        if sparsity.start >= sparsity.stop:
            yield f"sparsity.start: expected less than sparsity.stop {sparsity.stop}, found {sparsity.start}"
        elif sparsity.updates > max(1, steps_to_update(config)):  # 1 is no update
            found = f"{steps_to_update(config)} step(s) from start to stop, found {sparsity.updates}"
            yield f"sparsity.updates: expected at most one per step, {found}"


def _sparse_weight_checks(config: Config) -> Iterator[str]:
    """Whether the names match weights and every sparse weight keeps a block; the first that does not is reported."""
    found = len(config.sparsity.layers)
    if found > MOST_PATTERNS:
        yield f"sparsity.layers: expected at most {MOST_PATTERNS} patterns, found {found}"
        return
    try:
        match_weights(encoder_weights(config.model, SparsitySettings(method="dense")), config.sparsity.layers)
    except ValueError as error:
        yield f"sparsity.layers: {error}"
        return
    try:
        encoder_weights(config.model, config.sparsity)
    except ValueError as error:
        yield f"sparsity.sparsity: {error}"
