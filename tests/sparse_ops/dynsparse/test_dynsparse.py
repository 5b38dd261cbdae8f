"""Algorithm 1: updates worked by hand, schedules, growth rules, the record of explored positions."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import make_plan

from sparse_ops import BlockPattern, BlockSparseLinear
from sparse_ops.dynsparse.explored import LayerHistory
from sparse_ops.dynsparse.grow import GROW_RULES, FreePositions, GrowContext, register
from sparse_ops.dynsparse.schedules import SCHEDULES, cosine, linear
from sparse_ops.dynsparse.updater import PatternUpdater
from sparse_ops.norms import GradientBlocks, l1, l2, linf


def updater(**changes) -> PatternUpdater:
    return PatternUpdater(make_plan(**changes))


def random_layer(seed: int, shape=(96, 64), block_size=8, sparsity=0.7, segments=1) -> BlockSparseLinear:
    pattern = BlockPattern.random(shape, block_size, sparsity, torch.Generator().manual_seed(seed), segments)
    layer = BlockSparseLinear.from_pattern(pattern)
    torch.nn.init.normal_(layer.values)
    return layer


def run_update(changer: PatternUpdater, layer: BlockSparseLinear, step: int, gradients=None, name="layer"):
    moments = [torch.ones_like(layer.values), torch.ones_like(layer.values)]
    if changer.done == 0:
        changer.track({name: layer})
    report = changer.update({name: layer}, {name: moments}, step, gradients)
    return report.layers[name], moments


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cosine", [1.0, 0.853553, 0.5, 0.0]), ("linear", [1.0, 0.75, 0.5, 0.0]), ("constant", [1.0] * 4)],
)
def test_schedules_by_hand(name, expected):
    assert [SCHEDULES[name](progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(expected, abs=1e-6)


def test_when_updates_happen_and_how_many_blocks_move():
    """n = 4 parts of 40 steps: updates after 10, 20 and 30, with pr(t) on the cosine; the end, at pr = 0, has none."""
    changer = updater(schedule=cosine)
    assert changer.ratios == pytest.approx({10: 0.5 * 0.853553, 20: 0.25, 30: 0.5 * 0.146447}, abs=1e-6)
    assert [step for step in range(1, 41) if changer.is_due(step)] == [10, 20, 30]
    assert changer.blocks_to_move(100, 10) == 43  # 42.68


def test_start_and_stop_bound_the_updates():
    changer = updater(schedule=linear, start=0.25, stop=0.75)
    assert changer.ratios == pytest.approx({15: 0.375, 20: 0.25, 25: 0.125})


def test_no_update_is_lost_where_there_is_one_a_step(seed):
    """By hand: 12.5 + k of steps 13.5, 14.5, ..., which rounding to even puts on 14 twice. Then at random."""
    changer = updater(updates=25, total_steps=50, start=0.25, stop=0.75)
    assert list(changer.ratios) == list(range(14, 38))
    random = torch.Generator().manual_seed(seed)
    for _ in range(2000):
        low, high, steps = torch.randint(1, 1001, (3,), generator=random).tolist()
        start, stop = sorted((low / 1000, high / 1000))
        most = int(round((stop - start) * steps, 6))
        if most >= 1:
            updates = most if steps % 2 else max(1, most // 2)
            ratios = updater(updates=updates, total_steps=steps, start=start, stop=stop).ratios
            assert len(ratios) == updates - 1, (start, stop, steps, updates)
            assert list(ratios) == sorted(ratios)
            assert all(start * steps - 1 <= step <= stop * steps + 1 for step in ratios)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"updates": 41}, "updates: expected 1 to 40, one per step at most, found 41"),
        ({"updates": 0}, "updates: expected 1 to 40"),
        ({"start": 0.9, "stop": 0.1}, "expected 0 <= start < stop <= 1, found 0.9 and 0.1"),
        ({"stop": 2.0}, "expected 0 <= start < stop <= 1"),
        ({"pruning_ratio": 1.5}, "pruning_ratio: expected a share of 0 to 1, found 1.5"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        updater(**changes)


@pytest.mark.parametrize("wrong", ["step", "track", "moments", "shape", "gradient", "nan"])
def test_an_update_that_cannot_be_made_changes_nothing(wrong, seed):
    layers = {"one": random_layer(seed), "two": random_layer(seed + 1)}
    rule = GROW_RULES["gradient" if wrong in ("gradient", "nan") else "random"]
    changer = updater(growth=rule)
    changer.track({"one": layers["one"]} if wrong == "track" else layers)
    moments = {name: [torch.ones_like(layer.values)] for name, layer in layers.items()}
    if wrong == "moments":
        del moments["two"]
    if wrong == "shape":
        moments["two"] = [torch.ones(3)]
    gradients = None
    if wrong == "nan":
        none = torch.zeros(0, dtype=torch.int64)
        gradients = {
            name: GradientBlocks(none, none, torch.zeros(0), torch.full((layer.values.shape[0],), math.nan))
            for name, layer in layers.items()
        }
    before = {name: layer.pattern.keys() for name, layer in layers.items()}
    with pytest.raises(ValueError, match="pattern update after step"):
        changer.update(layers, moments, 11 if wrong == "step" else 10, gradients)
    assert all(torch.equal(before[name], layer.pattern.keys()) for name, layer in layers.items())
    assert changer.done == 0


def test_a_rule_that_needs_no_gradient_takes_what_is_recorded_without_one(seed):
    """record_gradient_blocks gives an empty dict where nothing was asked for."""
    layer = random_layer(seed)
    assert run_update(updater(), layer, 10, gradients={})[0].moved > 0


def test_the_paper_has_159_updates_of_160_parts():
    changer = updater(updates=160, total_steps=757000, schedule=cosine)
    assert len(changer.ratios) == 159
    assert min(changer.ratios) == round(757000 / 160)


def test_an_update_by_hand():
    """A 2x2 grid of 4x4 blocks with slots at (0,0), (1,1), (0,1): the smallest, slot 1, goes to the only free place."""
    rows, cols = torch.tensor([0, 1, 0], dtype=torch.int32), torch.tensor([0, 1, 1], dtype=torch.int32)
    layer = BlockSparseLinear.from_pattern(BlockPattern((8, 8), 4, rows, cols))
    with torch.no_grad():
        layer.values.copy_(torch.tensor([3.0, 1.0, 2.0]).view(3, 1, 1).expand(3, 4, 4))
    found, moments = run_update(updater(pruning_ratio=1 / 3), layer, 10)
    assert list(zip(layer.rows.tolist(), layer.cols.tolist())) == [(0, 0), (1, 0), (0, 1)]
    assert layer.values[:, 0, 0].tolist() == [3.0, 0.0, 2.0]
    for moment in moments:
        assert moment[:, 0, 0].tolist() == [1.0, 0.0, 1.0]
    assert (found.moved, found.blocks, found.explored_dof, found.removed_new) == (1, 3, 1.0, None)
    assert found.mean_age == pytest.approx((10 + 0 + 10) / 3)


@pytest.mark.parametrize(("norm", "goes"), [(l1, 0), (l2, 1), (linf, 1)])
def test_the_norm_decides_which_block_goes(norm, goes):
    """Slot 0 has one large weight (L1 3, Linf 3); slot 1 sixteen small ones (L1 4, L2 1, Linf 0.25)."""
    rows, cols = torch.tensor([0, 0], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    layer = BlockSparseLinear.from_pattern(BlockPattern((8, 8), 4, rows, cols))
    with torch.no_grad():
        layer.values.zero_()
        layer.values[0, 0, 0], layer.values[1] = 3.0, 0.25
    run_update(updater(norm=norm), layer, 10)
    assert int(layer.rows[goes]) == 1
    assert int(layer.rows[1 - goes]) == 0


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_an_update_on_random_weights(seed, block_size, segments):
    """Per segment exactly the smallest half goes; survivors stay bit for bit; no pruned position comes back."""
    layer = random_layer(seed, block_size=block_size, segments=segments)
    before, values = layer.pattern, layer.values.detach().clone()
    norms = values.double().abs().sum((1, 2))
    _, moments = run_update(updater(), layer, 10)
    moved = (layer.values == 0).flatten(1).all(1)
    for segment in range(segments):
        mine = before.slot_segments() == segment
        expected = int(0.5 * int(mine.sum()) + 0.5)
        assert int((moved & mine).sum()) == expected
        assert float(norms[mine & moved].max()) <= float(norms[mine & ~moved].min())
    after = layer.pattern  # raises if two slots had one place
    assert torch.equal(after.slot_segments(), before.slot_segments())
    assert torch.equal(after.keys()[~moved], before.keys()[~moved])
    assert torch.equal(layer.values[~moved], values[~moved])
    assert not torch.isin(after.keys()[moved], before.keys()).any()
    for moment in moments:
        assert not moment[moved].any()
        assert bool((moment[~moved] == 1).all())


def test_removed_positions_may_return_when_allowed(seed):
    """Of 15 blocks on 16 places, all pruned: only with leave to return can more than one of them move."""
    layer = random_layer(seed, (64, 64), 16, 1 / 16)
    strict, _ = run_update(updater(pruning_ratio=1.0), layer, 10)
    assert strict.moved == 1
    free, _ = run_update(updater(pruning_ratio=1.0, allow_removed=True), random_layer(seed, (64, 64), 16, 1 / 16), 10)
    assert free.moved == 15


def test_new_places_are_uniform(seed):
    """One of two blocks moves to one of the 14 free places; chi-squared, passed by chance once in a million runs."""
    counts, trials = torch.zeros(16), 700
    rows, cols = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32)
    for trial in range(trials):
        layer = BlockSparseLinear.from_pattern(BlockPattern((64, 64), 16, rows, cols))
        torch.nn.init.ones_(layer.values[1:])
        run_update(updater(seed=seed + trial), layer, 10)
        counts[layer.pattern.keys()[0]] += 1
    assert counts[0] == counts[15] == 0
    expected = trials / 14
    assert float(((counts[1:15] - expected) ** 2 / expected).sum()) < 54.0  # 13 degrees of freedom


def test_an_update_depends_on_seed_step_and_name_only(seed):
    def places(name: str, step: int, run_seed: int, slots: torch.Tensor | None = None):
        layer = random_layer(seed)
        if slots is not None:  # the same weight with its slots in another order
            other = layer.pattern
            layer = BlockSparseLinear.from_pattern(BlockPattern(other.shape, 8, other.rows[slots], other.cols[slots]))
            layer.values.data.copy_(random_layer_values[slots])
        run_update(updater(seed=run_seed), layer, step, name=name)
        return set(layer.pattern.keys().tolist())

    torch.manual_seed(0)
    random_layer_values = random_layer(seed).values.detach().clone()
    torch.manual_seed(0)
    first = places("a", 10, 1)
    torch.manual_seed(0)
    assert places("a", 10, 1) == first
    for other in (("b", 10, 1), ("a", 20, 1), ("a", 10, 2)):
        torch.manual_seed(0)
        assert places(*other) != first
    order = torch.randperm(random_layer_values.shape[0], generator=torch.Generator().manual_seed(seed))
    assert places("a", 10, 1, order) == first


def test_gradient_growth_takes_the_largest_free_blocks(seed):
    layer = random_layer(seed, segments=3, shape=(96, 64), block_size=8)
    before, grid = layer.pattern, layer.pattern.grid
    g = torch.Generator().manual_seed(seed)
    dense = torch.rand(grid, generator=g)
    active = dense[before.rows.long(), before.cols.long()]
    masked = dense.clone()
    masked[before.rows.long(), before.cols.long()] = -1
    flat = masked.flatten().argsort(descending=True)[: masked.numel() - before.nnz]
    gradient = GradientBlocks(flat // grid[1], flat % grid[1], masked.flatten()[flat], active)
    run_update(updater(growth=GROW_RULES["gradient"]), layer, 10, {"layer": gradient})
    moved = (layer.values == 0).flatten(1).all(1)
    for segment in range(3):
        mine = moved & (before.slot_segments() == segment)
        found = dense[layer.rows[mine].long(), layer.cols[mine].long()].sort(descending=True).values
        assert torch.equal(found, masked.chunk(3)[segment].flatten().topk(int(mine.sum())).values)


def test_gradient_growth_may_choose_a_pruned_place_when_allowed():
    """Four places, two blocks; the pruned one's own place has the largest gradient of all."""
    rows, cols = torch.tensor([0, 0], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    gradient = GradientBlocks(torch.tensor([1]), torch.tensor([1]), torch.tensor([5.0]), torch.tensor([9.0, 1.0]))
    for allowed, place in ((True, (0, 0)), (False, (1, 1))):
        layer = BlockSparseLinear.from_pattern(BlockPattern((8, 8), 4, rows, cols))
        layer.values.data[1] = 1.0
        run_update(updater(growth=GROW_RULES["gradient"], allow_removed=allowed), layer, 10, {"layer": gradient})
        assert (int(layer.rows[0]), int(layer.cols[0])) == place


def test_how_much_of_the_gradient_is_asked_for(seed):
    """At an update of a rule that goes by the gradient, as many positions as the update moves in a segment."""
    layers = {"qkv": random_layer(seed, sparsity=0.5, segments=3), "output": random_layer(seed, sparsity=0.75)}
    by_gradient, at_random = updater(growth=GROW_RULES["gradient"], pruning_ratio=0.3), updater()
    for changer in (by_gradient, at_random):
        changer.track(layers)
    assert by_gradient.gradient_counts(10) == {"qkv": 5, "output": 7}  # 0.3 of 16, 4.8; 0.3 of 24, 7.2
    assert by_gradient.gradient_counts(11) is None
    assert at_random.gradient_counts(10) is None


def test_a_growth_rule_is_one_registered_function():
    @register("first")
    def first(free: FreePositions, count: int, context: GrowContext) -> torch.Tensor:
        return free.at(torch.arange(count))

    try:
        layer = random_layer(0)
        free = sorted(set(range(96)) - set(layer.pattern.keys().tolist()))
        found, _ = run_update(updater(growth=GROW_RULES["first"]), layer, 10)
        moved = (layer.values == 0).flatten(1).all(1)
        assert sorted(layer.pattern.keys()[moved].tolist()) == free[: found.moved]
    finally:
        del GROW_RULES["first"]


def test_a_weight_that_is_not_finite_stops_the_update_and_changes_nothing(seed):
    layer = random_layer(seed)
    layer.values.data[3, 2, 1] = math.nan
    keys = layer.pattern.keys()
    with pytest.raises(ValueError, match=r"after step 10: layer.values: expected finite, found NaN"):
        run_update(updater(), layer, 10)
    assert torch.equal(layer.pattern.keys(), keys)


def test_history_by_hand():
    """Ten places, three blocks at 0, 4, 9; then slots 1 and 2 move to 1 and 2, then slot 2 goes on to 9."""
    rows, cols = torch.zeros(3, dtype=torch.int32), torch.tensor([0, 4, 9], dtype=torch.int32)
    history = LayerHistory(BlockPattern((1, 10), 1, rows, cols))
    assert history.explored_dof == pytest.approx(0.3)
    assert history.record(torch.tensor([1, 2]), torch.tensor([1, 2]), step=5, previous_step=0) is None
    assert history.explored_dof == pytest.approx(0.5)
    assert history.mean_age(6) == pytest.approx((6 + 1 + 1) / 3)
    assert history.record(torch.tensor([2]), torch.tensor([9]), step=8, previous_step=5) == 0.5
    assert history.explored_dof == pytest.approx(0.5)


def test_explored_dof_counts_every_position_ever_active(seed):
    changer, layer = updater(updates=9, total_steps=90), random_layer(seed)
    seen = set(layer.pattern.keys().tolist())
    for step in sorted(changer.ratios):
        layer.values.data.normal_()
        found, _ = run_update(changer, layer, step)
        seen |= set(layer.pattern.keys().tolist())
        assert found.explored_dof == pytest.approx(len(seen) / 96)


def test_state_continues_the_record(seed):
    steps = [10, 20, 30]
    layers = [random_layer(seed), random_layer(seed)]
    layers[1].load_state_dict(layers[0].state_dict())
    straight, first = updater(), updater()
    expected = [run_update(straight, layers[0], step)[0] for step in steps]
    found = [run_update(first, layers[1], 10)[0]]
    second = updater()
    second.track({"layer": layers[1]})
    second.load_state_dict(first.state_dict())
    found += [run_update(second, layers[1], step)[0] for step in steps[1:]]
    assert found == expected
    assert torch.equal(layers[0].rows, layers[1].rows)


def test_a_record_of_another_size_is_refused(seed):
    changer = updater()
    changer.track({"layer": random_layer(seed)})
    other = updater()
    other.track({"layer": random_layer(seed, shape=(64, 64))})
    with pytest.raises(ValueError, match="pattern history"):
        changer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("allowed", [True, False])
def test_blocks_that_return_to_a_place_just_emptied_are_counted(allowed, seed):
    """They counted as moved elsewhere, those too that came back to their very own place."""
    layers = {"one": random_layer(seed), "two": random_layer(seed + 1)}
    changer = updater(allow_removed=allowed, pruning_ratio=1.0)
    changer.track(layers)
    before = {name: layer.pattern.keys().tolist() for name, layer in layers.items()}
    moments = {name: [torch.zeros_like(layer.values)] for name, layer in layers.items()}
    moves = changer.decide(layers, 10, None)
    record = changer.apply(layers, moments, 10, moves).as_record()
    expected = 0
    for name, move in moves.items():
        emptied = {before[name][slot] for slot in move["slots"].tolist()}
        expected += len(emptied & {layers[name].pattern.keys().tolist()[slot] for slot in move["slots"].tolist()})
    assert record["returned"] == (expected if allowed else None)
    assert (expected > 0) == allowed
