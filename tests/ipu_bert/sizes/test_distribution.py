"""Sparsity per weight: by name, uniform and Erdos-Renyi kernel."""

from __future__ import annotations

import random

import pytest
from small_models import make_shape, make_weights

from ipu_bert.sizes.distribution import match_weights, sparsity_by_weight
from ipu_bert.sizes.weights import EncoderWeight

WEIGHTS = make_weights(make_shape(layers=2, hidden_size=64, intermediate_size=256), 0.0)


def dense(name: str, shape: tuple[int, int]) -> EncoderWeight:
    return EncoderWeight(name, 0, shape, segments=1, sparsity=0.0, block_size=0, blocks=0)


def test_uniform_gives_every_named_weight_the_same() -> None:
    assert sparsity_by_weight(WEIGHTS, 0.9, "uniform", ["*"]) == {weight.name: 0.9 for weight in WEIGHTS}
    found = sparsity_by_weight(WEIGHTS, 0.5, "uniform", ["*.qkv", "bert.encoder.layer.1.output.dense"])
    assert sorted(found) == [
        "bert.encoder.layer.0.attention.self.qkv",
        "bert.encoder.layer.1.attention.self.qkv",
        "bert.encoder.layer.1.output.dense",
    ]


def test_matching_keeps_the_models_order_and_names_each_weight_once() -> None:
    assert match_weights(WEIGHTS, ["*.output.dense", "*.layer.0.*"]) == [
        weight for weight in WEIGHTS if weight.name.endswith("output.dense") or ".layer.0." in weight.name
    ]


def test_erdos_renyi_kernel_by_hand() -> None:
    """Ratios (in + out) / (in out): 64 x 64 -> 1/32, 256 x 64 -> 5/256; the qkv segments count as 64 x 64."""
    found = sparsity_by_weight(WEIGHTS[:4], 0.9, "erdos_renyi_kernel", ["*"])
    # Non-zeros at scale 1: 4 x 64^2 / 32 = 512 and 2 x 64 x 256 x 5 / 256 = 640; a tenth of 12 x 64^2 is 4915.2.
    scale = 4915.2 / (512 + 640)
    assert list(found.values()) == pytest.approx(
        [1 - scale / 32, 1 - scale / 32, 1 - scale * 5 / 256, 1 - scale * 5 / 256]
    )


def test_erdos_renyi_kernel_caps_at_dense_and_solves_again() -> None:
    weights = [dense("small", (4, 4)), dense("large", (64, 64))]
    # Ratios 1/2 and 1/32. Half of 4112 is 2056; scale 2056 / (8 + 128) = 15.1 gives small a density above 1.
    found = sparsity_by_weight(weights, 0.5, "erdos_renyi_kernel", ["*"])
    assert found == {"small": 0.0, "large": pytest.approx(1 - (2056 - 16) / 4096)}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.9, 0.99])
def test_erdos_renyi_kernel_keeps_as_many_non_zeros(sparsity: float, seed: int) -> None:
    source = random.Random(seed)
    weights = [dense(str(k), (4 * source.randint(1, 80), 4 * source.randint(1, 80))) for k in range(12)]
    found = sparsity_by_weight(weights, sparsity, "erdos_renyi_kernel", ["*"])
    assert all(0.0 <= s < 1.0 for s in found.values())
    kept = sum((1 - found[w.name]) * w.size for w in weights)
    assert kept == pytest.approx((1 - sparsity) * sum(w.size for w in weights))
    # Free weights share one scale; capped ones would have had more than 1 at that scale.
    ratio = {w.name: sum(w.shape) / w.size for w in weights}
    scales = [(1 - s) / ratio[name] for name, s in found.items() if s > 0]
    assert scales == pytest.approx([scales[0]] * len(scales)) if scales else sparsity == 0.0
    assert all(scales[0] * ratio[name] > 1 - 1e-9 for name, s in found.items() if s == 0 and scales)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"'\*\.query' matches no encoder weight"):
        sparsity_by_weight(WEIGHTS, 0.9, "uniform", ["*", "*.query"])
    with pytest.raises(ValueError, match="empty list"):
        sparsity_by_weight(WEIGHTS, 0.9, "uniform", [])
    with pytest.raises(ValueError, match="'ramanujan'"):
        sparsity_by_weight(WEIGHTS, 0.9, "ramanujan", ["*"])
    for sparsity in (-0.1, 1.0):
        with pytest.raises(ValueError, match=str(sparsity)):
            sparsity_by_weight(WEIGHTS, sparsity, "uniform", ["*"])
