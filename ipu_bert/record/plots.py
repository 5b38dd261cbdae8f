"""The pictures of a run: each function takes plain sequences and returns a Figure.

Figures are made without pyplot, so nothing global remembers them and no display is needed. Colours are those of Okabe
and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
from typing import Any, Sequence

import numpy as np

from ipu_bert.record.curves import LossCurve, PatternChange, UpdateCurves
from sparse_ops.agg import (
    Axes,
    Figure,
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    Patch,
    PercentFormatter,
)

BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"
GREY, OLD, EMPTY = "#595959", "#B0B0B0", "#F2F2F2"
LN2 = math.log(2.0)
_SIZE, _TITLE = 11.0, 12.5


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)


def smooth(values: np.ndarray, span: int) -> np.ndarray:
    """Centred mean over `span` (odd) neighbours, fewer at the ends, without NaN; float64, same shape."""
    finite = np.isfinite(values)
    kernel = np.ones(span)
    half = len(kernel) // 2
    total = np.convolve(np.where(finite, values, 0.0), kernel)[half : half + len(values)]
    count = np.convolve(finite.astype(np.float64), kernel)[half : half + len(values)]
    return np.divide(total, count, out=np.full(len(values), math.nan), where=count > 0)


def _clean(axes: Axes) -> None:
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)
    axes.grid(True, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_SIZE - 1)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=_TITLE, fontweight="bold", pad=10)


def _beside(axes: Axes, height: float, text: str) -> None:
    """Name a horizontal line in the right margin, where it covers nothing."""
    axes.annotate(
        text,
        (1.0, height),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=_SIZE - 1,
        annotation_clip=False,
    )


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _thousands(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


# ---------------------------------------------------------------- losses


def _loss_panel(axes: Axes, steps: np.ndarray, train: np.ndarray, held_steps: np.ndarray, held: np.ndarray) -> None:
    span = max(1, len(train) // 24) | 1  # odd, so that the mean is centred
    if span > 2:
        axes.plot(steps, train, color=BLUE, alpha=0.25, linewidth=0.9, label="training, each logged step")
        axes.plot(steps, smooth(train, span), color=BLUE, linewidth=1.8, label=f"training, mean over {span} of them")
    else:
        axes.plot(steps, train, color=BLUE, linewidth=1.6, marker=".", label="training, each logged step")
    if len(held):
        axes.plot(
            held_steps,
            held,
            color=VERMILION,
            linewidth=1.3,
            marker="o",
            markersize=6,
            markeredgecolor="white",
            label="held-out text",
        )


def _last_finite(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def mlm_headline(final: float | None, other_words: float | None) -> str:
    """The masked-LM panel's title: the last held-out loss, and what it is with other words around."""
    if final is None:
        return "Masked-LM loss in training (no held-out evaluation)"
    if other_words is None:
        return f"Held-out masked-LM loss ends at {final:.2f} nats"
    return f"Held-out masked-LM loss ends at {final:.2f}, and at {other_words:.2f} with other words around"


def loss_figure(train: LossCurve, heldout: LossCurve, frequencies: float | None) -> Figure:
    """Training and held-out losses [nats] over steps.

    Masked LM above, on held-out text with other words around, too, and beside `frequencies`, the loss of a guess by
    word frequencies, where these are known; next sentence below, with ln 2, the loss of a coin, where it was trained.
    """
    steps, held_steps = np.asarray(train.steps, dtype=np.float64), np.asarray(heldout.steps, dtype=np.float64)
    held_mlm, held_nsp = _numbers(heldout.mlm), _numbers(heldout.nsp)
    figure = Figure(figsize=(9.0, 6.6), layout="constrained")
    pairs = bool(np.isfinite(np.concatenate([_numbers(train.nsp), held_nsp])).any())
    ratios = (2.4, 1.0) if pairs else (1.0,)
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})
    top = panels[0, 0]

    _loss_panel(top, steps, _numbers(train.mlm), held_steps, held_mlm)
    other_words = _numbers(heldout.other_words)
    if np.isfinite(other_words).any():
        label = "with other words around"
        top.plot(held_steps, other_words, color="black", linewidth=1.1, marker="x", markersize=6, label=label)
    if frequencies is not None and math.isfinite(frequencies):
        top.axhline(frequencies, color="black", linestyle="--", linewidth=1.3, label="_word_frequencies")
        _beside(top, frequencies, f"word\nfrequencies:\n{frequencies:.2f}")
    _title(top, mlm_headline(_last_finite(held_mlm), _last_finite(other_words)))
    top.set_ylabel("masked-LM loss [nats]", fontsize=_SIZE)

    if pairs:
        bottom = panels[1, 0]
        _loss_panel(bottom, steps, _numbers(train.nsp), held_steps, held_nsp)
        bottom.axhline(LN2, color="black", linestyle="--", linewidth=1.3, label="_ln2")
        _beside(bottom, LN2, "coin toss:\nln 2 = 0.69")
        final = _last_finite(held_nsp)
        ending = " in training" if final is None else f" ends at {final:.2f} on held-out text"
        _title(bottom, f"Next-sentence loss{ending}")
        bottom.set_ylabel("NSP loss [nats]", fontsize=_SIZE)
    panels[-1, 0].set_xlabel("training step", fontsize=_SIZE)

    for axes in panels[:, 0]:
        _clean(axes)
        _thousands(axes)
    handles, labels = top.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=_SIZE - 1)
    return figure


# ---------------------------------------------------------------- pattern updates


def pattern_updates_figure(curves: UpdateCurves, density: float | None) -> Figure:
    """Explored degrees of freedom (above), blocks moved and removed-new ratio (below) over updates, all in [0, 1].

    `density` is the share of positions that the start pattern holds. Raises ValueError for a run without an update,
    which has nothing to show.
    """
    if not len(curves.updates):
        raise ValueError("no pattern updates: expected at least one, found none; skip this figure")
    updates = np.asarray(curves.updates, dtype=np.float64)
    figure = Figure(figsize=(9.0, 6.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    _explored_panel(top, updates, curves, density)
    _moved_panel(bottom, updates, curves)
    for axes in (top, bottom):
        _clean(axes)
        _thousands(axes)
        axes.set_ylim(0.0, 1.02)
        axes.set_xlim(min(0.5, updates.min() - 0.5), updates.max() + 0.5)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0, symbol=" %"))
    handles = [*top.get_legend_handles_labels()[0], *bottom.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=_SIZE - 1)
    return figure


def _explored_panel(axes: Axes, updates: np.ndarray, curves: UpdateCurves, density: float | None) -> None:
    explored = _numbers(curves.explored_dof)
    axes.plot(
        updates, explored, color=BLUE, linewidth=1.8, marker="o", markersize=4, label="explored DOF, mean of layers"
    )
    if len(curves.layer_low) == len(curves.layer_high) == len(updates):
        low, high = _numbers(curves.layer_low), _numbers(curves.layer_high)
        axes.fill_between(updates, low, high, color=BLUE, alpha=0.2, linewidth=0, label="least to most explored layer")
    if density is not None:
        axes.axhline(density, color="black", linestyle="--", linewidth=1.3, label="_start")
        _beside(axes, density, f"start\npattern:\n{_percent(density)}")
    final = _last_finite(explored)
    count = f"{len(updates)} update{'' if len(updates) == 1 else 's'}"
    reached = "Positions" if final is None else f"{_percent(final)} of a layer's positions"
    _title(axes, f"{reached} tried after {count}")
    axes.set_ylabel("explored DOF", fontsize=_SIZE)


def _moved_panel(axes: Axes, updates: np.ndarray, curves: UpdateCurves) -> None:
    removed = _numbers(curves.removed_new)
    axes.plot(
        updates,
        removed,
        color=VERMILION,
        linewidth=1.8,
        marker="o",
        markersize=4,
        label="removed-new ratio: of the blocks one update adds,\nthe share that the next one removes",
    )
    axes.plot(
        updates,
        _numbers(curves.moved),
        color=GREY,
        linewidth=1.6,
        linestyle="--",
        marker="." if len(updates) < 20 else None,
        label="blocks moved / all blocks",
    )
    survived = removed[np.isfinite(removed)]
    if len(survived):
        _title(axes, f"On average {_percent(survived.mean())} of new blocks were removed by the next update")
    else:
        _title(axes, "Share of blocks that each update moved")
    axes.set_ylabel("share of blocks", fontsize=_SIZE)
    axes.set_xlabel("pattern update", fontsize=_SIZE)


# ---------------------------------------------------------------- one layer's pattern


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def pattern_image(occupied: np.ndarray, stayed: np.ndarray, other: str) -> np.ndarray:
    """Colours, float [block rows, block columns, 3]: blocks in `stayed` blue, other occupied ones `other`."""
    image = np.empty((*occupied.shape, 3))
    image[:] = _rgb(EMPTY)
    image[occupied] = _rgb(other)
    image[occupied & stayed] = _rgb(BLUE)
    return image


def _pattern_panel(axes: Axes, image: np.ndarray, change: PatternChange, aspect: float) -> None:
    rows, cols = change.grid
    fine = max(rows, cols) > 400  # smaller than a pixel: let the renderer average
    axes.imshow(image, aspect=aspect, extent=(0, cols, rows, 0), interpolation="antialiased" if fine else "nearest")
    if max(rows, cols) <= 80:  # thin gaps, so that neighbouring blocks can be counted
        axes.set_xticks(np.arange(cols + 1), minor=True)
        axes.set_yticks(np.arange(rows + 1), minor=True)
        axes.grid(which="minor", color="white", linewidth=0.7)
        axes.tick_params(which="minor", length=0)
    segments = max(1, len(change.segment_names))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.yaxis.set_major_locator(FixedLocator([*range(0, rows + 1, max(1, rows // (4 * segments)))]))
    axes.tick_params(labelsize=_SIZE - 1.5)
    axes.set_xlabel("input block column", fontsize=_SIZE)
    for index in range(1, segments):
        axes.axhline(index * rows / segments, color="black", linewidth=1.6)


def _name_segments(axes: Axes, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        axes.annotate(
            name,
            (0, 1 - (index + 0.5) / len(names)),
            xycoords="axes fraction",
            xytext=(-36, 0),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="center",
            fontsize=_SIZE,
            fontweight="bold",
        )


def pattern_start_end_figure(change: PatternChange) -> Figure:
    """The block pattern of one weight at the start and at the end, side by side on the same axes.

    Blue blocks are in place at both; grey ones (left) were given up, orange ones (right) are where they went.
    Static runs give two equal panels, and the title says so.
    """
    before, after = change.occupied("start"), change.occupied("end")
    stayed = before & after
    total, gone, new = int(after.sum()), int((before & ~after).sum()), int((after & ~before).sum())
    rows, cols = change.grid
    tall = min(max(rows / cols, 0.5), 1.7)  # a 3:1 weight drawn with square blocks would not fit a page
    header, footer, width = 1.0, 0.6, 3.5
    height = width * tall + header + footer + 0.7
    figure = Figure(figsize=(2 * width + 1.6, height))
    figure.set_layout_engine("constrained", rect=(0, footer / height, 1, 1 - (header - 0.25 + footer) / height))
    left, right = figure.subplots(1, 2)
    _pattern_panel(left, pattern_image(before, stayed, OLD), change, tall * cols / rows)
    _pattern_panel(right, pattern_image(after, stayed, ORANGE), change, tall * cols / rows)
    segmented = len(change.segment_names) > 1
    left.set_ylabel("output block row", fontsize=_SIZE, labelpad=26 if segmented else 4)
    if segmented:
        _name_segments(left, change.segment_names)
    left.set_title("at the start", fontsize=_SIZE + 0.5)
    right.set_title(f"at the end (step {change.end_step:,})", fontsize=_SIZE + 0.5)

    says = (
        f"{new:,} of {total:,} blocks ended in a new place" if new else f"All {total:,} blocks ended where they began"
    )
    figure.text(0.5, 1 - 0.12 / height, says, ha="center", va="top", fontsize=_TITLE + 1, fontweight="bold")
    holds = f"{total:,} blocks of {change.block_size} x {change.block_size} on {rows} x {cols} places"
    detail = f"{change.layer}: {holds} ({_percent(total / (rows * cols), 1)})"
    figure.text(0.5, 1 - 0.42 / height, detail, ha="center", va="top", fontsize=_SIZE - 1, color=GREY)
    handles = [
        Patch(facecolor=BLUE, label=f"in place at the start and at the end ({int(stayed.sum()):,})"),
        Patch(facecolor=EMPTY, edgecolor=OLD, label="no block: zero, and not stored"),
        Patch(facecolor=OLD, label=f"old: only at the start ({gone:,})"),
        Patch(facecolor=ORANGE, label=f"new: only at the end ({new:,})"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=_SIZE - 1)
    return figure
