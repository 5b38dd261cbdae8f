"""Where a step's seconds go, by part, and how many FLOP/s each part reaches; what the machine reaches by itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping

import torch
from torch.autograd.profiler_util import FunctionEvent

from ipu_bert.sizes.flops import SequenceFlops
from sparse_ops.dense import product

SPARSE, DENSE, ATTENTION, NORM, REST = "sparse products", "dense products", "attention", "ends of layers", "rest"
_OPERATORS = ("aten::", "sparse_ops::")
_OURS = {"block_linear": SPARSE, "attention": ATTENTION, "add_norm": NORM}  # how their names begin
# A dense product may be a convolution (sparse_ops/dense.py).
_DENSE = ("aten::mm", "aten::addmm", "aten::conv2d", "aten::mkldnn_convolution", "aten::convolution_backward")
# torch's attention is one operator without dropout, and these with it; ours is two, forward and backward.
_ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data", "aten::bernoulli_")


def part_of(event: FunctionEvent) -> str:
    """Which part of a step an event of torch's profiler belongs to.

    What an operator calls is in the operator's part: torch runs a forward pass that has a gradient in an event of
    another name, inside the operator's.
    """
    part, inside = _part(event.name), event.cpu_parent
    while part == REST and inside is not None:
        if inside.name.startswith(_OPERATORS):  # and not what the autograd engine calls for it, as GELU's slope
            part = _part(inside.name)
        inside = inside.cpu_parent
    return part


def _part(name: str) -> str:
    for operator, part in _OURS.items():  # and nodes of the autograd engine, which torch has named after one
        if name.startswith(f"sparse_ops::{operator}") or f"_sparse_ops_{operator}" in name:
            return part
    if name in _ATTENTION or "scaled_dot_product" in name:
        return ATTENTION
    return DENSE if name in _DENSE else REST


def seconds_by_part(step: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one step in each part, by torch's profiler, whose own work is counted in the parts."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    found = dict.fromkeys((SPARSE, DENSE, ATTENTION, NORM, REST), 0.0)
    for event in profile.events() or ():
        found[part_of(event)] += event.self_cpu_time_total * 1e-6
    return found


def flops_by_part(flops: SequenceFlops) -> dict[str, float]:
    """What a sequence costs in the parts that are products; heads are dense products."""
    return {SPARSE: flops.sparse, DENSE: flops.dense + flops.heads, ATTENTION: flops.attention}


def render(seconds: Mapping[str, float], flops: Mapping[str, float]) -> str:
    """`part seconds (GFLOP/s)` for each part that takes time."""
    texts = []
    for part, taken in seconds.items():
        rate = f" ({flops[part] / taken * 1e-9:.0f} GFLOP/s)" if flops.get(part) and taken else ""
        texts += [f"{part} {taken:.2f} s{rate}"] if taken >= 0.005 else []
    return ", ".join(texts)


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches now. product [FLOP/s]: float32, large and square. copy [bytes/s]: read and written."""

    product: float
    copy: float

    def render(self) -> str:
        """For a reader."""
        return f"dense float32 product {self.product * 1e-9:.0f} GFLOP/s, copy {self.copy * 1e-9:.1f} GB/s"


def ceilings(side: int = 2048, megabytes: int = 256, repeats: int = 5) -> Ceilings:
    """Measured with as many threads as torch uses; the best of a few."""
    x, y = torch.ones(side, side), torch.ones(megabytes << 18)
    into = torch.empty_like(y)
    square = _least(lambda: product(x, x), repeats)
    copy = _least(lambda: into.copy_(y), repeats)
    return Ceilings(2.0 * side**3 / square, 2.0 * 4 * y.numel() / copy)


def _least(run: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
