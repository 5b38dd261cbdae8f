"""The losses on a card are the checkpoint's own, not those of another way of its run to the same step."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_history import SHORT, train

from ipu_bert import export_run
from ipu_bert.record.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("blank_pictures")
NONE = "No evaluation of this step was recorded."


def losses_on_card(checkpoint: Path, folder: Path) -> str:
    """The masked-LM loss on the card of an export, as it stands there, or that there is none."""
    assert export_run.main([str(checkpoint), str(folder)]) == 0
    page = (folder / "README.md").read_text()
    if NONE in page:
        return NONE
    (row,) = [line for line in page.splitlines() if line.startswith("| masked LM | ")]
    return row.split(" | ")[1]


def recorded(folder: Path, step: int) -> str:
    """The last held-out loss that was recorded there after a step, to four digits."""
    found = [r for r in read_metrics(folder / "metrics.jsonl") if (r["kind"], r["step"]) == ("eval", step)]
    return f"{found[-1]['mlm_loss']:.4f}"


def test_a_branch_without_an_evaluation_has_not_that_of_the_runs_other_way(tiny, tmp_path):
    run = train(tiny(*SHORT, "eval.every=0"))
    train(tiny(*SHORT, "precision.compute=bfloat16"), run / "checkpoints" / "step_00000002")
    branch = run / "branches" / "after_step_00000002"
    kept = branch / "checkpoints"
    assert losses_on_card(kept / "step_00000004", tmp_path / "four") == NONE
    first, second = recorded(branch, 6), recorded(run, 6)  # of the last step, which is always evaluated
    assert first != second
    assert losses_on_card(kept / "step_00000006", tmp_path / "six") == first
    assert losses_on_card(run / "checkpoints" / "step_00000006", tmp_path / "new") == second
    assert losses_on_card(run / "checkpoints" / "step_00000004", tmp_path / "newer") == recorded(run, 4)
