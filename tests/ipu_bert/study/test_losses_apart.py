"""Losses of other vocabularies, texts and masks are not set against each other."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Callable

import pytest

from ipu_bert.study.definition import Cell, read_study
from ipu_bert.study.report import write_report
from ipu_bert.study.results import Evaluation, Results, RunResult, deciding

STUDY = """
base: quickstart
settings:
  {train.steps: 50, train.batch_size: 32, sparsity.updates: 5, data.sequence_length: 128, data.max_predictions: 20}
rows:
  dense: {settings: {sparsity.method: dense}}
  larger: {settings: {sparsity.method: dense, model.layers: 3}}
  sparse: {settings: {OTHER}}
grid: {run.seed: [0, 1, 2]}
compare: [[sparse, dense], [larger, dense]]
figures: [steps, flops]
"""


def page(
    folder: Path,
    setting: str,
    entropy: float,
    judged: Callable[[Cell], tuple[int | None, float | None]] = lambda _: (None, None),
) -> tuple[str, dict[str, Any], str]:
    """The page, its numbers and the figure over steps of a study whose last row has a setting and an entropy.

    judged: the batches by which a cell was judged and the loss of a guess on what they ask for, as far as it was kept.
    """
    (folder / "mine.yaml").write_text(STUDY.replace("OTHER", setting))
    study, results = read_study(str(folder / "mine.yaml")), Results(folder)
    losses = {"dense": 6.0, "larger": 5.9, "sparse": 5.8}
    for number, cell in enumerate(study.cells):
        row = cell.row.label
        loss = losses[row] + 0.001 * number
        batches, guess = judged(cell)
        settings = {**deciding(cell.config), **({} if batches is None else {"heldout_batches": batches})}
        results.add(
            RunResult(
                row=row, grid=dict(cell.grid), key=cell.key, steps=50, sequences=1600,
                flops=2e9 if row == "larger" else 1e9, executed_flops=2e9, seconds=9.0,
                unigram_entropy=entropy if row == "sparse" else 6.5, word_frequencies_loss=guess,
                evaluations=(Evaluation(50, loss, None),), updates=(), settings=settings,
                machine={"processor": "x"}, revision="r", finished="now",
            )
        )  # fmt: skip
    text = write_report(study, folder).read_text()
    return text, json.loads((folder / "report.json").read_text()), (folder / "steps.svg").read_text()


@pytest.mark.parametrize(
    ("setting", "entropy", "why"),
    [
        ("data.vocab_size: 200", 5.5, "word frequencies of the held-out texts come to 6.5000 and 5.5000 nats"),
        ("data.mask_probability: 0.3", 6.5, "data.mask_probability is 0.15 and 0.3"),
        ("data.sequence_length: 32", 6.5, "data.sequence_length is 128 and 32"),
        ("data.whole_word_masking: false", 6.5, "data.whole_word_masking is True and False"),
        ("data.max_predictions: 3", 6.5, "at most 19 and 3 tokens of a sequence are masked"),
    ],
)
def test_losses_that_mean_another_thing_are_not_called_lower(tmp_path, capsys, setting, entropy, why):
    text, numbers, figure = page(tmp_path, setting, entropy)
    line = f"losses do not compare: dense and sparse: {why}"
    assert capsys.readouterr().err == line + "\n"
    assert text.count(line) == 1
    assert "| sparse | dense | | | losses do not compare |" in text
    assert re.search(r"\| larger \| dense \| -0.0990 ± 0.0000 \| \S+ \| first is lower \|", text)
    assert numbers["compared"][0] == {"first": "sparse", "second": "dense", "comparable": False}
    assert numbers["compared"][1]["clear"]
    assert numbers["at_equal_flops"] == []
    assert "Against the dense family" not in text
    assert ("word frequencies of all held-out text" in figure) == (entropy == 6.5)


@pytest.mark.parametrize("setting", ["sparsity.block_size: 4", "data.vocab_size: 8193", "data.max_predictions: 21"])
def test_losses_that_mean_the_same_are_compared(tmp_path, capsys, setting):
    """Also where both vocabularies have all that the text gives, and where no sequence needs more predictions."""
    text, numbers, figure = page(tmp_path, setting, 6.5 * (1 + 1e-9))
    assert capsys.readouterr().err == ""
    assert "do not compare" not in text
    assert re.search(r"\| sparse \| dense \| -0.1980 ± 0.0000 \| \S+ \| first is lower \|", text)
    assert len(numbers["at_equal_flops"]) == 1
    assert "word frequencies of all held-out text" in figure


def test_more_rows_that_differ_are_counted(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "STUDY", STUDY.replace("model.layers: 3", "model.layers: 3, data.sequence_length: 32"))
        page(tmp_path, "data.vocab_size: 200", 5.5)
    line = "losses do not compare: dense and larger: data.sequence_length is 128 and 32; 2 of 3 differ so from dense\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("setting", ["eval.batches: 1", "train.batch_size: 16"])
def test_means_over_other_numbers_of_sequences_are_told(tmp_path, capsys, setting):
    """Which sequences are judged follows from both, and is the same for all seeds: their spread does not show it."""
    text, _, _ = page(tmp_path, setting, 6.5)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "gave way" not in line]
    few, many = sorted({"eval.batches: 1": (32, 512), "train.batch_size: 16": (256, 512)}[setting])
    assert line.endswith(f"which alone may make them differ: {few}: sparse; {many}: dense / larger")
    assert f"**{line}**" in text


HELD_OUT = 2_496  # sequences of a text, in the tests below


def judged_by(cell: Cell) -> int:
    """One pass over them at most, its last batch filled up from the next."""
    return min(cell.config.eval.batches, math.ceil(HELD_OUT / cell.config.train.batch_size))


@pytest.mark.parametrize("kept", [True, False])
def test_a_short_text_is_judged_as_a_whole_by_batches_of_any_size(tmp_path, capsys, kept):
    """It was said in bold that 32,000 and 64,000 sequences made them differ: there are 2,496, in 78 or 39 batches. An
    older result does not say how many, but what a guess came to on them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "STUDY", STUDY.replace("settings:\n  {", "settings:\n  {eval.batches: 1000, ", 1))
        text, _, _ = page(tmp_path, "train.batch_size: 64", 6.5, lambda c: (judged_by(c) if kept else None, 6.25))
    assert "means over" not in text + capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "kept", "numbers"),
    [
        ("eval.batches: 3", True, "96: sparse; 2,496: dense / larger"),
        ("train.batch_size: 50", True, "2,496: dense / larger; 2,500: sparse"),
        ("eval.batches: 3", False, "at most 96: sparse; at most 32,000: dense / larger"),
    ],
)
def test_as_many_sequences_as_there_were_are_told(tmp_path, capsys, setting, kept, numbers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "STUDY", STUDY.replace("settings:\n  {", "settings:\n  {eval.batches: 1000, ", 1))
        text, _, _ = page(
            tmp_path, setting, 6.5,
            lambda c: (judged_by(c) if kept else None, 6.2 if c.row.label == "sparse" else 6.25),
        )  # fmt: skip
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "gave way" not in line]
    assert line.endswith(f"which alone may make them differ: {numbers}")
    assert f"**{line}**" in text
