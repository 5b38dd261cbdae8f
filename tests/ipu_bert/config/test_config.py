"""Configs: inheritance, overrides, number forms, and every mistake reported at once with the thing named."""

from __future__ import annotations

import os
import re

import pytest
import yaml
from config_files import errors_of, flat, write

from ipu_bert.assemble import make_updater
from ipu_bert.config import CONFIG_DIR, as_dict, load_config, reference_page


def test_a_file_inherits_and_an_override_wins(tmp_path):
    write(tmp_path, "model: {layers: 3}\ntrain: {steps: 7, batch_size: 4}\noptim: {warmup_steps: 1}\n", "base_one.yaml")
    path = write(tmp_path, "base: base_one\ntrain: {steps: 90}\n")
    config = load_config(path, ["train.batch_size=2", "optim.lr=1e-4"])
    assert (config.model.layers, config.train.steps, config.train.batch_size, config.optim.lr) == (3, 90, 2, 1e-4)
    assert config.run.name == "mine"
    assert config.run.dir == "runs/mine"


@pytest.mark.parametrize("place", [".", "..", "conf", "other"])
@pytest.mark.parametrize("base", ["common", "common.yaml", "./common.yaml", "../conf/common.yaml", "../conf/common"])
def test_a_base_is_beside_the_file_that_names_it_wherever_the_program_works(tmp_path, monkeypatch, base, place):
    for folder, seed in (("conf", 5), (".", 7), ("other", 7)):
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder, f"run: {{seed: {seed}}}\n", "common.yaml")
    path = write(tmp_path / "conf", f"base: {base}\n")
    monkeypatch.chdir(tmp_path / place)
    assert load_config(path).run.seed == load_config(os.path.relpath(path)).run.seed == 5


def test_a_base_that_is_in_the_working_folder_alone_is_refused_by_both_places(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    write(tmp_path, "run: {seed: 7}\n", "common.yaml")
    path = write(tmp_path / "conf", "base: common.yaml\n")
    monkeypatch.chdir(tmp_path)
    places = f"in {tmp_path / 'conf'}, beside it, found 'common.yaml' in {tmp_path}, where the program works"
    assert errors_of(path) == [f"config {path}: base: expected a file {places}"]
    monkeypatch.chdir(tmp_path / "conf")
    (line,) = errors_of(path)
    assert line.startswith(f"config {path}: base: 'common.yaml': expected a name in configs/ or a .yaml file, found")


def test_a_base_that_is_nowhere_is_told_with_the_file_that_asks_for_it(tmp_path):
    """The line named the base alone, which --config does not: where bases have bases it is in neither's text."""
    asking = write(tmp_path, "base: quikstart\n", "under.yaml")
    expected = "expected a name in configs/ or a .yaml file, found neither; did you mean quickstart"
    for path in (asking, write(tmp_path, "base: under\n")):
        (line,) = errors_of(path)
        assert line.startswith(f"config {asking}: base: 'quikstart': {expected}")
    (line,) = errors_of("quikstart")  # given by the user: no file asks for it
    assert line.startswith(f"config 'quikstart': {expected}")


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
        "train.batch_size: expected at least 1 and at most 1048576, found 0",
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
        (
            ["data.sequence_length=1024", "model.max_positions=512"],
            "data.sequence_length: expected at most model.max_positions 512, found 1024",
        ),
        (["train.micro_batch_size=7"], "train.micro_batch_size: expected a divisor of train.batch_size"),
        (["train.stop_at=999999"], "train.stop_at: expected at most train.steps"),
        (["optim.warmup_steps=999999"], "optim.warmup_steps: expected"),
        (["optim.lr=fast"], "optim.lr: expected a number or auto, found 'fast'"),
        (["optim.lr=0"], "optim.lr: expected more than 0, found 0"),
        (["data.source=files"], "data.path: expected a file or folder"),
        (["data.source=sotuu"], "data.source"),
        (["sparsity.growth=rigl"], "sparsity.growth: expected one of random, gradient, found 'rigl'"),
        (["data.max_predictions=30"], "data.max_predictions: expected at most 29, found 30"),
        (
            ["engine.name=ipu", "ipu.automatic_loss_scale=true"],
            "ipu.automatic_loss_scale: expected false with precision.compute float32, found true",
        ),
        (["sparsity.layers=[nothing.*]"], "sparsity.layers: .*'nothing.*' matches no encoder weight"),
    ],
)
def test_settings_that_do_not_fit_together(overrides, message):
    errors = errors_of("quickstart", overrides)
    assert any(re.search(message, error) for error in errors), errors


OPTIONAL = ["optim.dense_lr", "optim.warmup_steps", "data.do_lower_case", "data.strip_accents"]
OPTIONAL += ["data.tokenize_chinese_chars", "train.stop_at", "train.micro_batch_size"]


def test_none_is_the_word_that_the_page_of_settings_has(tmp_path):
    """It was refused by `expected a whole number or none, found 'none'`."""
    assert re.findall(r"^\| `(\S+)` \| `none` ", reference_page(), re.MULTILINE) == OPTIONAL
    expected = as_dict(load_config("quickstart", [f"{key}=null" for key in OPTIONAL]))
    for word in ("none", "None", "", "~"):
        assert as_dict(load_config("quickstart", [f"{key}={word}" for key in OPTIONAL])) == expected
    lines = "".join(f"{key.partition('.')[0]}: {{{key.partition('.')[2]}: none}}\n" for key in OPTIONAL[-2:-1])
    assert load_config(write(tmp_path, "base: quickstart\n" + lines)).train.stop_at is None
    assert load_config("quickstart", ["run.name=none"]).run.name == "none"
    assert errors_of("quickstart", ["train.steps=none"]) == ["train.steps: expected a whole number, found 'none'"]


def test_a_refusal_says_what_was_written_where_yaml_reads_nothing(tmp_path):
    for text, found in {"": "nothing", "~": "~, which YAML takes for nothing", "''": "''"}.items():
        assert errors_of("quickstart", [f"train.steps={text}"]) == [
            f"train.steps: expected a whole number, found {found}"
        ]
    assert errors_of("quickstart", ["run.name="]) == ["run.name: expected text, found nothing"]
    assert errors_of(write(tmp_path, "run: {name: }\n")) == ["run.name: expected text, found nothing"]
    assert load_config("quickstart", ["run.name=#1"]).run.name == "#1"
    assert errors_of("quickstart", ["train.stop_at=#1"]) == [
        "train.stop_at: expected a whole number or none, found '#1'"
    ]


PLACES = ["run.dir", "data.dir", "data.path", "data.tokenizer", "model.init", "ipu.executable_cache", "ipu.profile_dir"]


@pytest.mark.parametrize("key", PLACES)
def test_a_tilde_before_a_place_is_the_home_folder(key, tmp_path, monkeypatch):
    """run.dir=~/runs made a folder of the name `~`: shells leave it as it is there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    section, name = key.split(".")
    sizes = [f"model.{size}=64" for size in ("layers", "hidden_size", "intermediate_size", "max_positions")]
    follow = [*sizes, "model.heads=1", "model.layer_norm_eps=1e-12", "data.tokenizer=mine"]  # no model is read for them
    others = {"model.init": follow, "data.path": ["data.source=files"]}.get(key, [])
    written = write(tmp_path, f"{section}: {{{name}: ~/mine}}\n")
    for config in (load_config("quickstart", [*others, f"{key}=~/mine"]), load_config(written, others)):
        assert flat(config)[key] == f"{tmp_path}/mine"
    assert flat(load_config("quickstart", [*others, f"{key}=mine/~/x~"]))[key] == "mine/~/x~"


def test_a_tilde_before_one_of_several_paths_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config("quickstart", ["data.source=files", "data.path=[~/a.txt, b.txt]"])
    assert config.data.path == ["/home/me/a.txt", "b.txt"]


@pytest.mark.parametrize("key", ["run.dir", "data.dir", "ipu.executable_cache", "ipu.profile_dir"])
@pytest.mark.parametrize("place", ["s3://bucket/x", "gs://b/../c", "$HOME/x", "a/${USER}/b", "~nobody-here/x"])
def test_a_folder_that_would_be_made_under_an_address_is_refused(key, place):
    errors = errors_of("quickstart", [f"{key}={place}"])
    assert errors == [f"{key}: expected a local folder, as it is called, found '{place}'"]
    assert flat(load_config("quickstart", [f"{key}=mine$/x"]))[key] == "mine$/x"


def test_a_folder_that_is_there_is_as_it_is_called(tmp_path, monkeypatch):
    """A run goes on that an older version, or a name, began in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a$b").mkdir(parents=True)
    for place in ("runs/a$b", f"{tmp_path}/runs/a$b"):
        assert load_config("quickstart", [f"run.dir={place}"]).run.dir == place


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


def test_resolved_config_loads_as_itself(tmp_path):
    config = load_config("bert_base_dynsparse")
    path = write(tmp_path, yaml.safe_dump(as_dict(config)))
    assert as_dict(load_config(path)) == as_dict(config)


def test_the_reference_page_is_up_to_date():
    assert (CONFIG_DIR.parent / "docs" / "config.md").read_text() == reference_page(), "run `make docs`"


def test_one_update_is_none_and_fits_anywhere() -> None:
    """It was refused, "expected at most one per step", where no whole step lies between start and stop."""
    config = load_config("quickstart", ["sparsity.start=0.3", "sparsity.stop=0.3001", "sparsity.updates=1"])
    updater = make_updater(config)
    assert updater is not None
    assert updater.ratios == {}
