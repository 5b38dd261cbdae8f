"""One override of every setting over shipped configs: it is enough, and nothing else changes without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_files import flat

from ipu_bert.config import CONFIG_DIR, Config, ConfigError, load_config
from ipu_bert.sizes.placement import place

# For every setting other values that somebody may want to try alone.
OTHERS: dict[str, list[object]] = {
    "run.name": ["mine"],
    "run.dir": ["elsewhere"],
    "run.seed": [7],
    "model.init": ["./nowhere"],
    "model.layers": [1, 3, 24],
    "model.hidden_size": [64, 208, 512],
    "model.heads": [1, 2],
    "model.intermediate_size": [256],
    "model.max_positions": [32, 64, 1024],
    "model.dropout": [0.2],
    "model.attention_dropout": [0.2],
    "model.layer_norm_eps": [1e-5],
    "model.initializer_range": [0.01],
    "sparsity.method": ["dense", "static"],
    "sparsity.sparsity": [0.0, 0.5, 0.95],
    "sparsity.init_pattern": ["random"],
    "sparsity.block_size": [1, 4],
    "sparsity.updates": [1, 50],
    "sparsity.pruning_ratio": [0.2],
    "sparsity.schedule": ["linear"],
    "sparsity.norm": ["l2"],
    "sparsity.growth": ["gradient"],
    "sparsity.allow_removed": [True],
    "sparsity.start": [0.1, 0.95],
    "sparsity.stop": [0.05, 0.75],
    "sparsity.distribution": ["erdos_renyi_kernel"],
    "sparsity.layers": [["*attention*"]],
    "optim.lr": [1e-4, "auto"],
    "optim.dense_lr": [1e-4],
    "optim.schedule": ["constant"],
    "optim.warmup_steps": [0, 1, 50],
    "optim.beta1": [0.8],
    "optim.beta2": [0.99],
    "optim.eps": [1e-8],
    "optim.weight_decay": [0.0],
    "optim.group_lasso": [0.1],
    "optim.clip_norm": [0.0],
    "data.source": ["sotu", "mix", "wikipedia_bookcorpus", "files"],
    "data.path": ["text.txt"],
    "data.column": ["body"],
    "data.encoding": ["cp1251"],
    "data.language": ["de"],
    "data.line_is_sentence": [True],
    "data.tokenizer": ["vocab.txt"],
    "data.do_lower_case": [False],
    "data.strip_accents": [True],
    "data.tokenize_chinese_chars": [False],
    "data.vocab_size": [1000],
    "data.dir": ["elsewhere"],
    "data.workers": [1],
    "data.heldout_fraction": [0.1],
    "data.sequence_length": [8, 32, 1024],
    "data.mask_probability": [0.3],
    "data.max_predictions": [1, 60],
    "data.whole_word_masking": [False],
    "data.short_sequence_probability": [0.0],
    "train.steps": [1, 40, 60, 10000, 20000],
    "train.stop_at": [5],
    "train.batch_size": [12, 16, 24, 100, 512],
    "train.micro_batch_size": [1, 2],
    "train.skip_non_finite": [3],
    "eval.every": [0, 7],
    "eval.batches": [1],
    "checkpoint.every": [0, 7],
    "checkpoint.keep": [0],
    "checkpoint.keep_best": [True],
    "precision.compute": ["float32", "bfloat16", "float16"],
    "precision.loss_scale": [64.0],
    "engine.name": ["torch", "ipu"],
    "engine.device": ["offline"],
    "engine.kernel": ["torch"],
    "engine.threads": [1],
    "engine.patience": [10.0],
    "ipu.layers_per_ipu": [[12], [1, 1], [6, 6]],
    "ipu.ipus": [1, 64],
    "ipu.replicas": [2],
    "ipu.gradient_accumulation": [16],
    "ipu.available_memory": [[0.3]],
    "ipu.sparse_available_memory": [0.5],
    "ipu.sparse_oversize": [0.2],
    "ipu.automatic_loss_scale": [True],
    "ipu.half_partials": [False],
    "ipu.stochastic_rounding": [False],
    "ipu.optimizer_off_chip": [False],
    "ipu.optimizer_sharded": [True],
    "ipu.recompute": [False],
    "ipu.vocabulary_parts": [1, 2],
    "ipu.executable_cache": ["cache"],
    "ipu.profile_dir": ["profile"],
    "log.every": [1],
    "log.tensorboard": [False],
    "log.wandb": [True],
}
# Where nothing obvious follows: which file to read is not known, an engine cannot do it, or the layers are others.
ON_TORCH = {'model.init="./nowhere"', 'data.source="files"', 'precision.compute="float16"'}
ON_IPUS = {
    'model.init="./nowhere"',
    'data.source="files"',
    'precision.compute="bfloat16"',
    'sparsity.growth="gradient"',
    "optim.group_lasso=0.1",
    "train.skip_non_finite=3",
}
REFUSED = {
    "quickstart": {*ON_TORCH, "data.max_predictions=60"},  # of sequences of 32
    "bert_base_dynsparse": ON_TORCH,
    "quickstart_simulated": {*ON_IPUS, "ipu.ipus=1", "ipu.layers_per_ipu=[12]", "ipu.layers_per_ipu=[6, 6]"},
    "bert_base_dynsparse_pod4": {*ON_IPUS, "ipu.ipus=1", "ipu.layers_per_ipu=[1, 1]"},
}
# Written out from other settings where nothing was written: no value that gives way.
FOLLOWING = {
    "run.dir",
    "model.heads",
    "model.intermediate_size",
    "ipu.layers_per_ipu",
    "ipu.gradient_accumulation",
}


def test_every_setting_is_tried():
    assert set(OTHERS) == set(flat(Config()))


@pytest.mark.parametrize("name", REFUSED)
def test_overriding_one_thing_is_enough(name):
    """The value stands, all else is as it was or said to have given way, and the IPUs' pipeline can be filled."""
    before, refused = flat(load_config(name)), set()
    for key, value in ((key, value) for key, values in OTHERS.items() for value in values):
        override = f"{key}={json.dumps(value)}"
        try:
            config = load_config(name, [override])
        except ConfigError:
            refused.add(override)
            continue
        after = flat(config)
        assert after[key] == value, override
        gave_way = {line.partition(":")[0] for line in config.gave_way}
        changed = {other for other in after if after[other] != before[other]}
        assert gave_way - FOLLOWING <= changed <= {key} | gave_way | FOLLOWING, override
        if config.engine.name == "ipu":
            problems = place(config, config.data.vocab_size).problems
            assert [text for text in problems if text.startswith(("ipu.", "train."))] == [], override
    assert refused == REFUSED[name]


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_can_be_tried_in_little(path: Path):
    for override in ("train.steps=40", "train.batch_size=288", "data.sequence_length=16", "model.layers=3"):
        load_config(path.stem, [override])
