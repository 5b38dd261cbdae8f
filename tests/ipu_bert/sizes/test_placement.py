"""The placement's figures by hand, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipu_bert import assemble
from ipu_bert.config import CONFIG_DIR, ConfigError, load_config
from ipu_bert.sizes.footprint import parameter_counts
from ipu_bert.sizes.placement import HEADROOM, IPU_BYTES, Placement, place, render
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.sizes.stages import minimum_accumulation, pipeline_stages
from ipu_bert.sizes.weights import encoder_weights
from ipu_bert.stopwatch import Stopwatch

VOCABULARY = 30522


def base(*overrides: str) -> Placement:
    """BERT-Base at 0.9 in 16 x 16 blocks, 4 replicas of 32 micro-batches of 4 sequences."""
    return place(load_config("bert_base_dynsparse_pod16", ["ipu.vocabulary_parts=1", *overrides]), VOCABULARY)


def test_memory_of_an_ipu_is_what_graphcore_says() -> None:
    assert IPU_BYTES == 1472 * 638_976
    assert round(IPU_BYTES / 2**20) == 897


def test_every_parameter_is_on_one_stage() -> None:
    placement = base()
    config = load_config("bert_base_dynsparse_pod16")
    weights = encoder_weights(config.model, config.sparsity)
    counts = parameter_counts(bert_shape(config.model, VOCABULARY), weights)
    assert sum(stage.weights for stage in placement.stages) == 2 * counts.total
    assert [stage.layers for stage in placement.stages] == [(), (0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), ()]
    assert [stage.ipu for stage in placement.stages] == [0, 1, 2, 3, 0]


def test_flops_by_hand() -> None:
    placement = base("sparsity.method=dense")
    # 12 layers of 6 S 12 H^2 + 12 S^2 H, and the heads on 20 positions
    encoder = 12 * (6 * 128 * 12 * 768**2 + 12 * 128**2 * 768)
    heads = 6 * (20 * (768**2 + 768 * 30522) + 768**2 + 2 * 768)
    assert sum(stage.flops for stage in placement.stages) == pytest.approx(encoder + heads)
    assert placement.stages[1].flops == pytest.approx(encoder / 3)


def test_bubble_and_balance() -> None:
    placement = base()
    assert placement.bubble == pytest.approx(8 / 40), "5 stages fill and empty in 8 of 32 + 8 cycles"
    work = [placement.stages[0].flops + placement.stages[4].flops, *(placement.stages[i].flops for i in (1, 2, 3))]
    assert placement.balance == pytest.approx(sum(work) / 4 / max(work))


def test_stash_grows_towards_the_start_of_the_pipeline() -> None:
    first, second = base().stages[1:3]
    layer_inputs = 4 * 4 * 128 * 768 * 2  # layers x micro-batch x tokens x hidden, in half
    assert first.activations - second.activations == 2 * layer_inputs, "7 micro-batches in flight against 5"


def test_moments_move_off_chip_and_shard() -> None:
    assert all(stage.moments == 0 for stage in base().stages)
    on_chip, sharded = (
        base("ipu.optimizer_off_chip=false"),
        base("ipu.optimizer_off_chip=false", "ipu.optimizer_sharded=true"),
    )
    for a, b in zip(on_chip.stages, sharded.stages):
        assert a.moments == 4 * a.weights, "two float32 beside one half"
        assert b.moments == pytest.approx(a.moments / 4, abs=1)


def test_padding_is_counted_for_values_accumulators_and_moments() -> None:
    extra = sum(x.non_zeros * (x.factor - 1) for x in base().padding if ".layer.0." in x.name)
    assert base().stages[1].padding == pytest.approx(4 * extra * 4, rel=1e-3), "2 bytes each, 4 layers"
    assert base("ipu.optimizer_off_chip=false").stages[1].padding == pytest.approx(4 * extra * 12, rel=1e-3)


def test_meta_info_is_on_the_ipu_of_its_layer_once() -> None:
    one_layer = sum(x.meta_info for x in base().padding if ".layer.0." in x.name)
    assert [stage.meta_info for stage in base().stages] == [0, *[4 * one_layer] * 3, 0]


def test_cycles_are_the_planners_for_sparse_products_and_the_peak_for_the_rest() -> None:
    placement = base()
    # qkv, attention output, feed-forward in and out at 512 rows: padding.csv; attention and heads: 128 FLOPs a tile
    sparse = 62307 + 41930 + 73571 + 70275
    attention = 4 * 12 * 128**2 * 768 / (1472 * 128)
    assert placement.stages[1].cycles == pytest.approx(4 * (sparse + attention))
    assert placement.stages[4].cycles == pytest.approx(4 * placement.stages[4].flops / (1472 * 128))
    single = base("precision.compute=float32", "sparsity.method=dense")
    assert single.stages[1].cycles == pytest.approx(4 * single.stages[1].flops / (1472 * 32))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.micro_batch_size=4", "ipu.replicas=16"],
            r"ipu\.gradient_accumulation: expected at least 9, .* found 8",
        ),
        (["ipu.vocabulary_parts=4"], r"ipu\.vocabulary_parts: expected a divisor of .* 30522, found 4"),
        (
            [
                "train.micro_batch_size=128",
                "ipu.gradient_accumulation=9",
                "ipu.recompute=false",
                "train.batch_size=4608",
            ],
            r"IPU 1: expected at most 897\.0, found an estimate of [\d,.]+, most of it activations .*micro_batch_size",
        ),
    ],
)
def test_refusals(overrides: list[str], message: str) -> None:
    problems = base(*overrides).problems
    assert any(re.match(message, problem) for problem in problems), problems


def test_what_cannot_be_placed_is_refused_by_the_dry_run_and_by_the_engine(tmp_path: Path) -> None:
    config = load_config("quickstart_simulated", ["ipu.vocabulary_parts=3", f"data.dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"ipu\.vocabulary_parts"):
        assemble.plan(config)
    with pytest.raises(ConfigError, match=r"ipu\.vocabulary_parts"):
        assemble.make_engine(config, 2048, Stopwatch())


def test_what_works_is_not_refused_and_is_shown() -> None:
    placement = base()
    assert placement.problems == ()
    text = render(placement)
    for part in (
        "encoder3",
        "8-11",
        "bubble 20%",
        "attention.self.qkv: nz x2.09, metaInfo 214 KiB a layer (exactly as popsparse plans)",
        "IPU 0 6%, IPU 1 100%",
        "estimates",
    ):
        assert part in text


@pytest.mark.parametrize("layers", [(2,), (2, 2), (0, 3, 1), (1, 0, 3)])
def test_engine_and_placement_cut_the_model_alike(layers: tuple[int, ...]) -> None:
    stages = pipeline_stages(layers)
    assert minimum_accumulation(layers) == 2 * len(stages) - 1
    assert [i for stage in stages for i in stage.layers] == list(range(sum(layers)))
    assert stages[0].embeddings
    assert stages[-1].heads
    assert stages[0].ipu == stages[-1].ipu == 0


PODS = sorted(path.stem for path in CONFIG_DIR.glob("*_pod*.yaml"))


def test_there_is_a_config_for_every_model_method_and_pod() -> None:
    expected = {f"bert_{s}_{m}_pod{p}" for s in ("medium", "base") for m in ("dense", "dynsparse") for p in (4, 16, 64)}
    assert set(PODS) == expected


@pytest.mark.parametrize("name", PODS)
def test_pod_configs_fill_their_pod_with_the_same_batch_and_precision(name: str) -> None:
    config = load_config(name)
    assert config.train.batch_size == 512
    assert config.precision.compute == "float16"
    assert config.ipu.replicas * len(config.ipu.layers_per_ipu) == int(name.rpartition("pod")[2])
    placement = assemble.make_placement(config, config.data.vocab_size)
    assert placement.problems == ()
    assert max(placement.ipu_memory(ipu) for ipu in range(placement.ipus)) < HEADROOM * IPU_BYTES
    assert not any(layer.source for layer in placement.padding), "the planner was asked about their very products"
    assert placement.balance > 0.75, f"{placement.balance:.2f}: {config.ipu.layers_per_ipu}"


def test_config_errors_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            "bert_base_dynsparse_pod16",
            ["ipu.layers_per_ipu=[0, 4, 4]", "optim.group_lasso=1", "sparsity.growth=gradient", "ipu.replicas=3"],
        )
    text = "\n".join(caught.value.errors)
    for key in ("ipu.layers_per_ipu", "optim.group_lasso", "sparsity.growth", "train.batch_size"):
        assert key in text
    with pytest.raises(ConfigError, match=r"precision\.compute: expected float32 or bfloat16 on the torch engine"):
        load_config("quickstart", ["precision.compute=float16"])
