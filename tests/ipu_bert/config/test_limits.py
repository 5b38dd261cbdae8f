"""Numbers that no run can have: refused in one line within seconds, before memory or threads are asked for."""

from __future__ import annotations

import dataclasses
import time

import pytest
import yaml
from config_files import errors_of

import run_pretraining
from ipu_bert import assemble
from ipu_bert.config import Config, load_config
from ipu_bert.config.build import build
from ipu_bert.config.checks import cross_checks
from ipu_bert.config.yaml_text import MOST_BYTES, parse
from ipu_bert.sizes.fits import check_memory
from sparse_ops import host_memory
from sparse_ops.host_memory import total_memory_bytes

INTS = [
    (section.name, f.name)
    for section in dataclasses.fields(Config)
    for f in dataclasses.fields(getattr(Config(), section.name))
    if f.type in ("int", "Optional[int]")
]


@pytest.mark.parametrize(("section", "name"), INTS)
def test_every_whole_number_has_an_upper_limit(section, name):
    errors: list[str] = []
    build({section: {name: 10**400}}, errors)
    assert len(errors) == 1
    assert errors[0].startswith(f"{section}.{name}: expected ")


@pytest.mark.parametrize(
    "key", ["optim.clip_norm", "optim.eps", "optim.beta1", "precision.loss_scale", "optim.weight_decay"]
)
@pytest.mark.parametrize("value", [".inf", ".nan", "1e39", "-.inf", "9" * 400])
def test_numbers_are_finite_in_float32(key, value):
    (error,) = errors_of("quickstart", [f"{key}={value}"])
    assert error.startswith(f"{key}: expected a number")


def test_a_learning_rate_is_finite():
    assert errors_of("quickstart", ["optim.lr=.inf"]) == ["optim.lr: expected a number or auto, found '.inf'"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.layers=1000000"], "model.layers: expected at least 1 and at most 1000, found 1000000"),
        (["model.max_positions=1e13"], "model.max_positions: expected at least 1 and at most 1048576"),
        (["engine.threads=100000"], "engine.threads: expected at least 0 and at most 1024, found 100000"),
        (["train.batch_size=1048576", "data.sequence_length=512"], "expected at most 268,435,456 tokens"),
        ([f"sparsity.layers=[{', '.join('*' * 101)}]".replace("*", "'*'")], "expected at most 100 patterns, found 101"),
    ],
)
def test_sizes_are_refused_in_one_line(overrides, message, capsys):
    began = time.process_time()
    assert run_pretraining.main(["--config", "quickstart", "--dry-run", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert time.process_time() - began < 5


_LONG = ("0x" + "f" * 5000, "0b" + "1" * 20_000, "1" + ":1" * 9000, "x" * 3000)


@pytest.mark.parametrize("text", _LONG, ids=("hex", "binary", "sexagesimal", "text"))
@pytest.mark.parametrize(
    "key", ["train.steps", "run.seed", "optim.lr", "data.source", "sparsity.layers", "ipu.layers_per_ipu", "data"]
)
def test_what_is_too_long_to_print_is_named_and_cut(key, text, tmp_path):
    errors = [] if key == "data" else errors_of("quickstart", [f"{key}={text}"])
    path = tmp_path / "long.yaml"
    section, _, name = key.partition(".")
    path.write_text(f"{section}: {{{name}: {text}}}" if name else f"{section}: {text}")
    for error in [*errors, *errors_of(str(path), [])]:
        assert error.startswith((f"{key}: expected ", f"config {key}: expected ", f"{key}: sparse layers: "))
        assert "characters)" in error
        assert len(error) < 1000


def test_a_long_number_takes_no_time(tmp_path):
    """PyYAML multiplies a number in base 60 out, part by part."""
    path = tmp_path / "long.yaml"
    path.write_text(f"train: {{steps: {'1:' * 300_000}1}}")
    began = time.process_time()
    (error,) = errors_of(str(path), [])
    assert error.startswith("train.steps: expected a whole number, found '1:1:1:")
    assert time.process_time() - began < 5


def test_a_number_may_have_many_digits():
    assert load_config("quickstart", [f"optim.lr=0.{'0' * 5}1{'0' * 2000}"]).optim.lr == 1e-6


@pytest.mark.parametrize("key", ["run.name", "run.dir", "data.path", "data.tokenizer", "sparsity.layers"])
def test_bytes_that_are_no_text_are_refused(key):
    """What a command line gives as an escape: a report, a checkpoint and an output cannot hold it."""
    (error,) = errors_of("quickstart", [f"{key}=r\udcff"])
    assert error.startswith(f"{key}: expected ")
    assert error.endswith("text, found 'r\\udcff'")
    assert error.isascii()


def test_a_config_file_gives_its_name_to_the_run_and_has_to_be_text(tmp_path):
    (error,) = errors_of(str(tmp_path / "r\udcff.yaml"), [])
    assert error.endswith("expected a name in UTF-8, found other bytes")


def test_a_list_of_files_that_a_runs_own_config_cannot_hold_is_refused_before_it_begins(tmp_path):
    """The run ended well, and its config.yaml was refused."""
    path = tmp_path / "many.yaml"
    path.write_text(f"base: quickstart\ndata: {{path: [{', '.join(['a'] * 19_900)}]}}\n")
    (line,) = errors_of(str(path))
    assert line.startswith(
        "data.path: expected at most 19,000 paths of 983,040 bytes as YAML, found 19,900: name their"
    )
    config = load_config("quickstart", ["data.path=[a]"])
    config.data.path = ["'" * 100] * 4_700  # twice as long as YAML
    assert list(cross_checks(config)) == []
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    assert len(text) <= MOST_BYTES
    assert parse(text)["data"]["path"] == config.data.path
    config.data.path *= 2
    assert "found 9,400 of " in "".join(cross_checks(config))


def test_prepared_text_needs_a_folder():
    """The run ended with [Errno 2] No such file or directory: ''."""
    assert errors_of("quickstart", ["data.dir=''"]) == [
        "data.dir: expected a folder, found nothing; . is the one that you are in"
    ]


def test_the_largest_dry_run_takes_seconds(tmp_path):
    largest = ["model.layers=1000", "train.steps=1e9", "sparsity.updates=1e6", "model.hidden_size=65536"]
    began = time.process_time()
    config = load_config("quickstart", [*largest, "sparsity.distribution=erdos_renyi_kernel", f"data.dir={tmp_path}"])
    found = assemble.plan(config)
    assert found["memory"]["total"] > 1e12
    assert len(found["pattern_updates"]) == 999_999
    assert time.process_time() - began < 10


def test_a_model_larger_than_the_memory_is_not_built():
    """1000 layers of 12 H^2 weights, H = 65536, 16 bytes for each of the tenth that exists: 82.5 TB, and an index."""
    config = load_config("quickstart", ["model.layers=1000", "model.hidden_size=65536"])
    with pytest.raises(ValueError, match=r"^memory: expected a run that fits the [\d,.]+ GB here, found 82,[\d,.]+ GB"):
        assemble.make_model(config, 8192)


def test_what_a_run_needs_is_counted_to_the_byte():
    """The quickstart's sizes: what was just enough is allowed, and a byte less is not."""
    config = load_config("quickstart")
    held = assemble.plan(config)["memory"]["total"]
    working = 4 * 64 * 32 * 2 * 256 + 4 * 64 * 5 * 2048
    check_memory(config, 2048, held + working)
    with pytest.raises(ValueError, match="try a smaller model"):
        check_memory(config, 2048, held + working - 1)


def test_memory_is_the_containers_where_that_is_less(monkeypatch, tmp_path):
    machine = total_memory_bytes()
    assert 1e8 < machine < 1e14
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host_memory, "_GROUP_LIMITS", (str(tmp_path / "none"), str(limit)))
    limit.write_text("123456789\n")
    assert total_memory_bytes() == 123456789
    limit.write_text("max\n")
    assert total_memory_bytes() >= machine


def test_a_dynamic_method_without_a_sparse_weight_has_no_updates():
    """As with sparsity 0, where every weight is dense: there is nothing to divide the moved blocks by."""
    assert assemble.make_updater(load_config("quickstart", ["sparsity.sparsity=0"])) is None
    assert assemble.make_updater(load_config("quickstart")) is not None


@pytest.mark.parametrize("error", [MemoryError("9 TiB"), RuntimeError("[x.cpp:1]\nAllocator: can't allocate memory")])
def test_memory_that_runs_out_all_the_same_is_one_line(error, monkeypatch, capsys):
    def no(*_: object) -> None:
        raise error

    monkeypatch.setattr("ipu_bert.cli._train", no)
    assert run_pretraining.main(["--config", "quickstart"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory: ")
    assert line.endswith("; try a smaller train.micro_batch_size or a smaller model")


def test_threads_that_run_out_are_one_line(monkeypatch, capsys):
    def no(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("ipu_bert.cli._train", no)
    assert run_pretraining.main(["--config", "quickstart"]) == 2
    assert capsys.readouterr().err == "error: out of threads: can't start new thread\n"


def test_what_is_no_lack_of_memory_is_not_hidden(monkeypatch):
    def no(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("ipu_bert.cli._train", no)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run_pretraining.main(["--config", "quickstart"])
