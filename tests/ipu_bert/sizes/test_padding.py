"""The planner's figures: exact where there are any, else interpolated, and how far off that is."""

from __future__ import annotations

import math
import random
import re
import statistics

import pytest

from ipu_bert.config import load_config
from ipu_bert.sizes.padding import Figure, LayerPadding, figure_of, figures, interpolated, layer_padding
from ipu_bert.sizes.weights import encoder_weights

POD = "bert_base_dynsparse_pod4"


def padding(name: str, *overrides: str) -> list[LayerPadding]:
    """Of query-key-value, attention output, feed-forward in and out of the first layer."""
    config = load_config(name, overrides)
    return [layer_padding(weight, config) for weight in encoder_weights(config.model, config.sparsity)[:4]]


@pytest.mark.parametrize(
    ("name", "overrides", "factors", "kib"),
    [
        (POD, [], [2.09, 5.57, 1.46, 1.53], [258.8, 180.0, 262.5, 275.0]),
        ("bert_base_dynsparse_pod64", [], [2.09, 5.57, 1.46, 1.53], [202.5, 180.0, 189.1, 220.0]),
        (
            "bert_base_dynsparse_pod4",
            ["sparsity.block_size=1"],
            [1.12, 1.15, 1.15, 1.15],
            [4015.4, 1694.0, 5060.1, 5255.5],
        ),
        (
            "bert_base_dynsparse_pod4",
            ["precision.compute=float32"],
            [1.04, 1.53, 1.17, 1.17],
            [416.3, 275.0, 315.0, 416.3],
        ),
        ("quickstart_simulated", [], [9.85, 39.38, 13.80, 13.80], [102.0, 136.0, 187.0, 187.0]),
    ],
)
def test_the_planners_figures(name: str, overrides: list[str], factors: list[float], kib: list[float]) -> None:
    found = padding(name, *overrides)
    assert [round(layer.factor, 2) for layer in found] == factors
    assert [round(layer.meta_info / 1024, 1) for layer in found] == kib
    assert all(layer.source == "" for layer in found)


@pytest.mark.parametrize(
    ("override", "source"),
    [
        ("model.hidden_size=640", r"interpolated; nearest: \d+x\d+, \d+ blocks of 16x16, [\d,]+ rows, half$"),
        ("ipu.sparse_oversize=0.2", "figures are for other options$"),
        ("ipu.sparse_available_memory=0.5", "figures are for other options$"),
        ("ipu.half_partials=false", "figures are for other options$"),
        ("data.max_predictions=10", "$"),
    ],
)
def test_what_is_not_exact_says_so(override: str, source: str) -> None:
    for layer in padding(POD, override):
        assert re.match(source, layer.source), layer.source


def test_an_interpolated_figure_lies_between_those_it_is_made_of() -> None:
    known = figures()["half", 16]
    low, high = (next(p for p in known if (*p[2:5], p.rows) == (768, 768, 230, rows)) for rows in (256, 512))
    between = low._replace(rows=384)
    found = interpolated(between, {low: Figure(2.0 * 230, 100.0, 1.0), high: Figure(8.0 * 230, 400.0, 1.0)})
    weight = math.log(512 / 384) ** -2 / (math.log(384 / 256) ** -2 + math.log(512 / 384) ** -2)
    assert found == pytest.approx((230 * 2.0 * 4**weight, 100.0 * 4**weight, 1.0))
    assert figure_of(between)[1] == high, "the nearest, in the logarithm"


def test_held_out_figures_are_met_better_than_by_the_nearest(seed: int) -> None:
    """Figures are held out one at a time, or all of a shape; docs/ipu.md has the errors over all of them."""
    chosen = random.Random(seed)
    for held_out in ("figure", "shape"):
        errors: dict[str, list[float]] = {"interpolated": [], "nearest": []}
        for known in figures().values():
            for product in chosen.sample(sorted(known), 25):
                rest = {
                    other: figure
                    for other, figure in known.items()
                    if (other != product if held_out == "figure" else other[2:4] != product[2:4])
                }
                nearest = rest[min(rest, key=product.distance)]
                guesses = {"interpolated": interpolated(product, rest), "nearest": nearest}
                for name, guess in guesses.items():
                    errors[name].append(abs(math.log(guess.meta_info / known[product].meta_info)))
        typical = {name: math.exp(statistics.mean(values)) for name, values in errors.items()}
        print(f"metaInfo, {held_out} held out: " + ", ".join(f"{k} off by {v:.3f}" for k, v in typical.items()))
        assert typical["interpolated"] < typical["nearest"]
