"""Configs: inheritance, overrides, number forms, and every mistake reported at once with the thing named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipu_bert import assemble
from ipu_bert.config import CONFIG_DIR, ConfigError, as_dict, config_hash, identity, load_config, reference_page

ROOT = CONFIG_DIR.parent


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def errors_of(*args) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(*args)
    return caught.value.errors


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_in_the_folder_is_valid(path):
    load_config(path.stem)


@pytest.mark.parametrize(
    ("size", "layers", "hidden", "heads", "dropout"),
    [
        ("tiny", 2, 128, 2, 0),
        ("mini", 4, 256, 4, 0),
        ("small", 4, 512, 8, 0),
        ("medium", 8, 512, 8, 0.1),
        ("base", 12, 768, 12, 0.1),
    ],
)
@pytest.mark.parametrize("method", ["dense", "static", "dynsparse"])
def test_the_family_has_the_papers_settings(size, layers, hidden, heads, dropout, method):
    config = load_config(f"bert_{size}_{method}")
    model, optim = config.model, config.optim
    assert (model.layers, model.hidden_size, model.heads, model.intermediate_size) == (
        layers,
        hidden,
        heads,
        4 * hidden,
    )
    assert model.dropout == model.attention_dropout == dropout
    assert config.sparsity.method == method
    assert (config.train.steps, config.train.batch_size, optim.warmup_steps) == (757000, 512, 10000)
    assert (optim.weight_decay, optim.beta1, optim.beta2, optim.eps) == (0.01, 0.9, 0.999, 1e-6)
    assert config.precision.loss_scale == 512
    if method != "dense":
        assert (config.sparsity.sparsity, config.sparsity.block_size) == (0.9, 16)
    if method == "dynsparse":
        assert (config.sparsity.updates, config.sparsity.pruning_ratio) == (80, 0.5)
        unstructured = load_config(f"bert_{size}_dynsparse_1x1").sparsity
        assert (unstructured.block_size, unstructured.updates, unstructured.pruning_ratio) == (1, 160, 0.5)


def test_auto_learning_rate_is_equation_3():
    """Medium: eta(0) = 2e-4, and exp(1.969 * 0.81 + 0.2905 * 0.9) = 6.4004."""
    assert assemble.learning_rate(load_config("bert_medium_dense")) == 2e-4
    assert assemble.learning_rate(load_config("bert_medium_dynsparse")) == pytest.approx(2e-4 * 6.4004, rel=1e-4)
    given = load_config("bert_medium_dynsparse", ["optim.dense_lr=1e-3"])
    assert assemble.learning_rate(given) == pytest.approx(6.4004e-3, rel=1e-4)
    assert assemble.learning_rate(load_config("bert_medium_dynsparse", ["optim.lr=3e-4"])) == 3e-4


def test_a_file_inherits_and_an_override_wins(tmp_path):
    write(tmp_path, "model: {layers: 3}\ntrain: {steps: 7, batch_size: 4}\noptim: {warmup_steps: 1}\n", "base_one.yaml")
    path = write(tmp_path, "base: base_one\ntrain: {steps: 90}\n")
    config = load_config(path, ["train.batch_size=2", "optim.lr=1e-4"])
    assert (config.model.layers, config.train.steps, config.train.batch_size, config.optim.lr) == (3, 90, 2, 1e-4)
    assert config.run.name == "mine"
    assert config.run.dir == "runs/mine"


def test_all_mistakes_are_reported_together(tmp_path):
    path = write(
        tmp_path,
        "trian: {steps: 3}\nsparsity: {sparsty: 0.9, block_size: 5, sparsity: 1.5}\n"
        "model: {layers: many}\nlog: {every: 2.5}\n",
    )
    errors = errors_of(path, ["train.batch_size=0", "nothing"])
    for part in (
        "override 'nothing': expected section.key=value",
        "unknown section 'trian'; did you mean 'train'?",
        "unknown key sparsity.sparsty; did you mean 'sparsity'?",
        "sparsity.block_size: expected one of 1, 4, 8, 16, found 5",
        "sparsity.sparsity: expected at least 0 and less than 1, found 1.5",
        "model.layers: expected a whole number, found 'many'",
        "log.every: expected a whole number, found 2.5",
        "train.batch_size: expected at least 1, found 0",
    ):
        assert any(part in error for error in errors), part
    assert len(errors) == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.hidden_size=72", "model.heads=1"],
            "model.hidden_size: expected a multiple of sparsity.block_size 16, found 72",
        ),
        (["sparsity.sparsity=0.999"], "sparsity.sparsity: .*qkv: sparsity 0.999 leaves no 16x16 block"),
        (["sparsity.updates=5000"], "sparsity.updates: expected at most one per step"),
        (
            ["sparsity.start=0.6", "sparsity.stop=0.5"],
            "sparsity.start: expected less than sparsity.stop 0.5, found 0.6",
        ),
        (["model.heads=3"], "model.heads: expected a divisor of hidden_size 256, found 3"),
        (["data.sequence_length=1024"], "data.sequence_length: expected at most model.max_positions 512, found 1024"),
        (["train.micro_batch_size=7"], "train.micro_batch_size: expected a divisor of train.batch_size"),
        (["train.stop_at=999999"], "train.stop_at: expected at most train.steps"),
        (["optim.warmup_steps=999999"], "optim.warmup_steps: expected"),
        (["optim.lr=fast"], "optim.lr: expected a number or auto, found 'fast'"),
        (["optim.lr=0"], "optim.lr: expected more than 0, found 0"),
        (["data.source=files"], "data.path: expected a file or folder"),
        (["data.source=sotuu"], "data.source"),
        (["sparsity.growth=rigl"], "sparsity.growth: expected one of random, gradient, found 'rigl'"),
        (["data.max_predictions=126"], "data.max_predictions: expected at most 125, found 126"),
        (["sparsity.layers=[nothing.*]"], "sparsity.layers: .*'nothing.*' matches no encoder weight"),
    ],
)
def test_settings_that_do_not_fit_together(overrides, message):
    import re

    errors = errors_of("quickstart", overrides)
    assert any(re.search(message, error) for error in errors), errors


def test_a_name_that_is_not_there_gets_the_nearest(tmp_path):
    assert "did you mean quickstart" in errors_of("quikstart")[0]
    assert "expected a name in configs/ or a .yaml file" in errors_of(str(tmp_path / "no.yaml"))[0]


def test_a_file_that_is_not_a_config(tmp_path):
    assert "not YAML" in errors_of(write(tmp_path, "a: [1\n"))[0]
    assert "expected sections with keys, found list" in errors_of(write(tmp_path, "- 1\n"))[0]
    assert "expected keys and values, found 3" in errors_of(write(tmp_path, "train: 3\n"))[0]
    assert "comes back" in errors_of(write(tmp_path, "base: mine\n"))[0]


def test_yaml_cannot_build_objects(tmp_path):
    path = write(tmp_path, "run: {name: !!python/object/apply:os.system ['exit 1']}\n")
    assert "not YAML" in errors_of(path)[0]


def test_identity_leaves_out_what_does_not_change_the_numbers():
    plain = load_config("quickstart")
    same = load_config(
        "quickstart", ["run.dir=/elsewhere", "eval.every=7", "log.every=3", "train.stop_at=5", "checkpoint.keep=9"]
    )
    other = load_config("quickstart", ["sparsity.sparsity=0.8"])
    assert config_hash(plain) == config_hash(same) != config_hash(other)
    assert identity(plain)["run.seed"] == 0


def test_resolved_config_loads_as_itself(tmp_path):
    import yaml

    config = load_config("bert_base_dynsparse")
    path = write(tmp_path, yaml.safe_dump(as_dict(config)))
    assert as_dict(load_config(path)) == as_dict(config)


def test_the_reference_page_is_up_to_date():
    assert (ROOT / "docs" / "config.md").read_text() == reference_page(), "run `make docs`"
