"""The benchmark's arithmetic on tiny problems; nothing here depends on how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_ops import bench, bench_measure, native
from sparse_ops.bench_peers import IMPLEMENTATIONS, PRODUCTS, Problem, prepare

needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")


@needs_native
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("block", [1, 4, 16])
def test_records_hold_what_the_issue_asks(block: int, seed: int) -> None:
    cell = (32, 48, 20, block, 0.5)
    records = bench.measure(cell, tuple(IMPLEMENTATIONS), rounds=3, patience=0.1, seed=seed)
    keys = {"product", "implementation", "out", "in", "tokens", "block", "density", "dtype", "milliseconds", "gflops"}
    assert all(keys | {"epsilon", "samples", "samples_taken"} <= set(r) for r in records)
    for name in ("dense", "ours", "dense bf16", "ours bf16", "masked dense"):
        assert [r["product"] for r in records if r["implementation"] == name] == list(PRODUCTS)
    by_name = {(r["implementation"], r["product"]): r for r in records}
    ours, dense = by_name["ours", "forward"], by_name["dense", "forward"]
    assert dense["epsilon"] == 1.0
    density = int(0.5 * 32 * 48 / block**2 + 0.5) * block**2 / (32 * 48)
    assert ours["epsilon"] == pytest.approx(ours["milliseconds"] / dense["milliseconds"] / density)
    assert ours["gflops"] == pytest.approx(2 * 32 * 48 * 20 * density / ours["milliseconds"] / 1e6)
    assert "32x48" in bench.table(records)
    json.dumps(records)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_wrong_result_is_found(product: str, seed: int) -> None:
    problem = Problem(32, 48, 20, 4, 0.5, seed)
    run = prepare("dense", problem, product)
    assert run is not None
    result = run()
    assert problem.error(product, result, dense=True) < 1e-5
    assert problem.error(product, result * 1.01, dense=True) > 1e-3
    with pytest.raises(ArithmeticError, match=f"dense {product}: error"):
        bench._check("dense", problem, product, result * 1.01)


def test_preempted_samples_are_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, switches, calls = [0.0], [0], [0]

    def function() -> None:
        calls[0] += 1
        slow = calls[0] in (3, 5)  # the first call warms up
        clock[0] += 9.0 if slow else 1.0
        switches[0] += slow

    monkeypatch.setattr(bench_measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench_measure, "_switches", lambda: switches[0])
    timing = bench_measure.alternate({"f": function}, rounds=6, patience=100.0)["f"]
    assert timing == bench_measure.Timing(1.0, 1.0, 1.0, 4, 6)


def test_slow_functions_sit_out_and_all_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def make(name: str, seconds: float) -> Any:
        def function() -> None:
            clock[0] += seconds
            order.append(name)

        return function

    monkeypatch.setattr(bench_measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench_measure, "_switches", lambda: 0)
    timings = bench_measure.alternate({"a": make("a", 0.1), "b": make("b", 2.0)}, rounds=5, patience=1.0)
    assert "".join(order) == "ab" + "ab" * 3 + "a" * 2
    assert timings["a"].taken == 5
    assert timings["b"].taken == 3


def test_budget_verdicts() -> None:
    record = {"implementation": "ours", "product": "forward", "density": 0.1}
    records = [{**record, "block": 1, "epsilon": 1.5}, {**record, "block": 1, "epsilon": 1.9}]
    records.append({**record, "block": 16, "epsilon": 1.3})
    verdicts = bench.budgets(records).splitlines()
    assert verdicts[0] == "1x1 forward: epsilon at most 1.90, within the paper's 2.0"
    assert verdicts[1] == "16x16 forward: epsilon at most 1.30, over the paper's 1.2"


@needs_native
@pytest.mark.filterwarnings("ignore:Sparse")
def test_the_command_writes_records_and_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench, "cells", lambda quick: [(32, 48, 20, b, 0.1) for b in (1, 16)])
    threads = torch.get_num_threads()
    assert bench.main(["--quick", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]) == 0
    assert torch.get_num_threads() == threads
    records = json.loads((tmp_path / "r.json").read_text())
    assert {r["block"] for r in records} == {1, 16}
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "r.json.part").exists()


def test_the_grid_is_the_issues() -> None:
    grid = bench.cells(quick=False)
    assert len(grid) == 6 * 2 * 4 * 4
    assert (3072, 768, 4096, 8, 0.05) in grid
    assert bench.cells(quick=True) == [(768, 768, 1024, b, 0.1) for b in (1, 4, 8, 16)]
    assert bench.implementations_for((768, 768, 4096, 4, 0.1), False, False) == tuple(IMPLEMENTATIONS)
    assert bench.implementations_for((768, 768, 4096, 4, 0.05), False, False) == ("dense", "ours")
