"""Measure the block-sparse products: ours, torch's dense ones, and every other implementation that is installed.

    python -m sparse_ops.bench [--quick | --full | --very-sparse] [--json PATH] [--plot PATH] [--threads N]

Every implementation is first checked against float64, then all of a cell (one weight, token count, block size,
density and product) run in turn in one process, so that a busy machine slows all of them alike. epsilon is the time
per executed FLOP over that of the fastest dense product that torch has (sparse_ops/dense.py), in bfloat16 its usual
one, measured in the same turns; the paper's budget is epsilon < 2 for 1x1 and < 1.2 for 16x16. Freed memory is kept
by the process for all implementations alike (as a training run should), so that page faults of large results are not
timed. Peers that are not installed are left out; one that makes both gradients in one call is given half of its time
for each.

default: ours and dense everywhere in float32; bfloat16 and the other implementations at density 0.1 and 4096 tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import replace
from typing import Any, Callable, Dict, Iterable, Tuple

import torch

from sparse_ops import native
from sparse_ops.arguments import MOST_THREADS, Parser, file_to_write, take_threads, whole_number
from sparse_ops.bench.peers import (
    ALL_OF_GRADIENT,
    BOTH_GRADIENTS,
    IMPLEMENTATIONS,
    OURS_AND_DENSE,
    PRODUCTS,
    Problem,
    Run,
    prepare,
)
from sparse_ops.bench.sampling import Sample, Summary, alternate, sample, summarize
from sparse_ops.ends import with_one_line
from sparse_ops.files import write
from sparse_ops.host_memory import keep_freed_memory
from sparse_ops.pattern import BLOCK_SIZES
from sparse_ops.pictures import write_picture
from sparse_ops.saying import answer, say

SHAPES = ((512, 512), (2048, 512), (512, 2048), (768, 768), (3072, 768), (768, 3072))
TOKENS = (1024, 4096)
DENSITIES = (0.25, 0.1, 0.05, 0.01)
VERY_SPARSE = [(4096, 1024, 2048, 1, f) for f in (0.1, 0.01, 0.003, 0.001)]  # cells
SLOW_CALL = 1.0  # seconds
MASKED = ("ours", "dense", "masked dense")  # what --very-sparse compares
BUDGET = {1: 2.0, 16: 1.2}  # the paper's largest epsilon for a win in time
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # on the largest error over the typical entry

Cell = Tuple[int, int, int, int, float]  # out, in, tokens, block, density
Record = Dict[str, Any]


def cells(quick: bool) -> list[Cell]:
    """The grid of weights, token counts, densities and block sizes, or a corner of it."""
    shapes, tokens, densities = (((768, 768),), (1024,), (0.1,)) if quick else (SHAPES, TOKENS, DENSITIES)
    return [(o, i, t, b, f) for o, i in shapes for t in tokens for f in densities for b in BLOCK_SIZES]


def implementations_for(cell: Cell, quick: bool, full: bool) -> tuple[str, ...]:
    """Which implementations a cell measures: the slow ones only where the comparison is made, unless `full`."""
    if full or quick or (cell[2], cell[4]) == (4096, 0.1):
        return tuple(IMPLEMENTATIONS)
    return ("dense", "ours")


def measure(
    cell: Cell, names: Iterable[str], repeats: int, patience: float, seed: int, slow: dict[Any, Sample] | None = None
) -> list[Record]:
    """Check and time the named implementations on one cell; repeats and patience (seconds) as in `alternate`.

    What takes longer than SLOW_CALL, but for those of MASKED, is run once, to be checked, and that counts as its only
    sample. Dense products do not depend on the block size: such a sample of theirs is kept in `slow`, for the other
    cells of the same sizes.
    Raises ArithmeticError when a result is wrong. A peer that cannot run is left out; where ours or torch's dense
    product cannot, its error is raised.
    """
    out, inp, tokens, block, density = cell
    slow = {} if slow is None else slow
    problem = Problem(out, inp, tokens, block, density, seed)
    records: list[Record] = []
    for product in PRODUCTS:
        runs = {name: prepare(name, problem, product) for name in names}
        functions = {name: run for name, run in runs.items() if run is not None}
        once: dict[str, list[Sample]] = {}
        for name in list(functions):
            key = (name, product, out, inp, tokens)
            if key in slow:
                once[name] = [slow[key]]
                del functions[name]
                continue
            try:
                first = sample(functions[name])
                _check(name, problem, product, first.result)
                if first.seconds > SLOW_CALL and name not in MASKED:
                    once[name] = [replace(first, result=None)]
                    del functions[name]
                    if name.startswith("dense"):
                        slow[key] = once[name][0]
            except (RuntimeError, NotImplementedError) as error:  # some peers say so only when called
                if name in OURS_AND_DENSE:
                    raise
                say(f"{name} {product}: not available ({str(error).splitlines()[0][:80]})", sys.stderr)
                del functions[name]
        samples = alternate({name: _dropping(run) for name, run in functions.items()}, repeats, patience)
        timings = {name: summarize(taken) for name, taken in {**samples, **once}.items()}
        records += [_record(cell, problem, product, name, timings) for name in timings]
    return records


def _dropping(run: Run) -> Callable[[], None]:
    """The run without its result, so that samples hold no tensors and the next result takes the same memory."""

    def dropped() -> None:
        run()

    return dropped


def _dtype(name: str) -> str:
    return "bfloat16" if name.endswith("bf16") else "float32"


def _check(name: str, problem: Problem, product: str, result: Any) -> None:
    error = problem.error(product, result, name in ALL_OF_GRADIENT)
    if not error <= TOLERANCE[_dtype(name)]:
        raise ArithmeticError(f"{name} {product}: error {error:.2g} of a typical entry against float64")


def _record(cell: Cell, problem: Problem, product: str, name: str, timings: dict[str, Summary]) -> Record:
    out, inp, tokens, block, density = cell
    timing, dtype = timings[name], _dtype(name)
    is_dense = name.startswith("dense")
    share = 1.0 if is_dense else problem.pattern.density
    dense = timings["dense" if dtype == "float32" else "dense bf16"]
    part = 0.5 if name in BOTH_GRADIENTS and product != "forward" else 1.0
    seconds = timing.seconds * part
    return {
        "product": product, "implementation": name, "out": out, "in": inp, "tokens": tokens, "block": block,
        "density": density, "dtype": dtype, "milliseconds": seconds * 1e3,
        "best_milliseconds": timing.best * part * 1e3, "spread": timing.high / timing.low,
        "gflops": 2.0 * out * inp * tokens * share / seconds / 1e9,
        "epsilon": seconds / dense.seconds / share, "samples": timing.kept,
        "samples_taken": timing.kept + timing.discarded, "disturbed": timing.disturbed,
    }  # fmt: skip


def table(records: list[Record]) -> str:
    """One line per cell and implementation: epsilon, GFLOP/s and spread of the three products.

    spread: third quartile over first. kept: samples that count, of all taken; * where too few were undisturbed, so that
    the least disturbed ones had to do.
    """
    lines = [f"{'weight':>10} {'T':>5} {'f':>5} {'block':>5} {'implementation':>15} {'epsilon fwd / dX / dW':>24} "
             f"{'GFLOP/s':>15} {'ms':>22} {'spread':>7} kept"]  # fmt: skip
    groups: dict[tuple[Any, ...], dict[str, Record]] = {}
    for r in records:
        key = (r["out"], r["in"], r["tokens"], r["density"], r["block"], r["implementation"])
        groups.setdefault(key, {})[r["product"]] = r
    for (out, inp, tokens, density, block, name), row in groups.items():
        found = [row.get(p) for p in PRODUCTS]
        epsilon = " / ".join(f"{r['epsilon']:.2f}" if r else "-" for r in found)
        gflops = "/".join(f"{r['gflops']:.0f}" if r else "-" for r in found)
        ms = " / ".join(f"{r['milliseconds']:.2f}" if r else "-" for r in found)
        there = [r for r in found if r]
        spread, kept = max(r["spread"] for r in there), sum(r["samples"] for r in there)
        taken, mark = sum(r["samples_taken"] for r in there), "*" if any(r["disturbed"] for r in there) else ""
        cell = f"{f'{out}x{inp}':>10} {tokens:>5} {density:>5} {block:>5}"
        lines.append(f"{cell} {name:>15} {epsilon:>24} {gflops:>15} {ms:>22} {spread:>7.2f} {kept}/{taken}{mark}")
    return "\n".join(lines)


def budgets(records: list[Record]) -> str:
    """Our epsilon at density 0.1 against the paper's budget, the worst over shapes and token counts."""
    lines = []
    for block, budget in BUDGET.items():
        for product in PRODUCTS:
            worst = max(
                (r["epsilon"] for r in records
                 if (r["implementation"], r["block"], r["product"], r["density"]) == ("ours", block, product, 0.1)),
                default=None,
            )  # fmt: skip
            if worst is not None:
                verdict = "within" if worst < budget else "over"
                lines.append(f"{block}x{block} {product}: epsilon at most {worst:.2f}, {verdict} the paper's {budget}")
    return "\n".join(lines)


def times_faster(records: list[Record]) -> str:
    """How many times faster ours is than dense and than dense times a mask, all three products together, by density."""
    milliseconds: dict[float, dict[str, float]] = {}
    for r in records:
        row = milliseconds.setdefault(r["density"], dict.fromkeys(MASKED, 0.0))
        row[r["implementation"]] += r["milliseconds"]
    return "\n".join(
        f"sparsity {1 - density:g}: "
        + ", ".join(f"{name} {ms:.1f} ms ({ms / row['ours']:.1f} times ours)" for name, ms in row.items())
        for density, row in milliseconds.items()
    )


def figure_of(records: list[Record]) -> Any:
    """Every implementation's epsilon by block size, one panel per product, at density 0.1."""
    from sparse_ops.agg import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    names = dict.fromkeys(r["implementation"] for r in records if not r["implementation"].startswith("dense"))
    shown: dict[str, Any] = {}
    for axes, product in zip(figure.subplots(1, len(PRODUCTS), sharey=True), PRODUCTS):
        for number, name in enumerate(names):
            points: dict[int, list[float]] = {}
            for r in records:
                if (r["implementation"], r["product"], r["density"]) == (name, product, 0.1):
                    points.setdefault(r["block"], []).append(r["epsilon"])
            if points:
                medians = [sorted(e)[len(e) // 2] for e in points.values()]
                shown[name] = axes.plot(list(points), medians, marker="o", color=f"C{number}")[0]
        shown["paper's budget"] = axes.plot(list(BUDGET), list(BUDGET.values()), "k*")[0]
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.set(title=product, xlabel="block size", xscale="log", yscale="log")
        axes.set_xticks(BLOCK_SIZES, [str(b) for b in BLOCK_SIZES])
    figure.axes[0].set_ylabel("epsilon at density 0.1 (median over weights)")
    figure.legend(list(shown.values()), list(shown), loc="outside right upper", fontsize="small")
    return figure


def main(arguments: list[str]) -> int:
    """Run the benchmark; exit status 1 when the native kernels cannot be had, 2 as with_one_line."""
    parser = Parser(prog="python -m sparse_ops.bench", description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one 768x768 weight, 1024 tokens, density 0.1")
    size.add_argument("--full", action="store_true", help="every implementation in every cell (an hour or more)")
    size.add_argument("--very-sparse", action="store_true", help="1x1 at sparsity 0.9 to 0.999, dense and masks")
    parser.add_argument("--json", type=file_to_write(), metavar="PATH", help="write the records there")
    parser.add_argument("--plot", type=file_to_write(".png"), metavar="PATH", help="write a plot of epsilon there")
    parser.add_argument("--threads", type=whole_number(0, MOST_THREADS), default=0, help="default: torch's")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0)
    options = parser.parse_args(arguments)
    if not native.needed():
        return 1
    take_threads(options.threads)
    return with_one_line(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    native.level()  # a variable that names none is refused before anything is measured
    keep_freed_memory()
    warnings.filterwarnings("ignore", message="Sparse (CSR|BSR)")
    records: list[Record] = []
    slow: dict[Any, Sample] = {}
    for cell in VERY_SPARSE if options.very_sparse else cells(options.quick):
        names = MASKED if options.very_sparse else implementations_for(cell, options.quick, options.full)
        found = measure(cell, names, repeats=9, patience=0.4, seed=options.seed, slow=slow)
        shown = table(found) if not records else table(found).split("\n", 1)[1]
        records += found
        if options.json:  # after every cell, so that an interrupted run keeps what it has
            write(options.json, json.dumps(records, indent=1))
        answer(shown)
    answer(f"{torch.get_num_threads()} threads, {native.level()}, torch {torch.__version__}")
    answer(times_faster(records) if options.very_sparse else budgets(records))
    if options.plot:
        write_picture(options.plot, "png", lambda: figure_of(records), dpi=100)
