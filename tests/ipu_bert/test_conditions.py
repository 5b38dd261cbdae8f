"""Whatever changes the rounding of a step is recorded with a checkpoint, and named at a resume."""

from __future__ import annotations

import json

import pytest
import torch

from ipu_bert import machine
from ipu_bert.config import load_config


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("stochastic_rounding=false", "ipu.stochastic_rounding: False, before True"),
        ("half_partials=false", "ipu.half_partials: False, before True"),
        ("automatic_loss_scale=true", "ipu.automatic_loss_scale: True, before False"),
        ("available_memory=[0.5]", "ipu.available_memory: [0.5], before [0.25]"),
        ("profile_dir=here", None),
        ("optimizer_off_chip=false", None),
    ],
)
def test_what_ipus_round_by_is_named_at_a_resume(override, line):
    """A run went on with another rounding and said nothing."""
    before = machine.conditions(load_config("quickstart_simulated"))
    now = machine.conditions(load_config("quickstart_simulated", [f"ipu.{override}"]))
    assert machine.changed(json.loads(json.dumps(before)), now) == ([line] if line else [])
    older = {key: value for key, value in before.items() if not key.startswith("ipu.")}
    assert machine.changed(older, now) == []  # of a version that did not record them


def test_float32_and_other_engines_have_no_rounding_of_halves(tiny):
    assert not [key for key in machine.conditions(tiny()) if key.startswith("ipu.")]
    single = machine.conditions(load_config("quickstart_simulated", ["precision.compute=float32"]))
    assert "ipu.replicas" in single
    assert "ipu.stochastic_rounding" not in single


def test_whatever_changes_rounding_is_a_condition(tiny, monkeypatch):
    config = tiny()
    before = json.loads(json.dumps(machine.conditions(config)))
    assert machine.changed(before, machine.conditions(config)) == []
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("sparse_ops.native.fingerprint", lambda: "12345678")
    monkeypatch.setattr(machine, "library", lambda: "another's")
    assert machine.changed(before, machine.conditions(config)) == [
        f"instructions: DEFAULT, before {before['instructions']}",
        "environment: MKL_CBWR=COMPATIBLE, before none",
        f"library: 12345678, before {before['library']}",
        f"dense products: another's, before {before['dense products']}",
    ]
    older = {key: value for key, value in machine.conditions(config).items() if key != "dense products"}
    assert machine.changed(older, machine.conditions(config)) == ["dense products: another's, before torch's"]


def test_nothing_multiplies_dense_weights_in_float32_but_a_run_in_float32(tiny, monkeypatch):
    monkeypatch.setattr(machine, "library", lambda: "another's")
    for override in ("engine.kernel=torch", "precision.compute=bfloat16"):
        assert machine.conditions(tiny(override))["dense products"] == "torch's"
    assert machine.conditions(load_config("quickstart_simulated"))["dense products"] == "torch's"


def test_the_native_library_is_a_condition_of_dense_runs_too(tiny, monkeypatch):
    """Their attention is in it."""
    monkeypatch.setattr("sparse_ops.native.available", lambda: True)
    monkeypatch.setattr("sparse_ops.native.level", lambda: "avx2")
    monkeypatch.setattr("sparse_ops.native.fingerprint", lambda: "12345678")
    found = machine.conditions(tiny("sparsity.method=dense"))
    assert (found["kernel"], found["library"]) == ("native avx2", "12345678")
