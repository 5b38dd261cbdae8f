"""YAML that is hostile or unlucky: text stays as written, nothing is lost, and all else is one line in little time."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from config_files import errors_of, write

from ipu_bert.config import Config, ConfigError, as_dict, load_config
from ipu_bert.config.yaml_text import MOST_BYTES, MOST_LEVELS, MOST_VALUES, parse

WORDS = ["2024-01-15", "on", "no", "1e3", "0x10", "010", "1_000", "12:30", "1.10", ".inf", "exp #2", "a: b", "0o7", "y"]


@pytest.mark.parametrize("word", WORDS)
def test_a_setting_that_is_text_takes_what_was_written(word, tmp_path):
    assert load_config("quickstart", [f"run.name={word}"]).run.name == word
    if word not in ("exp #2", "a: b"):  # which mean something else in a file
        config = load_config(write(tmp_path, f"base: quickstart\nrun: {{name: {word}}}\ndata: {{path: [{word}]}}\n"))
        assert (config.run.name, config.data.path) == (word, [word])
        again = load_config(write(tmp_path, yaml.safe_dump(as_dict(config)), "again.yaml"))
        assert as_dict(again) == as_dict(config)


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("train.steps=0100", "0100, which YAML takes for 64"),
        ("train.steps=1:30", "1:30, which YAML takes for 90"),
        ("optim.lr=0777", "'0777'"),
        ("optim.weight_decay=-017", "-017, which YAML takes for -15"),
        ("optim.eps=1:0.5", "1:0.5, which YAML takes for 60.5"),
    ],
)
def test_a_number_that_yaml_reads_as_nobody_else_is_refused(override, found, tmp_path):
    (section, key), value = override.partition("=")[0].split("."), override.partition("=")[2]
    message = f"^{section}.{key}: expected a .*, found {found}$"
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", [override])
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, f"base: quickstart\n{section}: {{{key}: {value}}}\n"))


def test_whole_numbers_are_read_to_their_last_digit(tmp_path):
    """In quotes, too; through a float 9007199254740993 is 9007199254740992."""
    for written in ("9007199254740993", "'9007199254740993'"):
        assert load_config("quickstart", [f"run.seed={written}"]).run.seed == 9007199254740993
    for written in ("08", "1_000", "'1e3'", "\uff10\uff19"):  # as they always were
        assert load_config("quickstart", [f"train.steps={written}"]).train.steps == float(written.strip("'"))


TEXTS = [
    f"{section.name}.{name}"
    for section in dataclasses.fields(Config)
    for name, kind in get_type_hints(section.default_factory).items()
    if "str" in str(kind)
]


@pytest.mark.parametrize("word", ["true", "False", "TRUE"])
def test_true_and_false_are_no_text_unless_in_quotes(word, tmp_path):
    """A folder `False` is what nobody meant; without the rule most of these settings take the word."""
    assert {"data.dir", "run.dir", "data.path", "ipu.executable_cache", "data.language"} < set(TEXTS)
    for key in TEXTS:
        with pytest.raises(ConfigError, match=f"^{key}: expected .*(text|one of).*, found {word.title()}$"):
            load_config("quickstart", [f"{key}={word}"])
    assert load_config("quickstart", [f"data.dir='{word}'"]).data.dir == word


def test_quotes_and_lists_of_an_override_are_yaml():
    config = load_config("quickstart", ["run.name='a # b'", "data.path=[x, 'y, z']", "log.tensorboard=off"])
    assert (config.run.name, config.data.path, config.log.tensorboard) == ("a # b", ["x", "y, z"], False)


def test_a_base_is_a_name_whatever_it_looks_like(tmp_path):
    write(tmp_path, "base: quickstart\ntrain: {steps: 700}\n", "2024-01-15.yaml")
    assert load_config(write(tmp_path, "base: 2024-01-15\n")).train.steps == 700


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 9}\nlog: {}\ntrain: {}\n", "line 3: 'train' again, which stands in line 1 already"),
        ("train:\n  steps: 9\n  steps: 10\n", "line 3: 'steps' again, which stands in line 2 already"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", "line 4: '<<' again, which stands in line 3 already"),
        ("base: quickstart\nbase: paper\n", "line 2: 'base' again, which stands in line 1 already"),
        ("1: {a: 2}\n", "unknown section '1'"),
        ("? [a]\n: 1\n", "line 1: expected text as a key, found a list"),
        ("train: {{a: 1}: 2}\n", "line 1: expected text as a key, found a list or keys"),
        ("train: {steps: !!int ''}\n", "train.steps: expected a whole number, found ''"),
        ("log: {wandb: !!bool maybe}\n", "log.wandb: expected true or false, found 'maybe'"),
        ("train: {steps: !!timestamp x}\n", "train.steps: expected a whole number, found 'x'"),
        ("train: !!set {steps}\n", "line 1: not YAML for plain values: the tag 'tag:yaml.org,2002:set'"),
        ("train: {steps: !mine 3}\n", "the tag '!mine'"),
        ("train:\n  steps: [1\n", "not YAML: line 3: while parsing a flow sequence, expected"),
        ('run: {name: "\\UFFFFFFFF"}\n', "not YAML: "),
        ("run: {name: \x01}\n", "not YAML: "),
        ('run: {name: "a\\0b"}\n', "run.name: expected text, found 'a\\x00b'"),
        ("train: &a {<<: *a}\n", f"expected at most {MOST_LEVELS} levels"),
        ("base: " + "x" * 9000 + "\n", "found neither; configs/ has "),
        ("base: [quickstart]\n", "base: expected the name of a config, found ['quickstart']"),
        ("run: {name: " + "[" * 3000 + "}\n", f"line 1: expected at most {MOST_LEVELS} levels"),
        ("train: {steps: " + "9" * 400 + "}\n", "train.steps: expected at least 1 and at most 1000000000, found 9999"),
        ("train: {steps: " + "9" * 9000 + "}\n", "train.steps: expected a whole number, found '9999"),
        ("? " + "x" * 9000 + "\n: 1\n", "unknown section 'xxx"),
    ],
)
def test_bad_yaml_is_one_line(text, message, tmp_path):
    (error,) = errors_of(write(tmp_path, text))
    assert message in error
    assert error.isprintable()
    assert len(error) < 1500


def laughs(levels: int, width: int) -> str:
    """Each line ten times the one before it."""
    lines = ["l0: &l0 [x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(9, 10), f"expected at most {MOST_VALUES:,} values, aliases written out"),
        (laughs(30, 2), f"expected at most {MOST_LEVELS} levels"),
        ("a: &a {x: 1}\nb: {<<: [" + "*a, " * MOST_VALUES + "]}\n", f"expected at most {MOST_VALUES:,} values"),
        ("a: [" + "x," * MOST_VALUES + "]\n", f"expected at most {MOST_VALUES:,} values"),
        ("# " + "x" * MOST_BYTES, f"expected at most {MOST_BYTES:,} bytes"),
    ],
    ids=["wide", "deep", "merged", "long", "large"],
)
def test_what_grows_is_refused_in_little_time(text, message, tmp_path):
    path, began = write(tmp_path, text), time.process_time()
    (error,) = errors_of(path)
    assert message in error
    assert time.process_time() - began < 5


def test_a_long_chain_of_bases_is_refused(tmp_path):
    for number in range(30):
        write(tmp_path, f"base: c{number + 1}\n", f"c{number}.yaml")
    assert "expected at most 16 files under one another by `base:`" in errors_of(str(tmp_path / "c0.yaml"))[0]


def test_aliases_and_merges_stay(tmp_path):
    text = "train: &t {steps: 500, batch_size: 8}\nx: {<<: *t, steps: 7}\ny: {<<: [{a: 1}, {a: 2, b: 3}]}\nz: *t\n"
    assert repr(parse(text)) == repr(yaml.safe_load(text))


def test_every_shipped_config_is_read_as_yaml_reads_it():
    for path in sorted(Path("configs").resolve().glob("*.yaml")):
        assert repr(parse(path.read_text())) == repr(yaml.safe_load(path.read_text())), path
