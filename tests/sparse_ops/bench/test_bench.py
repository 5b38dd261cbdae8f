"""The benchmark's arithmetic on tiny problems; nothing here depends on how fast this machine is."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from compiler import needs_kernels

from sparse_ops.arguments import file_to_write
from sparse_ops.bench import peers_xsmm
from sparse_ops.bench import products as bench
from sparse_ops.bench.peers import IMPLEMENTATIONS, PRODUCTS, Problem, prepare
from sparse_ops.bench.sampling import Sample, summarize


@needs_kernels
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("block", [1, 4, 16])
def test_records_hold_what_the_issue_asks(block: int, seed: int) -> None:
    cell = (32, 48, 20, block, 0.5)
    records = bench.measure(cell, tuple(IMPLEMENTATIONS), repeats=3, patience=0.1, seed=seed)
    keys = {"product", "implementation", "out", "in", "tokens", "block", "density", "dtype", "milliseconds", "gflops"}
    assert all(keys | {"epsilon", "samples", "samples_taken", "disturbed"} <= set(r) for r in records)
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


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--quick", option, str(tmp_path / "missing" / "file")])
    assert f"{option}: {tmp_path}/missing/file: expected a file in a folder that is there" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--quick", option, str(tmp_path / "pipe.png")])
    assert f"{option}: {tmp_path}/pipe.png: expected a file in a folder that is there" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--quick", option, ""])


def test_a_link_is_written_to_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link.json").symlink_to("a/b/there.json")
    assert file_to_write(".json")(str(tmp_path / "link.json")) == (tmp_path / "a" / "b" / "there.json").resolve()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "-2"], "argument --threads: expected a whole number of at least 0, found '-2'"),
        (["--plot", "epsilon.xyz"], "argument --plot: epsilon.xyz: expected a name that ends in .png"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--quick", *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]


@needs_kernels
def test_a_level_that_is_not_here_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARSE_OPS_LEVEL", "avx9")
    assert bench.main(["--quick"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: SPARSE_OPS_LEVEL: expected one of")


def test_a_broken_implementation_of_ours_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(problem: object, product: str) -> None:
        raise ImportError("broken")

    for name in ("ours", "scipy"):
        monkeypatch.setitem(IMPLEMENTATIONS, name, broken)
    problem = Problem(16, 16, 4, 4, 0.5, 0)
    assert prepare("scipy", problem, "forward") is None
    with pytest.raises(ImportError, match="broken"):
        prepare("ours", problem, "forward")


@needs_kernels
def test_what_takes_long_is_run_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SLOW_CALL", 0.0)
    calls: list[str] = []
    real = bench.prepare

    def counted(name: str, problem: Problem, product: str) -> object:
        run = real(name, problem, product)
        assert run is not None
        return lambda: (calls.append(f"{name} {product}"), run())[1]

    monkeypatch.setattr(bench, "prepare", counted)
    slow: dict[object, Sample] = {}
    names = ("dense", "ours", "dense bf16", "ours bf16", "masked dense")
    first = bench.measure((32, 48, 20, 4, 0.5), names, 3, 0.1, seed, slow)
    assert calls.count("dense bf16 forward") == 1
    assert all(calls.count(f"{name} forward") > 1 for name in bench.MASKED)
    assert {key[0] for key in slow} == {"dense bf16"}
    second = bench.measure((32, 48, 20, 8, 0.5), names, 3, 0.1, seed, slow)
    assert calls.count("dense bf16 forward") == 1
    taken = [[r["milliseconds"] for r in found if r["implementation"] == "dense bf16"] for found in (first, second)]
    assert taken[0] == taken[1]


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


PACKAGES = {  # the module that a peer imports, the blocks it takes, its products
    "scipy": ("scipy.sparse", (1, 4, 8, 16), PRODUCTS[:2]),
    "sparse_dot_mkl": ("sparse_dot_mkl", (1, 4, 8, 16), PRODUCTS[:2]),
    "sparseprop": ("sparseprop.modules", (1,), PRODUCTS),
    "sparselab": ("sparselab", (1,), PRODUCTS),
}


def check_peer(name: str, blocks: tuple[int, ...], products: tuple[str, ...], tokens: int, seed: int) -> None:
    """The peer has these products with these blocks and no others, and they are right; some rows have no block."""
    for block in (1, 4, 8, 16):
        problem = Problem(32, 48, tokens, block, 0.2, seed)
        for product in PRODUCTS:
            run = prepare(name, problem, product)
            assert (run is not None) == (block in blocks and product in products), (block, product)
            if run is not None:
                assert problem.error(product, run(), dense=False) < 1e-5, (block, product)


@pytest.mark.parametrize("tokens", [20, 64])
@pytest.mark.parametrize("name", PACKAGES)
def test_an_installed_package_is_right(name: str, tokens: int, seed: int) -> None:
    module, blocks, products = PACKAGES[name]
    if prepare(name, Problem(32, 48, tokens, 1, 0.2, seed), "forward") is None:
        with pytest.raises(ImportError):
            importlib.import_module(module)
        pytest.skip(f"{name} is not installed")
    check_peer(name, blocks, products, tokens, seed)


def test_sparselab_takes_no_transposed_weight_of_one_that_is_gone(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """It keeps them by id(), which two weights may have one after the other."""
    ops = pytest.importorskip("sparselab.ops")
    monkeypatch.setattr(ops, "id", lambda weight: 0, raising=False)
    for problem in (Problem(32, 48, 20, 1, 0.2, seed), Problem(32, 48, 20, 1, 0.2, seed + 1)):
        run = prepare("sparselab", problem, "grad_input")
        assert run is not None
        assert problem.error("grad_input", run(), dense=False) < 1e-5


@pytest.mark.parametrize("tokens", [20, 64])
def test_libxsmm_is_right_where_it_is_found(tokens: int, seed: int) -> None:
    if not peers_xsmm.available():
        pytest.skip("libxsmm 1.17 is not here")
    check_peer("libxsmm", (4, 8, 16), PRODUCTS, tokens, seed)


@pytest.mark.parametrize("name", [*PACKAGES, "libxsmm"])
def test_a_missing_peer_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    if name == "libxsmm":
        monkeypatch.setattr(peers_xsmm, "available", peers_xsmm.available.__wrapped__)
        monkeypatch.setattr(peers_xsmm, "_libxsmm", peers_xsmm._libxsmm.__wrapped__)
        monkeypatch.setenv("LIBXSMM", "no/such/library.so")
    else:
        monkeypatch.setitem(sys.modules, PACKAGES[name][0], None)
    for block in (1, 4):
        problem = Problem(32, 48, 20, block, 0.5, 0)
        assert [prepare(name, problem, product) for product in PRODUCTS] == [None] * 3
    assert capfd.readouterr() == ("", "")


def test_one_call_for_both_gradients_counts_half_for_each() -> None:
    cell = (32, 48, 20, 1, 0.5)
    problem = Problem(*cell, seed=0)
    timings = {"dense": summarize([Sample(1.0, 0.0)] * 3), "sparseprop": summarize([Sample(3.0, 0.0)] * 3)}
    epsilon = {p: bench._record(cell, problem, p, "sparseprop", timings)["epsilon"] for p in PRODUCTS}
    assert epsilon == {"forward": 6.0, "grad_input": 3.0, "grad_values": 3.0}
    record = bench._record(cell, problem, "grad_input", "sparseprop", timings)
    assert (record["milliseconds"], record["best_milliseconds"]) == (1500.0, 1500.0)
    assert record["gflops"] == pytest.approx(2 * 32 * 48 * 20 * 0.5 / 1.5 / 1e9)


def test_budget_verdicts() -> None:
    record = {"implementation": "ours", "product": "forward", "density": 0.1}
    records = [{**record, "block": 1, "epsilon": 1.5}, {**record, "block": 1, "epsilon": 1.9}]
    records.append({**record, "block": 16, "epsilon": 1.3})
    verdicts = bench.budgets(records).splitlines()
    assert verdicts[0] == "1x1 forward: epsilon at most 1.90, within the paper's 2.0"
    assert verdicts[1] == "16x16 forward: epsilon at most 1.30, over the paper's 1.2"


@needs_kernels
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
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.png"}


@needs_kernels
def test_very_sparse_weights_beside_dense_and_masks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench, "VERY_SPARSE", [(64, 64, 20, 1, 0.01)])
    assert bench.main(["--very-sparse"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"sparsity 0.99: ours [\d.]+ ms \(1.0 times ours\), dense .* times ours\), masked dense .* times ours\)", last
    )


def test_times_faster_adds_the_three_products() -> None:
    times = {"ours": 1.0, "dense": 5.0, "masked dense": 6.0}
    records = [{"density": 0.01, "implementation": i, "milliseconds": m} for i, m in times.items() for _ in range(3)]
    expected = "ours 3.0 ms (1.0 times ours), dense 15.0 ms (5.0 times ours), masked dense 18.0 ms (6.0 times ours)"
    assert bench.times_faster(records) == f"sparsity 0.99: {expected}"


@needs_kernels
def test_an_interrupted_run_keeps_the_cells_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "cells", lambda quick: [(32, 48, 20, b, 0.1) for b in (4, 16)])
    real = bench.measure

    def interrupted(cell: tuple, *arguments: object, **more: object) -> list:
        if cell[3] == 16:
            raise KeyboardInterrupt
        return real(cell, ("dense", "ours"), *arguments[1:], **more)

    monkeypatch.setattr(bench, "measure", interrupted)
    assert bench.main(["--quick", "--json", str(tmp_path / "r.json")]) == 130
    assert {r["block"] for r in json.loads((tmp_path / "r.json").read_text())} == {4}


def test_the_grid_is_the_issues() -> None:
    grid = bench.cells(quick=False)
    assert len(grid) == 6 * 2 * 4 * 4
    assert (3072, 768, 4096, 8, 0.05) in grid
    assert bench.cells(quick=True) == [(768, 768, 1024, b, 0.1) for b in (1, 4, 8, 16)]
    assert bench.implementations_for((768, 768, 4096, 4, 0.1), False, False) == tuple(IMPLEMENTATIONS)
    assert bench.implementations_for((768, 768, 4096, 4, 0.05), False, False) == ("dense", "ours")


@needs_kernels
def test_records_that_cannot_be_written_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench, "cells", lambda quick: [(32, 48, 20, 16, 0.1)])
    monkeypatch.setattr(bench, "measure", lambda *_, **__: [])

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(bench, "write", full)
    assert bench.main(["--quick", "--json", str(tmp_path / "r.json")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'r.json'}: No space left on device\n"
