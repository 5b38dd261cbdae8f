"""The warm-up: steps, a share of the run, or what the length of the run suggests."""

from __future__ import annotations

import pytest
from config_files import errors_of, write

from ipu_bert import assemble
from ipu_bert.config import load_config


def warmup(*overrides: str) -> object:
    """In a run of the paper's length, unless an override says otherwise."""
    return load_config("bert_mini_dynsparse", overrides).optim.warmup_steps


@pytest.mark.parametrize(
    ("written", "steps", "expected"),
    [
        ("60", 600, 60),
        ("60.0", 600, 60),
        ("0.1", 600, 60),
        ("1e-2", 600, 6),
        ("0.25", 10, 3),  # 2.5: to the nearest whole step, halves up
        ("0.01", 10, 0),
        ("0", 600, 0),
        ("0.0", 600, 0),
        ("1", 600, 1),  # one step, not the whole run
        ("1.0", 600, 1),
        ("none", 600, 60),
        ("null", 757000, 10000),
    ],
)
def test_steps_and_shares(written, steps, expected):
    written = "null" if written == "none" else written
    found = warmup(f"optim.warmup_steps={written}", f"train.steps={steps}", "sparsity.updates=1")
    assert found == expected
    assert isinstance(found, int)  # so that the identity of a run reads 60 and not 60.0


@pytest.mark.parametrize(
    ("steps", "schedule", "expected"),
    [
        (1, "linear", 0),
        (4, "linear", 0),
        (5, "linear", 1),
        (40, "linear", 4),
        (9999, "constant", 1000),
        (10000, "linear", 1000),  # nothing would be left for the decay
        (10000, "constant", 10000),
        (10001, "linear", 10000),
        (757000, "linear", 10000),
    ],
)
def test_without_one_it_is_the_papers_or_a_tenth_of_a_short_run(tmp_path, steps, schedule, expected):
    path = write(tmp_path, f"train: {{steps: {steps}}}\nsparsity: {{updates: 1}}\noptim: {{schedule: {schedule}}}\n")
    config = load_config(path)
    assert config.optim.warmup_steps == expected
    assert bool(config.gave_way) == (expected != 10000)
    assemble.schedule(config)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("2.5", "expected a whole number of steps, or a share of the run below 1, found 2.5"),
        (".inf", "expected a number or none, found inf"),
        ("-0.1", "expected at least 0 and at most 1000000000, found -0.1"),
        ("true", "expected a number or none, found True"),
        ("2001", "expected at most train.steps 2000, found 2001"),
        ("2000", "expected less than train.steps 2000 before a decay to 0, found 2000"),
    ],
)
def test_what_is_no_warmup(written, message):
    assert errors_of("quickstart", [f"optim.warmup_steps={written}"]) == [f"optim.warmup_steps: {message}"]


def test_a_constant_rate_may_warm_up_to_the_last_step():
    config = load_config("quickstart", ["optim.warmup_steps=600", "optim.schedule=constant"])
    assert [assemble.schedule(config)(done) for done in (0, 299, 599)] == [1 / 600, 0.5, 1.0]
