"""What a run does not come up to is told, in numbers that its records have, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ipu_bert import assemble
from ipu_bert.config import load_config
from ipu_bert.json_file import read_object
from ipu_bert.record.metrics import read_metrics
from ipu_bert.sizes.reach import batches_reached, moves_reached, rate_reached

SMALL = ("model.layers=1", "model.hidden_size=32", "model.heads=2", "sparsity.block_size=8")


def told(*overrides: str) -> list[str]:
    config = load_config("quickstart", [*SMALL, *overrides])
    updater = assemble.make_updater(config)
    assert updater is not None
    return moves_reached(updater, assemble.weights(config))


def test_batches_that_a_text_does_not_have() -> None:
    config = load_config("quickstart", ["eval.batches=7"])
    assert batches_reached(config, 7) == []
    assert batches_reached(config, 6) == ["eval.batches=7 beyond 6, since the held-out text has no more"]


def test_moves_that_cannot_be() -> None:
    """Blocks of the four weights' six segments at sparsity 0.1: 4 of 14 of 16 each, and 58 of 64 twice."""
    nowhere = "since it is less than half a block of every weight, and moves none"
    assert told("sparsity.sparsity=0.5", "sparsity.pruning_ratio=0.01") == [f"sparsity.pruning_ratio=0.01, {nowhere}"]
    assert told("sparsity.sparsity=0.5", "sparsity.pruning_ratio=0.02") == []  # 0.02 of 32 blocks is one
    few = ("sparsity.sparsity=0.1", "sparsity.pruning_ratio=0.5", "sparsity.schedule=constant")
    places = "since 20 of the 86 blocks of an update have a free place to go to"
    assert told(*few) == [f"sparsity.pruning_ratio=0.5 in full, {places}"]
    assert told(*few, "sparsity.allow_removed=true") == []
    assert told("sparsity.pruning_ratio=0") == told("sparsity.updates=1") == []  # what was asked for


def test_a_learning_rate_of_gradients_that_are_clipped_below_epsilon() -> None:
    """AdamW's own steps are the measure: the run trained nothing, and no line said so."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, eps=1e-6, weight_decay=0.0)
    parameter.grad = torch.tensor(1e-12)
    optimizer.step()
    assert float(parameter.detach()) == pytest.approx(-1e-6, rel=1e-3)
    rate = "optim.lr=0.002 in full, since optim.clip_norm 1e-12 is below optim.eps 1e-06"
    line = f"{rate}, and no gradient moves a weight by more than 1e-06 of it"
    assert rate_reached(load_config("quickstart", ["optim.clip_norm=1e-12"])) == [line]
    for others in (["optim.clip_norm=0"], ["optim.clip_norm=1e-6"], ["optim.clip_norm=1e-12", "optim.eps=1e-12"]):
        assert rate_reached(load_config("quickstart", others)) == []


@pytest.mark.usefixtures("blank_pictures")
def test_a_plan_a_start_and_a_report_tell_it(program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("eval.batches=999", "sparsity.sparsity=0.1", "sparsity.pruning_ratio=1", "sparsity.schedule=constant")
    asked = (*asked, "optim.clip_norm=1e-40")
    assert program(*asked) == 0
    lines = [line[11:] for line in capsys.readouterr().err.splitlines() if line.startswith("no effect: ")]
    assert program(*asked, "--dry-run") == 0  # now that the text is prepared
    plan = capsys.readouterr().out.splitlines()
    assert [line[12:] for line in plan if line.startswith("no effect   ")] == lines
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    moved = next(record["moved"] for record in records if record["kind"] == "update")
    blocks = next(record["blocks"] for record in records if record["kind"] == "update")
    batches = next(record["batches"] for record in records if record["kind"] == "eval")
    assert lines == [
        f"eval.batches=999 beyond {batches}, since the held-out text has no more",
        f"sparsity.pruning_ratio=1.0 in full, since {moved:,} of the {blocks:,} blocks of an update have a free place "
        "to go to",
        "optim.lr=0.001 in full, since optim.clip_norm 1e-40 is below optim.eps 1e-06, and no gradient moves a weight "
        "by more than 1e-34 of it",
    ]
    assert read_object(tmp_path / "run" / "report.json")["no_effect"] == lines
    assert all(f"- no effect: `{line}`" in (tmp_path / "run" / "report.md").read_text() for line in lines)
