"""`ipu.layers_per_ipu: auto` against a search of everything, and a run of it against the same written out."""

from __future__ import annotations

import itertools
import json

import pytest

from ipu_bert import assemble
from ipu_bert.config import Config, ConfigError, as_dict, from_dict, load_config
from ipu_bert.sizes.dry_run import render
from ipu_bert.sizes.placement import HEADROOM, IPU_BYTES, place

AUTO = "ipu.layers_per_ipu=auto"
POD = "bert_medium_dynsparse_pod4"


def flat(config: Config) -> dict[str, object]:
    """The config by `section.key`."""
    return {f"{section}.{key}": value for section, keys in as_dict(config).items() for key, value in keys.items()}


def step_cycles(config: Config) -> float:
    """By the dry run's own figures."""
    placement = place(config, config.data.vocab_size)
    busiest = max(placement.ipu_cycles(ipu) for ipu in range(placement.ipus))
    return busiest * config.ipu.gradient_accumulation / (1 - placement.bubble)


def fits(config: Config) -> bool:
    placement = place(config, config.data.vocab_size)
    full = max(placement.ipu_memory(ipu) for ipu in range(placement.ipus)) / IPU_BYTES
    return not placement.problems and full <= HEADROOM


@pytest.mark.parametrize(("length", "ipus"), [(128, (1, 2, 4)), (512, (2,)), (128, (4,))])
def test_nothing_that_fits_takes_fewer_cycles(length: int, ipus: tuple[int, ...]) -> None:
    """Every cut of four layers into one, two or four IPUs, and every micro-batch that the planner was asked about."""
    given = ["model.layers=4", f"data.sequence_length={length}", "train.batch_size=64", "ipu.ipus=4"]
    best = load_config(POD, [*given, AUTO, *([f"ipu.replicas={4 // ipus[0]}"] if len(ipus) == 1 else [])])
    assert fits(best)
    assert f"{step_cycles(best) / 1e6:,.1f} million cycles a step" in best.chosen[1]
    others = 0
    for count, size in itertools.product(ipus, (1, 2, 4, 8, 16, 32)):
        for layers in itertools.product(range(5), repeat=count):
            if not 128 <= size * length <= 4096 or sum(layers) != 4 or 0 in layers[1:]:
                continue
            placed = [f"ipu.layers_per_ipu={list(layers)}", f"ipu.replicas={4 // count}"]
            try:
                other = load_config(POD, [*given, *placed, f"train.micro_batch_size={size}"])
            except ConfigError:  # the batch cannot be cut so
                continue
            others += 1
            assert not fits(other) or step_cycles(other) >= step_cycles(best) * (1 - 1e-9), other.ipu
    assert others >= 16


def test_what_the_user_wrote_stays() -> None:
    given = [AUTO, "ipu.ipus=16"]
    free = load_config(POD, given)
    for override in ("ipu.replicas=4", "train.micro_batch_size=2", "ipu.gradient_accumulation=32"):
        key, _, value = override.partition("=")
        assert flat(free)[key] != int(value)
        assert flat(load_config(POD, [*given, override]))[key] == int(value)
    # Shares of memory that a file has for other IPUs are made to fit.
    base = load_config("bert_base_dynsparse_pod4", [*given, "ipu.replicas=2"])
    assert base.ipu.available_memory == [0.2, *[0.15] * 7]


def test_a_model_that_does_not_fit_one_ipu_is_cut() -> None:
    alone = load_config("bert_base_dense_pod4", [AUTO, "ipu.ipus=4"])
    cut = load_config("bert_base_dense_pod4", [AUTO, "ipu.ipus=4", "ipu.optimizer_off_chip=false"])
    assert len(alone.ipu.layers_per_ipu) == 1
    assert len(cut.ipu.layers_per_ipu) > 1
    assert cut.train.micro_batch_size == 8, "dense: nothing says how fewer rows would slow it down"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([AUTO], r"ipu\.ipus: expected how many IPUs there are, since ipu\.layers_per_ipu is auto, found 0"),
        (["ipu.layers_per_ipu=most"], r"ipu\.layers_per_ipu: expected counts of layers or auto, found 'most'"),
        ([AUTO, "ipu.ipus=11"], r"ipu\.layers_per_ipu: expected a placement on 11 IPUs .* found none among 0"),
        ([AUTO, "ipu.ipus=4", "model.hidden_size=8192"], r"expected a placement on 4 IPUs .* at most 60%, found none"),
        # 8 micro-batches do not fill 5 stages.
        ([AUTO, "ipu.ipus=4", "ipu.replicas=1", "train.micro_batch_size=64"], r"on 4 IPUs .* found none among 0"),
        # Shares that the user wrote are for the IPUs of the choice, which is one: they were cut.
        (
            [AUTO, "ipu.ipus=4", f"ipu.available_memory={[0.2] * 5}"],
            r"available_memory: expected 1 share, found 5",
        ),
        ([AUTO, "ipu.ipus=4", "ipu.available_memory=[]"], r"ipu\.available_memory: expected 1 share, found 0"),
        (["ipu.ipus=3"], r"ipu\.ipus: expected at least the 4 IPUs of 2 replica\(s\) of 2, found 3"),
    ],
)
def test_refusals(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(POD, overrides)


def test_the_dry_run_explains_the_choice() -> None:
    config = load_config(POD, [AUTO, "ipu.ipus=4"])
    text = render(assemble.plan(config))
    for part in (
        "for 4 IPUs: ipu.replicas 4",
        "million cycles a step are estimated",
        "nothing was measured",
        "of at most",
    ):
        assert part in text
    assert "times the cycles: ipu.replicas 2 of ipu.layers_per_ipu" in text
    assert "chosen  " not in render(assemble.plan(load_config(POD)))


def test_a_run_is_that_of_the_written_placement() -> None:
    auto = load_config(POD, [AUTO, "ipu.ipus=16"])
    keys = ("ipu.layers_per_ipu", "ipu.replicas", "ipu.gradient_accumulation", "train.micro_batch_size")
    written = load_config(POD, ["ipu.ipus=16", *(f"{key}={json.dumps(flat(auto)[key])}" for key in keys)])
    assert as_dict(written) == as_dict(auto), "all that a run is made from"
    assert as_dict(from_dict(as_dict(auto))) == as_dict(auto), "what is recorded places the same again"
