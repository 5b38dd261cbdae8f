"""What tells whether a model reads context, by hand."""

from __future__ import annotations

import math
import random
from statistics import mean, stdev

import pytest

from ipu_bert.record.context import Context
from ipu_bert.record.metrics import dumps, read_metrics
from ipu_bert.record.verdict import FOUND


def test_the_standard_error_of_what_other_words_cost(seed: int) -> None:
    """Of batches with as many labels each it is that of their means."""
    draw = random.Random(seed)
    batches, labels = draw.randint(4, 9), draw.randint(1, 50)
    own, others = ([labels * draw.gauss(5.0, 1.0) for _ in range(batches)] for _ in range(2))
    found = Context.of_sums([(mine, other, labels) for mine, other in zip(own, others)], 6.5, 0.75)
    gains = [(other - mine) / labels for mine, other in zip(own, others)]
    assert found.other_words_loss == pytest.approx(sum(others) / labels / batches)
    assert found.gain(sum(own) / labels / batches) == pytest.approx(mean(gains))
    assert found.other_words_error == pytest.approx(stdev(gains) / math.sqrt(batches))
    assert (found.word_frequencies_loss, found.mlm_labels, found.other_words_share) == (6.5, batches * labels, 0.75)
    # Three labels of one batch weigh as much as three batches of one; a batch without labels adds nothing.
    uneven = Context.of_sums([(9.0, 12.0, 3), (1.0, 4.0, 1), (1.0, 4.0, 1), (0.0, 0.0, 0)], 6.5, 1.0)
    assert uneven.other_words_loss == 20 / 5
    # By hand: 9/5 a label; 3 - 27/5, twice 3 - 9/5 and none are left; their squares, 5.76, 1.44, 1.44, by 4/3, over 25.
    assert uneven.other_words_error == pytest.approx(math.sqrt((5.76 + 2 * 1.44) * 4 / 3) / 5)
    assert math.isnan(Context.of_sums(3 * [(1.0, 2.0, 1)], 6.5, 1.0).other_words_error)  # of few it says little
    assert math.isnan(Context.of_sums(9 * [(0.0, 0.0, 0)], math.nan, 1.0).other_words_loss)


@pytest.mark.parametrize(
    ("other", "error", "loss", "reads"),
    [
        (6.5, 0.01, 6.0, True),
        (6.5, 0.124, 6.0, True),
        (6.5, 0.126, 6.0, False),  # less than four standard errors
        (6.06, 0.0, 6.0, True),
        (6.04, 0.0, 6.0, False),  # for certain, and next to nothing
        (5.5, 0.01, 6.0, False),
        (6.5, math.nan, 6.0, False),  # by too few batches
        (9.0, 0.01, 7.0, False),  # no better than word frequencies: it learned its training text by heart
        (math.nan, math.nan, math.nan, False),
    ],
)
def test_what_is_called_reading(other: float, error: float, loss: float, reads: bool) -> None:
    assert Context(other, error, 7.0, 9700).read(loss) is reads


def test_a_card_and_a_report_have_one_word_for_it() -> None:
    found = [
        Context(other, error, 7.0, 9700).found(6.0)
        for other, error in ((6.5, 0.01), (6.5, math.nan), (6.03, 0.005), (6.03, 0.01), (6.3, 0.1), (6.001, 0.0))
    ]
    assert found == ["yes", "few", "hardly", "unclear", "unclear", "not"]
    assert Context(9.0, 0.01, 6.0, 9700).found(6.0) == "frequencies"
    assert set(FOUND) == {*found, "kept", "frequencies"}


def test_where_most_of_the_words_around_stay_nothing_is_denied() -> None:
    """A model of Thai at 0.340 nats, 2.985 by frequencies, lost 0.003 where 16 % of the tokens around were others."""
    assert Context(0.343, 0.0018, 2.985, 9700, 0.16).found(0.340) == "kept"
    for other, error, all_replaced in (
        (6.5, 0.01, "yes"),
        (6.03, 0.005, "hardly"),
        (6.3, 0.1, "unclear"),
        (6.0, 0.0, "not"),
    ):
        few, half, older = (Context(other, error, 7.0, 9700, share).found(6.0) for share in (0.499, 0.5, math.nan))
        assert half == older == all_replaced
        assert few == ("yes" if all_replaced == "yes" else "kept")  # what was replaced has shown it
    assert Context(6.0, math.nan, 7.0, 9700, 0.1).found(6.0) == "few"
    assert Context(6.0, 0.0, 6.0, 9700, 0.1).found(6.0) == "frequencies"
    told = "6.2500 with other words around (+0.2500 ± 0.1000; only 12.5 % of the tokens around are others); word freq"
    assert Context(6.25, 0.1, 7.0, 9700, 0.125).beside(6.0).startswith(told)
    assert "others)" not in Context(6.25, 0.1, 7.0, 9700, 0.5).beside(6.0)


def test_going_by_words_is_held_against_its_standard_error() -> None:
    """Above word frequencies, too."""
    for other, error, goes in ((9.5, 0.1, True), (9.5, 0.2, False), (9.04, 0.001, False), (9.5, math.nan, False)):
        assert Context(other, error, 7.0, 9700).goes_by_words(9.0) is goes


def test_a_record_holds_it(tmp_path) -> None:
    path, means = (
        tmp_path / "metrics.jsonl",
        {"mlm_loss": 6.0, "nsp_loss": 0.7, "mlm_accuracy": 0.1, "nsp_accuracy": 0.5},
    )
    for found in (
        Context(6.5, 0.25, 7.0, 9700, 0.75),
        Context(6.5, math.nan, 7.0, 9700, 0.75),
        Context(6.5, 0.25, 7.0, 9700),
    ):
        path.write_text(dumps({"kind": "eval", "step": 2, "batches": 4, **means, **found.as_record()}) + "\n")
        assert repr(Context.of_record(read_metrics(path)[0])) == repr(found)
    # Of older versions: one that had another thing to compare with, and one that did not count what was replaced.
    older = {"no_context_loss": 6.0, "word_frequencies_loss": 6.5, "mlm_labels": 9700, "no_context_margin": 0.05}
    record = {"kind": "eval", "step": 2, **means, **Context(6.5, 0.25, 7.0, 9700, 0.75).as_record()}
    del record["other_words_share"]
    path.write_text(dumps(record) + "\n")
    assert repr(Context.of_record(read_metrics(path)[0])) == repr(Context(6.5, 0.25, 7.0, 9700, math.nan))
    for beside in ({}, older):
        path.write_text(dumps({"kind": "eval", "step": 2, **means, **beside}) + "\n")
        assert Context.of_record(read_metrics(path)[0]) is None
