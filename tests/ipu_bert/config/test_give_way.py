"""Overriding one thing is enough: a value that the user did not write gives way to one that they did."""

from __future__ import annotations

import pytest
from config_files import errors_of, flat, write

import run_pretraining
from ipu_bert import assemble
from ipu_bert.config import CONFIG_DIR, ConfigError, as_dict, from_dict, identity, load_config
from ipu_bert.sizes.dry_run import render

POD = "bert_base_dynsparse_pod4"  # [0, 4, 4, 4] layers, micro-batches of 8, one replica
SIMULATED = "quickstart_simulated"  # [1, 1] layers, 16 sequences in micro-batches of 2, 60 steps
PODS_MEMORY = "[0.2, 0.15, 0.15, 0.15]"


@pytest.mark.parametrize(
    ("name", "override", "line"),
    [
        (
            "quickstart",
            "train.batch_size=16",
            "train.micro_batch_size: 16, since configs/quickstart's 64 does not divide train.batch_size 16",
        ),
        (
            "quickstart",
            "train.batch_size=100",
            "train.micro_batch_size: 50, since configs/quickstart's 64 does not divide train.batch_size 100",
        ),
        (
            "quickstart",
            "train.steps=40",
            "optim.warmup_steps: 4, since configs/quickstart's 200 does not fit train.steps 40",
        ),
        (
            "bert_mini_static",
            "train.steps=5000",
            "optim.warmup_steps: 500, since the default 10000 does not fit train.steps 5000",
        ),
        (
            "quickstart",
            "sparsity.stop=0.003",
            "sparsity.updates: 6, since configs/quickstart's 20 is more than the 6 step(s) from start to stop",
        ),
        (
            "bert_mini_static",
            "data.sequence_length=16",  # 0.15 x 16 = 2.4
            "data.max_predictions: 3, since the default 20 does not fit data.sequence_length 16",
        ),
        (
            "quickstart",
            "data.sequence_length=512",  # 0.15 x 512 = 76.8
            "data.max_predictions: 77, since configs/quickstart's 5 is less than data.mask_probability 0.15 "
            "of data.sequence_length 512",
        ),
        (
            "quickstart",
            "data.mask_probability=0.4",  # 0.4 x 32 = 12.8
            "data.max_predictions: 13, since configs/quickstart's 5 is less than data.mask_probability 0.4 "
            "of data.sequence_length 32",
        ),
        (
            SIMULATED,
            "data.sequence_length=96",  # 0.15 x 96 = 14.4
            f"data.max_predictions: 15, since configs/{SIMULATED}'s 10 is less than data.mask_probability 0.15 "
            "of data.sequence_length 96",
        ),
        (
            "bert_mini_static",
            "model.max_positions=64",
            "data.sequence_length: 64, since the default 128 is more than model.max_positions 64",
        ),
        (
            "quickstart",
            "model.hidden_size=208",
            "model.heads: 2, since the default 3 does not divide model.hidden_size 208",
        ),
        (
            SIMULATED,
            "engine.name=torch",
            f"precision.compute: float32, since configs/{SIMULATED}'s float16 is not for the torch engine",
        ),
        (
            SIMULATED,
            "model.layers=3",
            f"ipu.layers_per_ipu: [1, 2], since configs/{SIMULATED}'s [1, 1] does not add up to model.layers 3",
        ),
        (
            POD,
            "model.layers=16",
            f"ipu.layers_per_ipu: [0, 5, 5, 6], since configs/{POD}'s [0, 4, 4, 4] does not add up to model.layers 16",
        ),
        (
            POD,
            "ipu.layers_per_ipu=[6, 6]",
            f"ipu.available_memory: [0.2, 0.15], since configs/{POD}'s {PODS_MEMORY} "
            "is not a share for each of 2 IPU(s)",
        ),
        (
            POD,
            "ipu.layers_per_ipu=[2, 2, 2, 2, 4]",
            f"ipu.available_memory: [0.2, 0.15, 0.15, 0.15, 0.15], since configs/{POD}'s {PODS_MEMORY} "
            "is not a share for each of 5 IPU(s)",
        ),
        (
            POD,
            "train.batch_size=64",  # 64 / 9 = 7.1, and the largest divisor up to there is 4
            f"train.micro_batch_size: 4, since configs/{POD}'s 8 does not cut train.batch_size 64 "
            "into at least 9 micro-batches for each of 1 replica(s)",
        ),
        (
            POD,
            "ipu.gradient_accumulation=16",
            f"train.micro_batch_size: 32, since configs/{POD}'s 8 does not cut train.batch_size 512 "
            "into 16 micro-batches for each of 1 replica(s)",
        ),
        (
            "quickstart",
            "data.path=mine.txt",  # was not read
            "data.source: files, since configs/quickstart's sotu reads no data.path",
        ),
        (
            "bert_base_dynsparse_pod16",
            "train.batch_size=100",  # 25 for each of 4 replicas
            "train.micro_batch_size: 1, since configs/bert_base_dynsparse_pod16's 4 does not cut train.batch_size 100 "
            "into at least 9 micro-batches for each of 4 replica(s)",
        ),
    ],
)
def test_what_gives_way_to_one_override(name, override, line):
    config = load_config(name, [override])
    assert config.gave_way == [line]
    key, _, value = line.partition(", since")[0].partition(": ")
    assert str(flat(config)[key]) == value


def test_a_predictions_limit_that_fits_a_shorter_sequence_stays():
    config = load_config("quickstart", ["data.sequence_length=16"])
    assert (config.data.max_predictions, config.gave_way) == (5, [])
    shortest = load_config("quickstart", ["data.sequence_length=8", "data.mask_probability=0.9"])
    assert shortest.data.max_predictions == 5  # 0.9 x 8 = 7.2, and [CLS] and two [SEP] take 3 of 8


def test_fewer_predictions_than_asked_for_are_said_where_the_user_wrote_them():
    why = "at most 3.9 % of 512 tokens, less than data.mask_probability 0.15, which gives way"
    line = f"data.max_predictions: 20 as written: {why}"
    config = load_config("quickstart", ["data.sequence_length=512", "data.max_predictions=20"])
    assert (config.data.max_predictions, config.gave_way) == (20, [line])
    config = load_config("quickstart", ["data.max_predictions=20", "data.mask_probability=0.4"])
    assert (config.data.max_predictions, config.gave_way) == (20, [])
    for asked_for_by_masking in (
        ["data.mask_probability=0.17"],
        ["data.sequence_length=36"],
        ["data.mask_probability=0.14", "data.max_predictions=4"],
    ):
        config = load_config("quickstart", asked_for_by_masking)  # which rounds 5.44, 5.4 and 4.48
        assert (config.data.max_predictions <= 5, config.gave_way) == (True, [])
    shortest = ["data.sequence_length=8", "data.mask_probability=0.9", "data.max_predictions=5"]
    assert load_config("quickstart", shortest).gave_way == []  # there is no room for more


def test_one_change_may_bring_about_several():
    config = load_config("bert_base_dynsparse", ["train.steps=40"])
    assert (config.optim.warmup_steps, config.sparsity.updates) == (4, 40)
    config = load_config("bert_mini_static", ["model.max_positions=16"])
    assert (config.data.sequence_length, config.data.max_predictions) == (16, 3)
    config = load_config("quickstart", ["data.sequence_length=1024"])
    assert (config.model.max_positions, config.data.max_predictions) == (1024, 154)
    config = load_config(SIMULATED, ["model.layers=1"])
    assert (config.ipu.layers_per_ipu, config.ipu.gradient_accumulation) == ([0, 1], 8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.batch_size=16", "train.micro_batch_size=32"],
            "train.micro_batch_size: expected a divisor of train.batch_size 16, found 32",
        ),
        (
            ["train.steps=40", "optim.warmup_steps=60"],
            "optim.warmup_steps: expected at most train.steps 40, found 60",
        ),
        (["optim.warmup_steps=2001"], "optim.warmup_steps: expected at most train.steps 2000, found 2001"),
        (
            ["train.steps=5", "sparsity.updates=12"],
            "sparsity.updates: expected at most one per step, 5 step(s) from start to stop, found 12",
        ),
        (
            ["sparsity.start=0.9999"],  # no step is left, so no number of updates fits
            "sparsity.updates: expected at most one per step, 0 step(s) from start to stop, found 20",
        ),
        (
            ["data.sequence_length=16", "data.max_predictions=20"],
            "data.max_predictions: expected at most 13, found 20",
        ),
        (
            ["model.max_positions=4"],  # shorter than any sequence may be
            "data.sequence_length: expected at most model.max_positions 4, found 32",
        ),
        (
            ["precision.compute=float16"],
            "precision.compute: expected float32 or bfloat16 on the torch engine, found float16",
        ),
        (
            ["model.hidden_size=200"],
            "model.hidden_size: expected a multiple of sparsity.block_size 16, found 200",
        ),
    ],
)
def test_what_the_user_wrote_is_strict(overrides, message):
    assert errors_of("quickstart", overrides) == [message]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.layers=4", "ipu.layers_per_ipu=[1, 1]"],
            "ipu.layers_per_ipu: expected counts that add up to model.layers 4, found [1, 1], which make 2",
        ),
        (
            ["ipu.replicas=3"],
            "train.batch_size: expected ipu.replicas 3 x ipu.gradient_accumulation 2 x train.micro_batch_size 2 = 12, "
            "found 16",
        ),
        (
            ["ipu.gradient_accumulation=3"],
            "train.batch_size: expected ipu.replicas 1 x ipu.gradient_accumulation 3 x train.micro_batch_size 2 = 6, "
            "found 16",
        ),
        (
            ["ipu.available_memory=[0.2, 0.2, 0.2]"],
            "ipu.available_memory: expected 1 or 2 shares, found 3",
        ),
        (
            ["sparsity.growth=gradient"],
            "sparsity.growth: expected a rule without the dense gradient on the ipu engine, found 'gradient': "
            "the gradient would have to be computed there in every step",
        ),
        (
            ["precision.compute=bfloat16"],
            "precision.compute: expected float16 or float32 on the ipu engine, found bfloat16",
        ),
    ],
)
def test_what_the_user_wrote_is_strict_on_ipus(overrides, message):
    assert errors_of(SIMULATED, overrides) == [message]


def test_a_file_of_ones_own_is_strict_and_what_it_inherits_is_not(tmp_path):
    inherits = write(tmp_path, "base: quickstart\ntrain: {steps: 40}\n")
    assert load_config(inherits).optim.warmup_steps == 4
    repeats = write(tmp_path, "base: quickstart\noptim: {warmup_steps: 60}\n", "repeats.yaml")
    assert load_config(repeats).gave_way == []
    message = "optim.warmup_steps: expected at most train.steps 40, found 60"
    assert errors_of(repeats, ["train.steps=40"]) == [message]
    assert errors_of(write(tmp_path, "base: repeats\ntrain: {steps: 40}\n")) == [message]


def test_a_file_in_configs_is_no_file_of_ones_own_when_named_by_its_path():
    by_path = load_config(str(CONFIG_DIR / "quickstart.yaml"), ["train.steps=40"])
    assert by_path.gave_way == load_config("quickstart", ["train.steps=40"]).gave_way


def test_a_resolved_config_is_strict():
    tree = as_dict(load_config("quickstart"))
    assert as_dict(from_dict(tree)) == tree
    tree["train"]["steps"] = 40
    with pytest.raises(ConfigError, match=r"^optim\.warmup_steps: expected at most train\.steps 40, found 200$"):
        from_dict(tree)


def test_of_one_key_the_last_override_counts_and_a_line_says_so():
    config = load_config("quickstart", ["train.steps=40", "run.seed=7", "train.steps=50", "run.seed=7"])
    assert config.train.steps == 50
    assert config.gave_way[0] == "'train.steps=40', since 'train.steps=50' comes after it"
    assert not any("seed" in line for line in config.gave_way)  # the same value twice is what was asked for


def test_what_gave_way_is_no_setting():
    config = load_config("quickstart", ["train.steps=40"])
    written_out = load_config("quickstart", ["train.steps=40", "optim.warmup_steps=4"])
    assert config.gave_way
    assert as_dict(config) == as_dict(written_out)
    assert identity(config) == identity(written_out)
    assert "unknown section 'gave_way'" in errors_of("quickstart", ["gave_way.x=1"])[0]


def test_the_dry_run_and_the_start_of_a_run_say_it(tmp_path, monkeypatch, capsys):
    overrides = ["train.steps=40", "train.batch_size=16", f"data.dir={tmp_path}"]
    config = load_config("quickstart", overrides)
    found = assemble.plan(config)
    assert found["gave_way"] == config.gave_way
    assert [line for line in render(found).splitlines() if line.startswith("gave way")] == [
        f"gave way    {line}" for line in config.gave_way
    ]
    monkeypatch.setattr("ipu_bert.cli._train", lambda config, resume, ranks: 0)
    assert run_pretraining.main(["--config", "quickstart", *overrides]) == 0
    assert capsys.readouterr().err.splitlines() == [f"gave way: {line}" for line in config.gave_way]
