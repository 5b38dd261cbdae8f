"""PatternUpdater: Algorithm 1's update, prune the smallest blocks and re-allocate them, slot by slot and in place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Sequence

import torch
from torch import Tensor

from sparse_ops.dynsparse.explored import LayerHistory
from sparse_ops.dynsparse.grow import FreePositions, GrowContext, GrowRule
from sparse_ops.dynsparse.schedules import Schedule
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.norms import BlockNorm, GradientBlocks
from sparse_ops.pattern import BlockPattern, named_generator

Moves = Dict[str, Dict[str, Tensor]]  # per layer the `slots` that move and the `keys` of their new positions, int64 [n]


@dataclass(frozen=True)
class UpdatePlan:
    """When patterns change, and by which rules (Algorithm 1)."""

    updates: int  # n: the run is cut into n parts and patterns change between them, n - 1 times
    total_steps: int  # T of the full run
    pruning_ratio: float  # pr, the first ratio
    schedule: Schedule  # how it decays
    start: float  # share of the run before which patterns do not change
    stop: float  # share of the run at which the ratio has decayed and updates end
    norm: BlockNorm  # of Eq. 1: the smallest blocks are pruned
    growth: GrowRule
    allow_removed: bool  # whether a block may return to a position that the same update pruned
    seed: int


@dataclass(frozen=True)
class LayerUpdate:
    """What one update did to one weight."""

    moved: int  # blocks
    returned: int | None  # of them, to places that the update itself emptied; None where these are not free
    blocks: int
    explored_dof: float
    removed_new: float | None  # of the blocks the previous update added, the share this one removed
    mean_age: float  # steps


@dataclass(frozen=True)
class UpdateReport:
    """What one update did; averages over layers as in the paper."""

    step: int
    update: int  # counted from 1
    ratio: float  # pr(t)
    layers: dict[str, LayerUpdate]

    def as_record(self) -> dict[str, Any]:
        """Plain values for the metrics file."""
        layers = list(self.layers.values())
        moved, blocks = sum(x.moved for x in layers), sum(x.blocks for x in layers)
        removed_new = [x.removed_new for x in layers if x.removed_new is not None]
        returned = [x.returned for x in layers if x.returned is not None]
        return {
            "update": self.update,
            "ratio": self.ratio,
            "moved": moved,
            "returned": sum(returned) if returned else None,
            "blocks": blocks,
            "churn": moved / blocks,
            "explored_dof": sum(x.explored_dof for x in layers) / len(layers),
            "removed_new": sum(removed_new) / len(removed_new) if removed_new else None,
            "mean_age": sum(x.mean_age for x in layers) / len(layers),
            "layers": {name: {**vars(x), "churn": x.moved / x.blocks} for name, x in self.layers.items()},
        }


class PatternUpdater:
    """Decides when patterns change and changes them; the same on every rank for the same (seed, step, layer name)."""

    def __init__(self, plan: UpdatePlan) -> None:
        """Raises ValueError for a plan that cannot be kept."""
        _check(plan)
        self.plan = plan
        self.ratios = {  # step after which an update happens -> pr(t)
            step: plan.pruning_ratio * plan.schedule(k / plan.updates) for k, step in enumerate(_steps(plan), start=1)
        }
        self.done = 0
        self._previous_step = 0
        self._history: dict[str, LayerHistory] = {}
        self._segment_blocks: dict[str, int] = {}  # of each layer's fullest segment

    def is_due(self, step: int) -> bool:
        """Whether patterns change after this step (steps count from 1)."""
        return step in self.ratios

    def blocks_to_move(self, blocks: int, step: int) -> int:
        """How many of a segment's blocks the update after `step` prunes: pr(t) of them, to the nearest whole block."""
        return int(self.ratios[step] * blocks + 0.5)

    def track(self, layers: Mapping[str, BlockSparseLinear]) -> None:
        """Begin the record of explored positions with the patterns at the start of training."""
        patterns = {name: layer.pattern for name, layer in layers.items()}
        self._history = {name: LayerHistory(pattern) for name, pattern in patterns.items()}
        self._segment_blocks = {name: int(p.slot_segments().bincount().max()) for name, p in patterns.items()}

    def gradient_counts(self, step: int) -> dict[str, int] | None:
        """Per tracked layer how many free positions a segment may ask of the dense gradient at `step`.

        None where patterns do not change after `step`, or the growth rule does not go by the gradient.
        """
        if not (self.is_due(step) and self.plan.growth.needs_gradient):
            return None
        return {name: self.blocks_to_move(blocks, step) for name, blocks in self._segment_blocks.items()}

    @torch.no_grad()
    def update(
        self,
        layers: Mapping[str, BlockSparseLinear],
        moments: Mapping[str, Sequence[Tensor]],
        step: int,
        gradients: Mapping[str, GradientBlocks] | None = None,
    ) -> UpdateReport:
        """Prune and re-allocate in every layer; new blocks and their moments start at zero.

        moments: per layer the optimizer's tensors [nnz, b, b] that belong to `values`. gradients: per layer what the
        growth rule needs of the dense gradient. Raises ValueError when a weight is not finite; then nothing changed.
        """
        return self.apply(layers, moments, step, self.decide(layers, step, gradients))

    @torch.no_grad()
    def decide(
        self, layers: Mapping[str, BlockSparseLinear], step: int, gradients: Mapping[str, GradientBlocks] | None
    ) -> Moves:
        """What `update` moves; nothing changes. Arguments and errors as there.

        Where several processes train one model, one of them decides for all: which norms are smallest rests on how the
        last bit of each was rounded.
        """
        update = f"pattern update after step {step}"
        if not self.is_due(step):
            raise ValueError(f"{update}: expected a step of the plan, {sorted(self.ratios)}, found another one")
        for name, layer in layers.items():
            if not bool(torch.isfinite(layer.values).all()):
                raise ValueError(f"{update}: {name}.values: expected finite, found NaN or inf")
            gradient = (gradients or {}).get(name)
            if gradient is None and self.plan.growth.needs_gradient:
                raise ValueError(f"{update}: {name}: expected the dense gradient's largest blocks, found none")
            if gradient is not None and not all(bool(x.isfinite().all()) for x in gradient[2:]):
                raise ValueError(f"{update}: {name}: expected a finite dense gradient, found NaN or inf")
        moves = {}
        for name, layer in layers.items():
            slots, keys = self._choose(name, layer, step, (gradients or {}).get(name))
            moves[name] = {"slots": slots, "keys": keys}
        return moves

    @torch.no_grad()
    def apply(
        self,
        layers: Mapping[str, BlockSparseLinear],
        moments: Mapping[str, Sequence[Tensor]],
        step: int,
        moves: Moves,
    ) -> UpdateReport:
        """Carry out what was decided for the update after `step`.

        Raises ValueError, and changes nothing, for a layer that is not tracked or whose moments or moves are not there.
        """
        for name, layer in layers.items():
            for what, known in (("track", self._history), ("moments", moments), ("moves", moves)):
                if name not in known:
                    raise ValueError(
                        f"pattern update after step {step}: {name}: expected it in {what}, found it left out"
                    )
            if any(moment.shape != layer.values.shape for moment in moments[name]):
                raise ValueError(f"pattern update after step {step}: {name}: expected moments of its values' shape")
        reports = {}
        for name, layer in layers.items():
            slots, keys = moves[name]["slots"], moves[name]["keys"]
            emptied = layer.pattern.keys()[slots] if self.plan.allow_removed else None
            n_cols = layer.pattern.grid[1]
            layer.reallocate(slots, keys // n_cols, keys % n_cols)
            for moment in moments[name]:
                moment[slots] = 0.0
            history = self._history[name]
            removed_new = history.record(slots, keys, step, self._previous_step)
            reports[name] = LayerUpdate(
                moved=slots.numel(),
                returned=None if emptied is None else int(torch.isin(keys, emptied).sum()),
                blocks=layer.values.shape[0],
                explored_dof=history.explored_dof,
                removed_new=removed_new,
                mean_age=history.mean_age(step),
            )
        self.done += 1
        self._previous_step = step
        return UpdateReport(step, self.done, self.ratios[step], reports)

    def _choose(
        self, name: str, layer: BlockSparseLinear, step: int, gradient: GradientBlocks | None
    ) -> tuple[Tensor, Tensor]:
        """The slots to prune and the positions they move to; int64 [n] each."""
        pattern, norms = layer.pattern, self.plan.norm(layer.values).cpu()
        keys, of_segment = pattern.keys(), pattern.slot_segments()
        positions = pattern.grid[0] * pattern.grid[1] // pattern.segments
        generator = named_generator(self.plan.seed, step, name)
        all_slots: list[Tensor] = []
        all_keys: list[Tensor] = []
        for segment in range(pattern.segments):
            offset = segment * positions
            slots = (of_segment == segment).nonzero().flatten()
            slots = slots[keys[slots].argsort()]  # equal norms are pruned in row-major order, whatever the slots' order
            count = self.blocks_to_move(slots.numel(), step)
            if not self.plan.allow_removed:
                count = min(count, positions - slots.numel())
            order = norms[slots].argsort(stable=True)
            pruned, kept = slots[order[:count]], slots[order[count:]]
            taken = keys[kept if self.plan.allow_removed else slots].sort().values - offset
            free = FreePositions(taken, positions)
            context = _context(generator, gradient, pattern, pruned, offset, positions)
            all_slots.append(pruned)
            all_keys.append(self.plan.growth.grow(free, count, context) + offset)
        return torch.cat(all_slots), torch.cat(all_keys)

    def state_dict(self) -> dict[str, Tensor]:
        """The record so far, as flat tensors."""
        state = {f"{name}.{key}": x for name, h in self._history.items() for key, x in h.state_dict().items()}
        return {**state, "done": torch.tensor(self.done), "previous_step": torch.tensor(self._previous_step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue a record; `track` must have been called with layers of the same sizes.

        Raises ValueError that names the tensor, and changes nothing, for a record that these layers cannot have.
        """
        found = state.keys()
        for name in sorted(found ^ self.state_dict().keys()):
            wanted, got = ("no such tensor", "one") if name in found else ("such a tensor", "none")
            raise ValueError(f"pattern history: {name}: expected {wanted}, found {got}")
        for name, most in (("done", len(self.ratios)), ("previous_step", max(self.ratios, default=0))):
            value = state[name]
            if value.shape != () or value.dtype != torch.int64 or not 0 <= int(value) <= most:
                what = (
                    int(value)
                    if value.dtype == torch.int64 and not value.shape
                    else f"{value.dtype} {list(value.shape)}"
                )
                raise ValueError(f"pattern history: {name}: expected a whole number of 0 to {most}, found {what}")
        records = {name: {key: state[f"{name}.{key}"] for key in h.state_dict()} for name, h in self._history.items()}
        for name, record in records.items():
            try:
                self._history[name].check(record, last=int(state["previous_step"]))
            except ValueError as error:
                raise ValueError(f"pattern history: {name}.{error}") from None
        for name, record in records.items():
            self._history[name].load_state_dict(record)
        self.done, self._previous_step = int(state["done"]), int(state["previous_step"])


def steps_between(start: float, stop: float, total_steps: int) -> int:
    """Whole steps between two shares of a run: so many updates fit there."""
    return int(round((stop - start) * total_steps, 6))  # 0.1 of 60 steps is 6, and 5.999999999999999 in floats


def _check(plan: UpdatePlan) -> None:
    if not 0.0 <= plan.start < plan.stop <= 1.0:
        raise ValueError(f"start, stop: expected 0 <= start < stop <= 1, found {plan.start} and {plan.stop}")
    if not 0.0 <= plan.pruning_ratio <= 1.0:
        raise ValueError(f"pruning_ratio: expected a share of 0 to 1, found {plan.pruning_ratio}")
    most = max(1, steps_between(plan.start, plan.stop, plan.total_steps))
    if not 1 <= plan.updates <= most:
        raise ValueError(f"updates: expected 1 to {most}, one per step at most, found {plan.updates}")


def _steps(plan: UpdatePlan) -> list[int]:
    """The steps after which a plan's updates happen, each another one, ascending."""
    first, span = plan.start * plan.total_steps, (plan.stop - plan.start) * plan.total_steps
    at = [first + k * span / plan.updates for k in range(1, plan.updates)]
    steps = [round(place) for place in at]
    # Of two halves a step apart both can be rounded to the even step between them. Where none are, all stays so: runs
    # that go on have made their first updates by it.
    if len(set(steps)) < len(steps):
        steps = [math.floor(round(place, 6) + 0.5) for place in at]
    return steps


def _context(
    generator: torch.Generator,
    gradient: GradientBlocks | None,
    pattern: BlockPattern,
    pruned: Tensor,
    offset: int,
    positions: int,
) -> GrowContext:
    """What the rule may use: with a gradient, the best free positions of the segment and the ones just pruned."""
    if gradient is None:
        return GrowContext(generator, candidates=None, gradient_norms=None)
    n_cols = pattern.grid[1]
    candidates = torch.cat([gradient.rows * n_cols + gradient.cols, pattern.keys()[pruned]]) - offset
    norms = torch.cat([gradient.norms, gradient.active[pruned]])
    inside = (candidates >= 0) & (candidates < positions)
    return GrowContext(generator, candidates[inside], norms[inside])
