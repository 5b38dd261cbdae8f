"""Any value of any setting, in a file or an override: a plan, or one line for each thing that is wrong."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Iterator

import pytest
import small_run
import yaml
from hostile import anything, bounded, contents
from hypothesis import HealthCheck, assume, example, given
from hypothesis import settings as trials
from hypothesis import strategies as st

import run_pretraining
from ipu_bert.config import Config, as_dict, from_dict, load_config

FIELDS = {
    f"{section.name}.{f.name}": f
    for section in dataclasses.fields(Config())
    for f in dataclasses.fields(getattr(Config(), section.name))
}
FOLDERS = {"data.path", "data.dir", "data.tokenizer", "run.dir"}  # a folder of this machine is no hostile value
LONGEST = 1000  # characters of a line of error


def near_limits(limits: Any) -> Iterator[Any]:
    """What a setting just allows and just not, by its metadata."""
    for key in ("low", "high", "above", "below"):
        if limits[key] is not None:
            limit = limits[key]
            yield from (limit, limit - 1, limit + 1, math.nextafter(limit, math.inf), math.nextafter(limit, -math.inf))
    yield from limits["choices"] or ()


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """One to three settings with values near their limits or anything."""
    keys = draw(st.lists(st.sampled_from(sorted(FIELDS.keys() - FOLDERS)), min_size=1, max_size=3, unique=True))
    found = {}
    for key in keys:
        near = list(near_limits(FIELDS[key].metadata))
        found[key] = draw(st.one_of(st.sampled_from(near), anything) if near else anything)
    return found


def call(arguments: list[str]) -> tuple[int, list[str], str]:
    """The program in this process: exit status, lines of error, what it printed."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors), bounded():
        status = run_pretraining.main(arguments)
    return status, [line for line in errors.getvalue().splitlines() if "error: " in line], out.getvalue()


def assert_refused_or_planned(arguments: list[str], folder: Path) -> bool:
    """Dry-run; whether there is a plan. Nothing is written, and a refusal is lines that can be read."""
    before = contents(folder)
    status, errors, out = call([*arguments, "--dry-run", "--json"])
    assert contents(folder) == before
    assert status in (0, 2), status
    assert bool(errors) == (status == 2), errors
    assert all(line.startswith("error: ") and len(line) < LONGEST for line in errors), errors
    if status == 0:
        json.loads(out)
    return status == 0


@pytest.fixture(scope="module", autouse=True)
def prepared(small: Path, blank_pictures: None) -> None:
    """Text that is prepared: the dry run of a config that changes nothing of it reads the token files."""
    assert run_pretraining.main(["--config", str(small), "train.stop_at=1", "log.tensorboard=false"]) == 0


@given(changes())
@example({"engine.threads": 100_000})
@example({"model.max_positions": 10**13})
@example({"model.layers": 1_000_000})
@example({"optim.clip_norm": math.inf})
def test_any_value_in_a_file_is_planned_or_refused(small: Path, changed: dict[str, Any]):
    tree = copy.deepcopy(small_run.settings(small.parent))
    for key, value in changed.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    path = small.parent / "hostile.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    if assert_refused_or_planned(["--config", str(path)], small.parent):
        settings = as_dict(load_config(str(path)))
        assert as_dict(from_dict(yaml.safe_load(yaml.safe_dump(settings)))) == settings


@given(changes(), st.booleans())
def test_any_override_is_planned_or_refused(small: Path, changed: dict[str, Any], as_json: bool):
    texts = {key: json.dumps(value) if as_json else str(value) for key, value in changed.items()}
    overrides = [f"{key}={text}" for key, text in texts.items()]
    assert_refused_or_planned(["--config", str(small), *overrides], small.parent)


@given(st.text(max_size=20), st.text(max_size=20))
@example("__dict__.a", "1")
@example("run.__class__", "1")
@example("run", "1")
def test_any_text_as_an_override_is_refused(small: Path, key: str, value: str):
    assume(key not in FIELDS and not key.startswith("-"))
    assert not assert_refused_or_planned(["--config", str(small), f"{key}={value}"], small.parent)


@trials(  # most hostile values have no plan, and what has one is trained: few in `make test`
    suppress_health_check=[HealthCheck.filter_too_much], **({} if "FUZZ" in os.environ else {"max_examples": 3})
)
@given(changes())
@example({"engine.threads": 100_000})
@example({"optim.eps": math.inf})
@example({"optim.lr": 1e30})
def test_what_has_a_plan_trains_or_says_why(small: Path, changed: dict[str, Any]):
    """Two steps of it, where its plan is not too large to try."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in changed.items()]
    arguments = ["--config", str(small), *overrides]
    status, _, out = call([*arguments, "--dry-run", "--json"])
    assume(status == 0)
    plan = json.loads(out)
    assume(plan["memory"]["total"] < 1e8 and plan["flops_per_sequence"] < 1e9)
    config = load_config(str(small), overrides)
    assume(config.data.source == "files" and config.train.batch_size <= 64 and config.engine.name == "torch")
    status, errors, _ = call([*arguments, f"train.stop_at={min(2, config.train.steps)}", "eval.batches=1"])
    assert status in (0, 2)
    assert len(errors) == (status == 2), errors
