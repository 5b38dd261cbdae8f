"""The pictures: what is drawn (through the figure objects) and that a real PNG comes out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from ipu_bert.record.curves import LossCurve, PatternChange, UpdateCurves
from ipu_bert.record.plots import (
    BLUE,
    EMPTY,
    OLD,
    ORANGE,
    loss_figure,
    pattern_image,
    pattern_start_end_figure,
    pattern_updates_figure,
    smooth,
)
from sparse_ops.pictures import write_picture


def saved(figure: Figure, path: Path) -> np.ndarray:
    write_picture(path, "png", lambda: figure, dpi=50)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    image = imread(path)
    assert image.shape[0] > 150
    assert image.shape[1] > 300
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20  # not one flat colour
    assert np.allclose(image[0, 0, :3], 1.0)
    return image


def line(axes: object, label: str) -> tuple[np.ndarray, np.ndarray]:
    found = [x for x in axes.lines if x.get_label().startswith(label)]  # type: ignore[attr-defined]
    assert len(found) == 1, [x.get_label() for x in axes.lines]  # type: ignore[attr-defined]
    return np.asarray(found[0].get_xdata()), np.asarray(found[0].get_ydata())


def words(axes: object) -> str:
    return " | ".join(text.get_text() for text in axes.texts)  # type: ignore[attr-defined]


def test_smooth_is_the_mean_of_what_is_there() -> None:
    values = np.array([1.0, math.nan, 3.0, 8.0, math.nan, math.nan, math.nan])
    expected = [1.0, 2.0, 5.5, 5.5, 8.0, math.nan, math.nan]
    np.testing.assert_allclose(smooth(values, 3), expected)
    np.testing.assert_allclose(smooth(np.array([2.0]), 5), [2.0])


def test_loss_figure_draws_the_numbers_it_was_given(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.arange(1, 201)
    mlm, nsp = rng.uniform(5, 9, 200), rng.uniform(0.5, 0.8, 200)
    heldout = LossCurve([0, 100, 200], [9.0, 6.6, 6.25], [0.7, None, 0.65], [9.0, None, 6.5])
    figure = loss_figure(LossCurve(steps, mlm, nsp), heldout, 6.45)
    top, bottom = figure.axes
    np.testing.assert_array_equal(line(top, "training, each logged step")[1], mlm)
    np.testing.assert_allclose(line(top, "training, mean over 9")[1][100], mlm[96:105].mean())
    np.testing.assert_array_equal(line(top, "held-out text"), [[0, 100, 200], [9.0, 6.6, 6.25]])
    np.testing.assert_array_equal(line(top, "with other words around")[1], [9.0, math.nan, 6.5])
    assert set(line(top, "_word_frequencies")[1]) == {6.45}
    assert "frequencies:\n6.45" in words(top)
    assert top.get_title(loc="left") == "Held-out masked-LM loss ends at 6.25, and at 6.50 with other words around"
    assert top.get_ylabel() == "masked-LM loss [nats]"
    np.testing.assert_array_equal(line(bottom, "training, each logged step")[1], nsp)
    assert set(line(bottom, "_ln2")[1]) == {math.log(2)}
    assert bottom.get_title(loc="left") == "Next-sentence loss ends at 0.65 on held-out text"
    assert bottom.get_xlabel() == "training step"
    image = saved(figure, tmp_path / "loss_curves.png")
    assert image.shape[:2] == (330, 450)


def test_without_other_words_none_are_drawn() -> None:
    for others in ((), (None,)):
        heldout = LossCurve([2], [7.0], [0.7], others)
        figure = loss_figure(LossCurve([1, 2], [9.0, 8.0], [0.7, 0.7]), heldout, 6.45)
        assert figure.axes[0].get_title(loc="left") == "Held-out masked-LM loss ends at 7.00 nats"
        assert "with other words around" not in {line.get_label() for line in figure.axes[0].lines}


@pytest.mark.parametrize("steps", [[], [1], [1, 2]])
def test_short_and_broken_runs_still_give_a_loss_figure(tmp_path: Path, steps: list[int]) -> None:
    train = LossCurve(steps, [None, 8.0][: len(steps)], [math.nan, 0.7][: len(steps)])
    figure = loss_figure(train, LossCurve([], [], []), None)
    assert "no held-out evaluation" in figure.axes[0].get_title(loc="left")
    saved(figure, tmp_path / "short.png")


def test_masked_lm_alone_has_one_panel(tmp_path: Path) -> None:
    for nsp, panels in ((0.7, 2), (None, 1), (math.nan, 1)):
        train = LossCurve([1, 2], [8.0, 7.0], [nsp, nsp])
        figure = loss_figure(train, LossCurve([2], [7.5], [nsp]), None)
        assert len(figure.axes) == panels
        assert figure.axes[-1].get_xlabel() == "training step"
        assert any("sentence" in axes.get_title(loc="left") for axes in figure.axes) == (panels == 2)
        saved(figure, tmp_path / "alone.png")


def test_pattern_updates_figure(tmp_path: Path) -> None:
    curves = UpdateCurves(
        updates=[1, 2, 3],
        moved=[0.5, 0.25, 0.0],
        explored_dof=[0.14, 0.17, 0.18],
        removed_new=[None, 0.6, 0.2],
        layer_low=[0.13, 0.16, 0.17],
        layer_high=[0.2, 0.2, 0.2],
    )
    figure = pattern_updates_figure(curves, 0.1)
    top, bottom = figure.axes
    assert top.get_title(loc="left") == "18 % of a layer's positions tried after 3 updates"
    np.testing.assert_array_equal(line(top, "explored DOF"), [[1, 2, 3], [0.14, 0.17, 0.18]])
    assert set(line(top, "_start")[1]) == {0.1}
    np.testing.assert_array_equal(line(bottom, "blocks moved / all blocks")[1], [0.5, 0.25, 0.0])
    np.testing.assert_array_equal(line(bottom, "removed-new ratio")[1], [math.nan, 0.6, 0.2])
    assert bottom.get_title(loc="left") == "On average 40 % of new blocks were removed by the next update"
    saved(figure, tmp_path / "pattern_updates.png")


def test_one_update_and_no_update(tmp_path: Path) -> None:
    figure = pattern_updates_figure(UpdateCurves([1], [0.5], [0.15], [None], (), ()), None)
    assert figure.axes[0].get_title(loc="left") == "15 % of a layer's positions tried after 1 update"
    saved(figure, tmp_path / "one.png")
    with pytest.raises(ValueError, match="expected at least one, found none"):
        pattern_updates_figure(UpdateCurves([], [], [], [], (), ()), None)


CHANGE = PatternChange(
    "layer.0.qkv", (6, 4), 16, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 3, 2],
    ("query", "key", "value"), 1200,
)  # fmt: skip


def test_pattern_image_tells_surviving_old_and_new_blocks_apart() -> None:
    start, end = CHANGE.occupied("start"), CHANGE.occupied("end")
    stayed = start & end
    before, after = pattern_image(start, stayed, OLD), pattern_image(end, stayed, ORANGE)
    # by hand: blocks 0, 1, 2 stay; 3, 4, 5 move
    for k in (0, 1, 2):
        assert tuple(before[k, k]) == tuple(after[k, k]) == pytest.approx(to_rgb(BLUE))
    assert tuple(before[3, 3]) == pytest.approx(to_rgb(OLD))
    assert tuple(after[3, 3]) == pytest.approx(to_rgb(EMPTY))
    assert tuple(after[3, 0]) == pytest.approx(to_rgb(ORANGE))
    assert (np.abs(after - to_rgb(ORANGE)).max(axis=2) < 1e-9).sum() == 3


def test_pattern_start_end_figure(tmp_path: Path) -> None:
    figure = pattern_start_end_figure(CHANGE)
    left, right = figure.axes
    said = " ".join(text.get_text() for text in figure.texts)
    assert "3 of 6 blocks ended in a new place" in said
    assert "layer.0.qkv: 6 blocks of 16 x 16 on 6 x 4 places (25.0 %)" in said
    assert words(left) == "query | key | value"
    assert [set(map(float, x.get_ydata())) for x in right.lines] == [{2.0}, {4.0}]  # between the segments
    assert left.get_xlim() == right.get_xlim() == (0, 4)
    assert left.get_ylim() == right.get_ylim() == (6, 0)
    assert right.get_title() == "at the end (step 1,200)"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "in place at the start and at the end (3)",
        "no block: zero, and not stored",
        "old: only at the start (3)",
        "new: only at the end (3)",
    ]
    saved(figure, tmp_path / "pattern_start_end.png")


def test_a_static_pattern_says_so(tmp_path: Path) -> None:
    rows, cols = np.arange(4), np.arange(4)
    figure = pattern_start_end_figure(PatternChange("w", (4, 16), 8, rows, cols, rows, cols, (), 10))
    assert "All 4 blocks ended where they began" in figure.texts[0].get_text()
    saved(figure, tmp_path / "static.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ((2, 2), 16, [0, 2], [0, 1], [0, 1], [0, 1], ()),
            "w at the start: a block lies outside the 2 x 2 block grid",
        ),
        (((2, 2), 16, [0, 1], [0, 1], [0, 1], [0], ()), r"w at the end: expected two \[nnz\] arrays"),
        (((4, 4), 16, [0], [0], [0], [0], ("q", "k", "v")), "w: 3 segments do not divide 4 block rows"),
    ],
)
def test_positions_that_do_not_fit_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatternChange("w", *arguments, 10)


def test_plots_leave_pyplot_alone() -> None:
    import subprocess
    import sys

    code = "import sys, ipu_bert.record.plots; print('matplotlib.pyplot' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize(("named", "then"), [("nonsense", "agg"), ("svg", "svg")])
def test_pictures_do_not_depend_on_a_backend_for_windows(
    named: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it changed for a program that goes on with pyplot, as long as matplotlib knows it."""
    import subprocess
    import sys

    monkeypatch.setenv("MPLBACKEND", named)
    code = "import os, ipu_bert.record.plots, matplotlib as m; print(os.environ['MPLBACKEND'], m.get_backend().lower())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [named, then]
