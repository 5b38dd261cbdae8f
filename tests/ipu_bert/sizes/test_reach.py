"""What a run does not come up to is told, in numbers that its records have, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ipu_bert import assemble
from ipu_bert.config import load_config
from ipu_bert.config.resolve import wanted_predictions
from ipu_bert.data.filling import Filling
from ipu_bert.json_file import read_object
from ipu_bert.record.metrics import read_metrics
from ipu_bert.sizes.reach import (
    batches_reached,
    documents_reached,
    lengths_reached,
    moves_reached,
    predictions_reached,
    rate_reached,
)

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


def held_out(share: float, documents: tuple[int, int], tokens: tuple[int, int]) -> list[str]:
    config = load_config("quickstart", [f"data.heldout_fraction={share}"])
    pairs = zip(("train", "heldout"), documents, tokens)
    return documents_reached(config, {split: {"documents": d, "tokens": t} for split, d, t in pairs})


def test_documents_that_are_held_out_beyond_the_share_asked_for() -> None:
    hashes = "hashes decide, and two at least are on either side"
    line = f"2 of 5 documents are held out, with 41.0 % of the tokens: {hashes}"
    assert held_out(0.01, (3, 2), (590, 410)) == [f"data.heldout_fraction=0.01, since {line}"]
    assert held_out(0.4, (3, 2), (590, 410)) == []
    assert held_out(0.05, (18, 2), (900, 100)) != []  # a tenth
    assert held_out(0.05, (950, 50), (1, 9)) == held_out(0.05, (930, 70), (9, 1)) == []  # within what hashes do
    line = f"3 of 5 documents are held out, with 50.0 % of the tokens: {hashes}"
    assert held_out(0.99, (2, 3), (50, 50)) == [f"data.heldout_fraction=0.99, since {line}"]


def test_sequences_that_are_not_shorter() -> None:
    def lines(share: float, found: float, sequences: int = 512) -> list[str]:
        config = load_config("quickstart", [f"data.short_sequence_probability={share}", "data.sequence_length=16"])
        return lengths_reached(config, Filling(sequences, 0.0, found, 2.0, 0.9, 0.0))

    found = "0.1 % of the first 512 sequences are shorter than data.sequence_length 16"
    kept = "two whole sentences are kept, which mostly fill it"
    assert lines(1.0, 0.001) == [f"data.short_sequence_probability=1.0, since {found}: {kept}"]
    assert lines(1.0, 0.645) == lines(0.1, 0.04) == lines(0.0, 0.0) == []
    assert lines(0.01, 0.0) == lines(0.1, 0.0, sequences=8) == []  # as chance has it


def test_predictions_that_are_no_such_share() -> None:
    def lines(share: float, length: int) -> list[str]:
        config = load_config("quickstart", [f"data.mask_probability={share}", f"data.sequence_length={length}"])
        return predictions_reached(config, wanted_predictions(config))

    one = "since 1 of 16 tokens, 6.2 %, are predicted: whole tokens, one at least"
    assert [lines(share, 16) for share in (0.001, 0.02, 0.04)] == [
        [f"data.mask_probability={share}, {one}"] for share in (0.001, 0.02, 0.04)
    ]
    assert lines(0.05, 16) == lines(0.15, 128) == lines(0.15, 16) == lines(0.95, 128) == []
    all_of_it = "since 5 of 8 tokens, 62 %, are predicted: [CLS] and [SEP] are not"
    assert lines(0.95, 8) == [f"data.mask_probability=0.95, {all_of_it}"]


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
    asked = (*asked, "optim.clip_norm=1e-40", "data.mask_probability=0.001", "data.short_sequence_probability=1")
    asked = (*asked, "data.heldout_fraction=0.01")
    assert program(*asked) == 0
    lines = [line[11:] for line in capsys.readouterr().err.splitlines() if line.startswith("no effect: ")]
    assert program(*asked, "--dry-run") == 0  # now that the text is prepared
    plan = capsys.readouterr().out.splitlines()
    assert [line[12:] for line in plan if line.startswith("no effect   ")] == lines
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    moved = next(record["moved"] for record in records if record["kind"] == "update")
    blocks = next(record["blocks"] for record in records if record["kind"] == "update")
    batches = next(record["batches"] for record in records if record["kind"] == "eval")
    report = read_object(tmp_path / "run" / "report.json")
    short = 100 * report["data"]["filling"]["shorter"]
    held, left = (report["data"]["splits"][split] for split in ("heldout", "train"))
    assert (held["documents"], left["documents"]) == (2, 18)
    share = 100 * held["tokens"] / (held["tokens"] + left["tokens"])
    assert lines == [
        f"eval.batches=999 beyond {batches}, since the held-out text has no more",
        f"data.heldout_fraction=0.01, since 2 of 20 documents are held out, with {share:.1f} % of the tokens: hashes "
        "decide, and two at least are on either side",
        f"data.short_sequence_probability=1.0, since {short:.1f} % of the first 512 sequences are shorter than "
        "data.sequence_length 32: two whole sentences are kept, which mostly fill it",
        "data.mask_probability=0.001, since 1 of 32 tokens, 3.1 %, are predicted: whole tokens, one at least",
        f"sparsity.pruning_ratio=1.0 in full, since {moved:,} of the {blocks:,} blocks of an update have a free place "
        "to go to",
        "optim.lr=0.001 in full, since optim.clip_norm 1e-40 is below optim.eps 1e-06, and no gradient moves a weight "
        "by more than 1e-34 of it",
    ]
    assert report["no_effect"] == lines
    assert all(f"- no effect: `{line}`" in (tmp_path / "run" / "report.md").read_text() for line in lines)
