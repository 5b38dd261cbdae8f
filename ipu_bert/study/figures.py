"""The figures of a study, as SVG: plain values in, a Figure out."""

from __future__ import annotations

import itertools
from typing import Callable, Sequence

import numpy as np

from ipu_bert.study.frontier import Point, undominated
from ipu_bert.study.groups import Group, timed
from ipu_bert.study.seconds import MachineSeconds
from ipu_bert.study.statistics import Mean
from sparse_ops.agg import Axes, Bbox, Figure, ScalarFormatter

# Okabe and Ito's, for sparse rows; dense ones are grey to black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F00")
_GREYS = ("#000000", "#595959", "#8C8C8C", "#B0B0B0")
_MARKERS = ("", "o", "^", "s", "D")  # of the lines that have a colour after the first
_LETTERS, _HANDLE = 90, 7  # that fit into the width of a legend, and what a line and the space beside it take of them
# Of a point's name, in points: its size, about how wide and high a letter is, and where it is from the point.
_FONT, _LETTER, _BESIDE = 9, (5.0, 10.0), (6.0, 5.0)
_LOSS = "held-out masked-LM loss [nats]"


def _literal(text: str) -> str:
    """A name as it is written: what stands between two dollars would be a formula."""
    return text.replace("$", r"\$")


Guess = tuple[float, str]  # a loss [nats] that needs no model, and its name


def steps_figure(groups: Sequence[Group], guess: Guess | None) -> Figure:
    """Loss over steps; a band from the least to the largest seed. guess: None where rows have no one in common."""
    return _curves(groups, lambda group, step: float(step), "training step", guess)


def seconds_figure(groups: Sequence[Group], seconds: MachineSeconds, guess: Guess | None) -> Figure:
    """Loss over seconds of training on one machine: losses by step, and seconds a step measured apart."""
    found = timed(groups, seconds)
    per_step = {group.label: row.per_step for group, row in found}
    return _curves(
        [group for group, _ in found],
        lambda group, step: step * per_step[group.label],
        _literal(f"seconds of training, {seconds.threads} threads of {seconds.machine}"),
        guess,
    )


def _curves(groups: Sequence[Group], x: Callable[[Group, int], float], name: str, guess: Guess | None) -> Figure:
    figure, axes = _figure()
    highest = max(group.first.unigram_entropy for group in groups) if guess is None else guess[0]
    lowest = highest
    for group, colour, marker in _marked(groups):
        curve = [(x(group, step), loss) for step, loss in group.curve() if step]
        places, losses = [place for place, _ in curve], [loss for _, loss in curve]
        style = "--" if group.first.settings["sparsity.method"] == "static" else "-"
        axes.plot(
            places,
            [loss.value for loss in losses],
            style,
            color=colour,
            marker=marker,
            markersize=4.0,
            linewidth=1.8,
            label=_literal(group.label),
        )
        _band(axes, places, losses, colour)
        lowest = min([lowest, *(loss.spread[0] for loss in losses)])
    if guess is not None:
        axes.axhline(guess[0], color="black", linestyle=":", linewidth=1.0)
        axes.annotate(guess[1], (0.99, guess[0]), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set_ylim(lowest - 0.03 * (highest + 0.3 - lowest), highest + 0.3)
    axes.set_xlim(left=0)
    return _finished(figure, axes, name, _LOSS)


def _band(axes: Axes, places: Sequence[float], means: Sequence[Mean], colour: str) -> None:
    if any(one.count > 1 for one in means):
        low, high = [one.spread[0] for one in means], [one.spread[1] for one in means]
        axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)


def cost_figure(points: Sequence[Point], errors: Sequence[float | None], family: Sequence[Point], name: str) -> Figure:
    """Loss at the end over cost, both logarithmic, and the line of the dense family (Figure 3).

    errors: standard error of each point's loss, None for a single seed.
    """
    figure, axes = _figure()
    curve = undominated(family)
    axes.plot([p.cost for p in curve], [p.loss for p in curve], color="black", linewidth=1.4, label="dense family")
    for point, error in zip(points, errors):
        colour = "black" if point.dense else "#0072B2"
        axes.errorbar(point.cost, point.loss, yerr=error, color=colour, fmt="s" if point.dense else "o", capsize=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.margins(x=0.15, y=0.1)
    _finished(figure, axes, name, _LOSS)
    _name_points(figure, axes, points)
    return figure


def _name_points(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Each point's name beside it, from the highest loss down, so much lower that none is over another."""
    figure.draw_without_rendering()  # fixes the limits
    taken: list[Bbox] = []
    for point in sorted(points, key=lambda point: -point.loss):
        x, y = axes.transData.transform((point.cost, point.loss)) * 72.0 / figure.dpi  # in points
        width, height = _LETTER[0] * len(point.label), _LETTER[1]
        boxes = (Bbox.from_bounds(x + _BESIDE[0], y + _BESIDE[1] - down, width, height) for down in itertools.count())
        box = next(box for box in boxes if not box.count_overlaps(taken))
        taken.append(box)
        offset, at = (_BESIDE[0], box.y0 - y), (point.cost, point.loss)
        axes.annotate(_literal(point.label), at, offset, textcoords="offset points", fontsize=_FONT)


def explored_figure(groups: Sequence[Group]) -> Figure:
    """Explored DOF, and of new blocks the share that the next update removes, over updates (Figures 5, 10, 11)."""
    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    moving = [group for group in groups if group.first.updates]
    for group, colour, marker in _marked(moving):
        updates = group.first.updates
        steps = [update.step for update in updates]
        look = {"color": colour, "marker": marker, "markersize": 4.0, "markevery": 0.1}
        explored = [update.explored_dof for update in updates]
        top.plot(steps, explored, linewidth=1.8, label=_literal(group.label), **look)
        removed = [np.nan if update.removed_new is None else update.removed_new for update in updates]
        bottom.plot(steps, removed, linewidth=1.4, **look)
    for axes, name in ((top, "explored DOF"), (bottom, "removed-new ratio")):
        axes.set_ylim(0, 1.02)
        _finished(figure, axes, "training step" if axes is bottom else "", name)
    return figure


def grid_figure(groups: Sequence[Group], key: str) -> Figure:
    """Loss at the end over the one setting of the grid beside the seed, of numbers above 0, a line for each row."""
    figure, axes = _figure()
    rows = list(dict.fromkeys(group.row.label for group in groups))
    for row, colour in zip(rows, _COLOURS * len(rows)):
        own = sorted((float(group.grid[key]), group.loss) for group in groups if group.row.label == row)
        axes.errorbar(
            [value for value, _ in own],
            [loss.value for _, loss in own],
            yerr=[loss.error or 0.0 for _, loss in own],
            color=colour,
            marker="o",
            capsize=3,
            label=_literal(row),
        )
    axes.set_xscale("log")
    return _finished(figure, axes, key, _LOSS)


def _marked(groups: Sequence[Group]) -> list[tuple[Group, str, str]]:
    """A colour and a marker for each, no two alike while there are any."""
    greys, colours = (itertools.cycle(itertools.product(_MARKERS, few)) for few in (_GREYS, _COLOURS))
    looks = ((group, next(greys if group.is_dense else colours)) for group in groups)
    return [(group, colour, marker) for group, (marker, colour) in looks]


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    return figure, figure.subplots()


def _finished(figure: Figure, axes: Axes, x: str, y: str) -> Figure:
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.grid(True, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = max(1, min(4, _LETTERS // (max(map(len, labels)) + _HANDLE)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure
