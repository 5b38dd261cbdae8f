"""Means, differences, curves and what is read off the dense family's line, against values worked out by hand."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from ipu_bert.settings import Config
from ipu_bert.study.definition import Row, Study
from ipu_bert.study.figures import cost_figure, steps_figure
from ipu_bert.study.frontier import Point, match, paper_family, table, undominated
from ipu_bert.study.groups import Group, group
from ipu_bert.study.report import _table, compared, guess_of, made_of
from ipu_bert.study.results import Evaluation, RunResult, Update
from ipu_bert.study.statistics import difference, mean


def result(loss: float, seed: str = "0", method: str = "dense", steps: tuple[int, ...] = (0, 10)) -> RunResult:
    return RunResult(
        row="a row",
        grid={"run.seed": seed},
        key=f"{loss}{seed}",
        steps=steps[-1],
        sequences=40,
        flops=5.0,
        executed_flops=6.0,
        seconds=1.0,
        unigram_entropy=6.4,
        word_frequencies_loss=None,
        evaluations=tuple(Evaluation(step, loss + 1 - step / steps[-1], None) for step in steps),
        updates=(),
        settings={"sparsity.method": method},
        machine={"processor": "none"},
        revision="none",
        finished="",
    )


def row(label: str, losses: dict[str, float]) -> Group:
    return Group(Row(label, None), Config(), {}, {seed: result(loss, seed) for seed, loss in losses.items()}, 3)


def test_the_mean_of_three_and_its_standard_error():
    found = mean([5.9, 6.0, 6.4])
    assert found.value == pytest.approx(6.1)
    assert found.error == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2) / math.sqrt(3))
    assert (found.count, found.spread) == (3, (5.9, 6.4))
    assert mean([5.0]).error is None


def test_equal_seeds_are_paired_and_others_are_not(seed):
    rng = random.Random(seed)
    base = {str(k): rng.gauss(6, 1) for k in range(5)}  # seeds differ much, the two rows by little
    other = {k: value + 0.1 + rng.gauss(0, 0.01) for k, value in base.items()}
    paired = difference(base, other)
    deltas = [base[k] - other[k] for k in base]
    assert paired.paired
    assert paired.value == pytest.approx(statistics.fmean(deltas))
    assert paired.error == pytest.approx(statistics.stdev(deltas) / math.sqrt(5))
    assert paired.clear
    apart = difference(base, {f"x{k}": value for k, value in other.items()})
    errors = [statistics.stdev(x.values()) / math.sqrt(5) for x in (base, other)]
    assert not apart.paired
    assert apart.error == pytest.approx(math.hypot(*errors))
    assert not apart.clear
    assert paired.p == pytest.approx(stats.ttest_rel(list(base.values()), list(other.values())).pvalue)
    uneven = [*other.values()][:3]
    welch = difference(base, {f"x{k}": value for k, value in enumerate(uneven)})
    assert welch.p == pytest.approx(stats.ttest_ind(list(base.values()), uneven, equal_var=False).pvalue)


def test_what_few_seeds_can_say():
    """Beyond Student's 12.71 and 4.30 standard errors with two and three seeds (his table), not beyond two."""
    for deltas, quantile in ((1.0, -1.0), 12.706), ((1.0, 0.0, -1.0), 4.3027):
        error = statistics.stdev(deltas) / math.sqrt(len(deltas))
        for times, clear in ((2.5, False), (quantile * 0.999, False), (quantile * 1.001, True)):
            shifted = {str(k): delta + times * error for k, delta in enumerate(deltas)}
            assert difference(shifted, dict.fromkeys(shifted, 0.0)).clear == clear
    single, same = difference({"0": 1.0}, {"0": 2.0}), {"0": 1.0, "1": 2.0}
    assert (single.error, single.p, single.clear) == (None, None, False)
    assert (difference(same, same).p, difference(same, {"0": 2.0, "1": 3.0}).p) == (1.0, 0.0)


def test_a_family_of_all_but_equal_losses_says_nothing_far_away():
    """The line through such two ends beyond what numbers hold; the whole page was lost."""
    family = [Point("a", 1e12, 5.0001, True), Point("b", 2e12, 5.0, True)]
    found = match(
        [Point("below", 1e12, 4.0, False), Point("above", 1e12, 8.0, False), Point("at", 1e12, 5.00005, False)], family
    )
    assert [one.cost is None for one in found] == [True, True, False]
    assert [one.cost_ratio is None for one in found] == [True, True, False]
    assert found[2].cost == pytest.approx(2**0.5 * 1e12, rel=1e-4)
    rows = table("FLOPs", found)[4:7]
    assert rows[0] == "| below | 4.0000 | 5.0001 | 1e+12 | - | - | too far from the dense runs |"
    assert "wins by 1.41" in rows[2]
    (far,) = match([Point("x", 1e300, 5.0, False)], [Point("a", 1e12, 5.0, True), Point("b", 1.01e12, 4.0, True)])
    assert far.loss is None


def test_a_curve_is_over_the_steps_that_all_seeds_have():
    runs = {"0": result(5.0, "0"), "1": result(6.0, "1", steps=(0, 5, 10))}
    curve = Group(Row("a", None), Config(), {}, runs, 2).curve()
    assert [(step, loss.value) for step, loss in curve] == [(0, 6.5), (10, 5.5)]


def test_rows_are_compared_as_the_study_says():
    groups = [row("dynamic", {"0": 5.9, "1": 6.0, "2": 6.1}), row("static", {"0": 6.0, "1": 6.11, "2": 6.19})]
    study = Study("s", "", tuple(g.row for g in groups), {}, (), (("dynamic", "static"),), (), "s")
    ((first, second, found),) = compared(study, groups)
    assert (first, second) == ("dynamic", "static")
    assert found.value == pytest.approx(-0.1)
    assert found.error == pytest.approx(0.01 / math.sqrt(3))


@pytest.mark.parametrize("method", ["dense", "dynsparse"])
def test_no_two_lines_of_a_figure_are_alike(method):
    groups = [Group(Row(str(n), None), Config(), {}, {"0": result(6.0, method=method)}, 3) for n in range(20)]
    lines = steps_figure(groups, None).axes[0].get_lines()[:20]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20
    assert len({line.get_color() for line in lines}) >= 4


def test_what_runs_were_made_of_is_told_of_all_of_them():
    """Not of the first one alone: rows may have steps, lengths and machines of their own."""
    data = {"data.source": "mix", "data.sequence_length": 64}
    runs = [replace(result(6.0), settings=data, sequences=1000), replace(result(6.0), settings=data, sequences=4000)]
    assert made_of(runs[:1]).startswith("1,000 sequences of 64 tokens of mix; a guess by word frequency on all held")
    assert ", of which not every word is asked for: 6.400 nats. Run on" in made_of(runs[:1])
    other = replace(runs[1], settings={**data, "data.sequence_length": 128}, revision="b", unigram_entropy=6.5)
    told = made_of([runs[0], other])
    assert told.startswith("1,000 to 4,000 sequences of 64 to 128 tokens of mix; a guess by word frequency on all held")
    assert told.endswith(": 6.400 to 6.500 nats. Run on none, at b, none.")


def test_losses_are_held_against_a_guess_at_what_was_asked_for():
    """Pages and figures had that of the whole held-out text: a run could be below it and above that of its own page."""
    kept = [replace(result(5.6, seed), word_frequencies_loss=5.5 + 0.1 * int(seed)) for seed in "01"]
    data = {"data.source": "mix", "data.sequence_length": 64}
    runs = [replace(run, settings=data) for run in kept]
    words = "a guess by word frequency: 5.500 to 5.600 nats on what is asked for, 6.400 on all held-out text."
    assert words in made_of(runs)
    assert "on all held-out text, of which" in made_of([*runs, replace(runs[0], word_frequencies_loss=None)])
    groups = [Group(Row("a", None), Config(), {}, {run.grid["run.seed"]: run for run in kept}, 2)]
    assert guess_of(groups) == (pytest.approx(5.55), "word frequencies")
    groups += [row("older", {"0": 5.9})]
    assert guess_of(groups) == (6.4, "word frequencies of all held-out text")
    assert (
        guess_of([*groups, Group(groups[0].row, Config(), {}, {"0": replace(result(5.9), unigram_entropy=6.0)}, 1)])
        is None
    )
    (text,) = steps_figure(groups[:1], guess_of(groups[:1])).axes[0].texts
    assert (text.get_text(), text.xy[1]) == ("word frequencies", pytest.approx(5.55))


def test_what_patterns_did_is_a_mean_over_seeds(seed):
    """It was the first seed's, in a table of means."""
    rng = random.Random(seed)
    explored, removed = [[rng.random() for _ in range(3)] for _ in range(2)]
    last = [Update(8, 0.1, *numbers) for numbers in zip(explored, [removed[0], None, removed[2]])]
    updates = [(Update(4, 0.2, rng.random(), rng.random()), update) for update in last]
    runs = {str(k): replace(result(6.0, str(k)), updates=both) for k, both in enumerate(updates)}
    moving, still = Group(Row("moving", None), Config(), {}, runs, 3), row("still", {"0": 6.0})
    assert moving.explored_dof == pytest.approx(sum(explored) / 3)
    assert moving.removed_new == pytest.approx((removed[0] + removed[2]) / 2)  # of the other nothing was new
    assert (still.explored_dof, still.removed_new) == (None, None)
    lines = {line.split(" | ")[0]: line for line in _table([moving, still])}
    assert f"| {sum(explored) / 3:.2f} | {(removed[0] + removed[2]) / 2:.2f} |  |" in lines["| moving"]
    assert lines["| still"].endswith("|  |  |  |")


def test_results_of_other_settings_are_left_out():
    assert group(Study("s", "", (), {}, (), (), (), "s"), {"old": result(5.0)}) == []


def test_the_line_of_the_paper_gives_its_matched_rows():
    """Table 1: 2.350 at the FLOPs of Medium 16x16 in the paper's count, read off the dense family."""
    flops, sequences = 8.33e9, 757_000 * 512
    (found,) = match([Point("base", flops * sequences, 2.311, False)], paper_family())
    assert found.loss == pytest.approx(2.350, abs=5e-4)
    assert found.inside
    assert found.cost_ratio < 1


def test_only_dense_runs_that_nothing_beats_make_the_line():
    a, b, c = Point("a", 1.0, 6.0, True), Point("b", 2.0, 6.1, True), Point("c", 4.0, 5.0, True)
    assert undominated([b, c, a]) == [a, c]
    (found,) = match([Point("sparse", 2.0, 5.0, False), a], [a, b, c])
    assert found.cost == pytest.approx(4.0)
    assert found.cost_ratio == pytest.approx(0.5)
    assert found.loss == pytest.approx(math.sqrt(6.0 * 5.0))  # half way in log cost
    assert "wins by 2.00" in table("FLOPs", [found])[-2]
    (lost,) = match([Point("worse", 8.0, 5.0, False)], [a, c])
    assert not lost.inside
    assert "loses by 2.00; dense at equal cost: beyond the dense runs |" in table("FLOPs", [lost])[-2]
    assert match([Point("sparse", 2.0, 5.0, False)], [a, b]) == []


@pytest.mark.parametrize(
    ("cost", "loss", "words"),
    [
        (2.0, 5.0, "| wins by 1.41 |"),  # both between: the dense cost of 5.0 is 2 * 2^0.5
        (0.5, 5.0, "| wins by 5.66; dense at equal cost: beyond the dense runs |"),
        (0.1, 5.0, "| wins by 28.28 |"),  # so far out that none is said: a dash
        (
            2.0,
            3.0,
            "| wins by 3.13, beyond the dense runs |",
        ),  # the dense cost of 3.0: 4 * 2^(ln(4 / 3) / ln(25 / 16)) = 6.25
        (0.5, 3.0, "| wins by 12.51, beyond the dense runs |"),
    ],
)
def test_beyond_the_dense_runs_is_what_lies_there(cost, loss, words):
    """It stood beside ratios whose dense cost lies between those of dense runs, where the run's own alone does not."""
    family = [Point("a", 1.0, 7.8125, True), Point("b", 2.0, 6.25, True), Point("c", 4.0, 4.0, True)]
    (found,) = match([Point("x", cost, loss, False)], family)
    assert words in table("FLOPs", [found])[-2]
    assert found.inside == ((cost, loss) == (2.0, 5.0))


def test_where_costlier_dense_runs_came_to_no_lower_loss_none_is_said_to():
    """The line went on down past them: 5.0 at twice the cost of `b`, where `c` had come to 5.6."""
    a, b, c = Point("a", 1.0, 6.0, True), Point("b", 2.0, 5.5, True), Point("c", 4.0, 5.6, True)
    points = [
        Point(name, cost, loss, False) for name, cost, loss in [("x", 3.0, 5.7), ("y", 3.0, 5.4), ("z", 5.0, 5.7)]
    ]
    x, y, z = match(points, [a, b, c])
    assert (x.loss, y.loss, z.loss) == (5.5, 5.5, None)
    assert x.cost == pytest.approx(2.0 ** (math.log(6.0 / 5.7) / math.log(6.0 / 5.5)))
    assert (x.inside, y.inside, z.inside) == (True, False, False)
    assert (y.cost, y.cost_ratio) == (None, None)
    assert "| y | 5.4000 | 5.5000 | 3 | - | - | no dense run comes to it, the costlier ones neither |" in table(
        "s", [y]
    )
    (went_on,) = match(points[1:2], [a, b])
    assert went_on.cost == pytest.approx(2.0 ** (math.log(6.0 / 5.4) / math.log(6.0 / 5.5)))


def test_a_line_goes_on_by_its_own_length_and_no_farther():
    """Dense runs of all but equal seconds gave each loss a time: 4.93 at 3,990 s, from 4.80 at 4,149, 4.85 at 4,089."""
    a, b = Point("a", 2.0, 6.0, True), Point("b", 4.0, 5.0, True)
    at = [Point(str(cost), cost, 5.5, False) for cost in (0.99, 1.01, 7.99, 8.01)]
    assert [one.loss is None for one in match(at, [a, b])] == [True, False, False, True]
    low, high = 5.0 * 5.0 / 6.0, 6.0 * 6.0 / 5.0  # one length down and up
    down = [Point(str(loss), 2.0, loss, False) for loss in (low - 0.01, low + 0.01, high - 0.01, high + 0.01)]
    assert [one.cost is None for one in match(down, [a, b])] == [True, False, False, True]


@pytest.mark.parametrize("letters", [5, 15, 16, 17, 25, 33, 60])
def test_a_legend_stays_within_its_figure(letters):
    """Four long labels in one line were cut off on both sides."""
    figure = steps_figure([row(f"{i} {'n' * (letters - 2)}", {"0": 6.0}) for i in range(6)], (6.6, "guess"))
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    shown = legend.get_window_extent()
    assert figure.bbox.x0 <= shown.x0
    assert shown.x1 <= figure.bbox.x1


def test_bands_and_names_can_be_read(seed):
    """A band was cut off below the lowest mean, and names of equal costs lay on each other."""
    figure = steps_figure([row("wide", {"0": 6.0, "1": 4.0}), row("narrow", {"0": 5.9})], (6.6, "guess"))
    assert figure.axes[0].get_ylim()[0] < 4.0
    losses = 6.1 + 0.01 * torch.rand(8, generator=torch.Generator().manual_seed(seed))
    points = [Point(f"row {n}", 1e13, loss, False) for n, loss in enumerate(losses.tolist())]
    figure = cost_figure(points, [None] * 8, [Point("dense", 9e12, 6.2, True), Point("larger", 4e13, 6.0, True)], "x")
    FigureCanvasAgg(figure).draw()
    names = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    assert len(names) == 8
    for one, other in itertools.combinations(names.values(), 2):
        assert not one.overlaps(other)
    lower = sorted(points, key=lambda point: point.loss)
    assert sorted(names, key=lambda name: names[name].y0) == [point.label for point in lower]
