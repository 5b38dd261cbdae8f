"""The step benchmark: its peer takes the same step, its numbers follow from its times, and memory is counted."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import pytest
import torch
from small_models import make_weights
from torch.utils._python_dispatch import TorchDispatchMode

from ipu_bert.bench import models as bench_models
from ipu_bert.bench import step as bench_step
from ipu_bert.bench.memory import peak_bytes, state_bytes
from ipu_bert.bench.models import (
    DENSE_FLOAT32,
    IMPLEMENTATIONS,
    TransformersTrainer,
    make_engine,
    model_shape,
    random_batch,
)
from ipu_bert.hub.weights import to_hugging_face
from ipu_bert.sizes.shape import FAMILY
from ipu_bert.stopwatch import Stopwatch
from sparse_ops.dynsparse.updater import PatternUpdater
from sparse_ops.linear import BlockSparseLinear

SHAPE = replace(model_shape("tiny", False), vocab_size=131, max_positions=32)
SPARSE = "sparse 16x16 float32"


def test_transformers_takes_the_same_step_as_our_dense_model(seed):
    """From equal weights, one step on one batch: equal loss, and Adam moves every weight to the same place."""
    batch = random_batch(SHAPE, batch=11, length=32, masked=5, seed=seed)
    ours = make_engine(IMPLEMENTATIONS[DENSE_FLOAT32], SHAPE, 0.9, Stopwatch())
    peer = TransformersTrainer(SHAPE, Stopwatch())
    peer.model.load_state_dict(to_hugging_face(ours.model))
    before = {name: p.clone() for name, p in to_hugging_face(ours.model).items()}
    result, loss = ours.train_step(batch), peer.train_step(batch)
    assert loss == pytest.approx(result.mlm_loss + result.nsp_loss, rel=1e-5)
    theirs = dict(peer.model.named_parameters())
    mine = to_hugging_face(ours.model)
    moved = 0
    for name, parameter in theirs.items():
        # Adam's first step is lr x the gradient's sign unless the gradient is about eps (1e-6), where rounding decides.
        off = (parameter - mine[name]).abs() > 1e-6
        assert off.float().mean() < 0.01, name
        moved += int((mine[name] - before[name]).abs().max() > 5e-5)
    assert moved > 0.9 * len(theirs)


def test_bfloat16_is_left_out_by_default_only_where_it_takes_minutes(capsys):
    assert bench_step.default_implementations(3.0) == bench_models.DEFAULT
    assert capsys.readouterr().err == ""
    rest = bench_step.default_implementations(50.0)
    assert [name for name in bench_models.DEFAULT if name not in rest] == [bench_models.DENSE_BFLOAT16]
    assert "dense bfloat16: left out, as a product takes 50 times float32's time here" in capsys.readouterr().err
    assert bench_models.bfloat16_slowdown() > 0.0


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench_step.main(["--sizes", "tiny", "--json", str(tmp_path / "missing" / "file")])
    assert "missing/file: expected a file in a folder that is there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch: expected a whole number of at least 1, found '0'"),
        (["--masked", "200"], "--masked: expected at most the 128 tokens, found 200"),
        (["--sparsity", "1.5"], "--sparsity: expected a number in [0, 1), found '1.5'"),
        (["--sparsity", "nan"], "--sparsity: expected a number in [0, 1), found 'nan'"),
        (["--threads", "-3"], "--threads: expected a whole number of at least 0, found '-3'"),
        (["--threads", "100000"], "--threads: expected a whole number of at most 1024, found 100000"),
        (["--repeats", "2.5"], "--repeats: expected a whole number of at least 1, found '2.5'"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench_step.main(["--sizes", "tiny", *arguments])
    assert f"error: argument {message}" in capsys.readouterr().err.splitlines()[-1]


def test_random_batches_are_valid_and_partly_padded(seed):
    batch = random_batch(SHAPE, batch=21, length=32, masked=5, seed=seed)
    lengths = batch.attention_mask.sum(1)
    assert lengths.tolist() == [16 if row % 10 == 0 else 32 for row in range(21)]
    assert bool((batch.masked_positions < lengths[:, None]).all())
    assert all(len(set(row)) == 5 for row in batch.masked_positions.tolist())
    assert bool((batch.input_ids[~batch.attention_mask] == 0).all())


def test_a_run_reports_what_its_times_imply(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_models, "VOCABULARY", 131)
    path = tmp_path / "records.json"
    names = [DENSE_FLOAT32, "transformers float32", SPARSE, "sparse 1x1 float32"]
    arguments = ["--sizes", "tiny", "--batch", "2", "--length", "32", "--masked", "5", "--quick", "--json", str(path)]
    assert bench_step.main([*arguments, "--implementations", *names]) == 0
    records = {record["implementation"]: record for record in json.loads(path.read_text())}
    assert list(records) == names
    dense, sparse = records[DENSE_FLOAT32], records[SPARSE]
    # By hand: H = 128, 2 layers, S = 32, 5 masked positions, 131 words; 3 passes, 2 FLOPs a multiply-add.
    heads = 6 * (128 * 130 + 5 * 128 * (128 + 131))
    attention = 12 * 32**2 * 128 * 2
    assert dense["flops_per_sequence"] == 6 * 32 * 12 * 128**2 * 2 + attention + heads
    # 64 blocks in a 128 x 128 weight, of which 6 are kept; 256 in a feed-forward weight, of which 26 are kept.
    kept = (4 * 6 + 2 * 26) * 256
    assert sparse["flops_per_sequence"] == pytest.approx(6 * 32 * kept * 2 + attention + heads)
    for record in records.values():
        assert record["sequences_per_second"] == pytest.approx(2 / record["seconds"])
        assert record["speedup_float32"] == pytest.approx(dense["seconds"] / record["seconds"])
        assert record["low"] <= record["seconds"] <= record["high"]
        assert 0.5 < sum(record["shares"].values()) <= 1.0
        assert record["samples_kept"] >= 2
    assert dense["epsilon"] is None
    assert sparse["epsilon"] == pytest.approx(sparse["break_even"] / sparse["speedup_float32"])
    assert sparse["epsilon_critical"] is None  # the paper has no loss of a sparse Tiny
    assert sparse["update_seconds"] > 0
    assert sparse["encoder_bytes_over_dense"] == pytest.approx(sparse["encoder_bytes"] / dense["encoder_bytes"])
    text = bench_step.table(list(records.values()))
    assert all(name in text for name in names)


def test_critical_epsilon_is_what_the_paper_states():
    """Section 4: epsilon below 2 at 1x1 and below 1.2 at 16x16 wins time; from its losses and its dense family."""
    assert bench_step.critical("base", 1, 128, 0.9) == pytest.approx(2.0, abs=0.1)
    assert bench_step.critical("base", 16, 128, 0.9) == pytest.approx(1.2, abs=0.05)
    assert bench_step.critical("base", 16, 128, 0.8) is None
    assert bench_step.critical("mini", 16, 128, 0.9) is None


@pytest.mark.parametrize("block", [1, 4, 16])
def test_state_of_the_encoder_is_a_tenth_of_dense(block):
    """Live weights, gradients and moments after a step, at 4 x 256; the issue's limit, 0.12, is for Base."""
    shape = replace(model_shape("mini", False), vocab_size=131, max_positions=32)
    batch = random_batch(shape, batch=2, length=32, masked=5, seed=0)
    dense = state_bytes(make_engine(IMPLEMENTATIONS[DENSE_FLOAT32], shape, 0.9, Stopwatch()), batch)
    choice = IMPLEMENTATIONS[f"sparse {block}x{block} float32"]
    sparse = state_bytes(make_engine(choice, shape, 0.9, Stopwatch()), batch)
    small = 4 * (9 * 256 + 4 * 256)  # biases and two LayerNorms a layer
    weights = 4 * 12 * 256**2
    assert dense.weights == dense.gradients == 4 * (weights + small)
    assert dense.moments == 2 * dense.weights
    assert dense.index == 0
    assert sparse.weights == pytest.approx(4 * (0.1 * weights + small), rel=0.02)  # whole blocks
    assert sparse.gradients == sparse.weights
    assert sparse.moments == 2 * sparse.weights
    assert sparse.trained <= 0.12 * dense.trained
    # Rows, cols and the slots in both orders, int32, and two pointer arrays.
    blocks = sparse.weights / 4 / block**2
    assert 0.8 * 16 * blocks < sparse.index < 16 * blocks + 4 * 4 * (24 * 256 / block + 8)


class LargestTensor(TorchDispatchMode):
    """Notes the most bytes of any tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("block", [1, 4, 8, 16])
def test_a_pattern_update_takes_nothing_of_the_dense_size(block):
    """No tensor, and not all of numpy's together, as large as the smallest dense weight at its 4 bytes an element.

    At 0.95 a weight's values are a twentieth of dense; positions as int64 are the largest thing there is at 1x1.
    """
    shape = replace(model_shape("mini", False), vocab_size=131, max_positions=32)
    engine = make_engine(IMPLEMENTATIONS[f"sparse {block}x{block} float32"], shape, 0.95, Stopwatch())
    updater = PatternUpdater(bench_step.UPDATE)
    with engine.host_state() as host:
        updater.track(host.layers)
        before = {name: layer.pattern.checksum() for name, layer in host.layers.items()}
        tracemalloc.start()
        with LargestTensor() as largest:
            updater.update(host.layers, host.moments, step=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert all(layer.pattern.checksum() != before[name] for name, layer in host.layers.items())
        for layer in host.layers.values():
            dense = 4 * layer.out_features * layer.in_features
            assert layer.values.numel() < 0.06 * dense / 4
    smallest = 4 * min(weight.size for weight in make_weights(FAMILY["mini"], 0.0))
    assert 0 < largest.bytes < smallest
    if block > 1:
        assert largest.bytes < smallest // 2
        assert peak < smallest


def test_peak_memory_is_measured_in_a_process_of_its_own():
    """At least the embeddings' weights, gradients and moments, and not ten times all there is."""
    found = peak_bytes(SPARSE, "tiny", 1, 32, 4, 0.9, False)
    embeddings = 4 * 4 * 128 * bench_models.VOCABULARY
    assert 0.2 * embeddings < found < 10 * embeddings


def test_layers_of_the_model_are_the_kernels_under_test():
    model = make_engine(IMPLEMENTATIONS[SPARSE], SHAPE, 0.9, Stopwatch()).model
    sparse = [module for module in model.modules() if isinstance(module, BlockSparseLinear)]
    assert len(sparse) == 4 * SHAPE.layers
    assert bench_models.kernel_name(IMPLEMENTATIONS[SPARSE]).split()[0] in ("native", "torch")
    assert bench_models.kernel_name(IMPLEMENTATIONS[DENSE_FLOAT32]) == "-"


def test_what_was_measured_is_shown_where_it_cannot_be_written(monkeypatch, tmp_path, capsys):
    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(bench_step, "_headline", lambda options: ("what was measured", {}))
    monkeypatch.setattr(bench_step.files, "write", full)
    assert bench_step.main(["--json", str(tmp_path / "r.json")]) == 2
    out, err = capsys.readouterr()
    assert out == "what was measured\n"
    assert err == f"error: {tmp_path / 'r.json'}: No space left on device\n"
