"""Mistakes that real hardware lets pass in silence must fail loudly on the simulator."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from small import FEATURES, ROWS, Model, Run, options, sparse_layer
from torch import Tensor, nn

from ipu_bert.engines import simulator as sim


@pytest.fixture
def run(seed: int) -> Run:
    run = Run(seed)
    run.step()
    return run


def test_update_done_right_goes_on_with_one_compilation(run: Run) -> None:
    for _ in range(3):
        run.update()
        run.step()
    assert run.executor.compilations == 1


class Activated(Model):
    """With something more in the first block."""

    def __init__(self, seed: int, more: nn.Module, data_type: str = "float") -> None:
        super().__init__([sparse_layer(seed), sparse_layer(seed + 1)], data_type)
        self.more = more

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        with sim.Block("one", ipu_id=0):
            x = self.more(x)
        return super().forward(x, target)


class Lookup(nn.Module):
    def __init__(self, padding_idx: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(4, FEATURES, padding_idx=padding_idx)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.zeros(x.shape[0], dtype=torch.int64))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (nn.GELU(), "gelu: the device has the tanh form alone"),
        (nn.GELU(approximate="tanh"), ""),
        (Lookup(padding_idx=0), "embedding: TiedGather drops padding_idx, here 0"),
        (Lookup(padding_idx=None), ""),
    ],
)
def test_operations_that_the_device_computes_otherwise(seed: int, more: nn.Module, message: str) -> None:
    model, chosen = Activated(seed, more), options()
    chosen._Popart.setPatterns({"TiedGather": True})
    executor = sim.trainingModel(model, chosen, sim.optim.AdamW(model.parameters(), lr=0.01))
    inputs = torch.randn(3 * ROWS, FEATURES), torch.randn(3 * ROWS, FEATURES)
    with pytest.raises(sim.SimulatorError, match=message) if message else contextlib.nullcontext():
        executor.compile(*inputs)


class Branch(nn.Module):
    """Another function for other values, which a trace cannot keep."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if float(x[0, 0]) > 0 else x


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1.0)
        return x


@pytest.mark.parametrize(
    ("more", "message"),
    [(Branch(), "the code depends on values, which a trace fixes"), (Counter(), "writes a variable or an input")],
)
def test_code_that_a_trace_cannot_keep(seed: int, more: nn.Module, message: str) -> None:
    model = Activated(seed, more)
    executor = sim.trainingModel(model, options(), sim.optim.AdamW(model.parameters(), lr=0.01))
    x = torch.ones(3 * ROWS, FEATURES)
    x[-ROWS:] = -1.0
    with pytest.raises(sim.SimulatorError, match=message):
        executor.compile(x, torch.zeros_like(x))


class Unused(nn.Module):
    """Something is rounded and not used; a program leaves it out, and rounds the rest as the code does."""

    def forward(self, x: Tensor) -> Tensor:
        torch.softmax(x * 1.3, -1)
        return x * 1.1


def test_a_program_rounds_as_the_code_does_where_it_leaves_something_out(seed: int) -> None:
    """Each compilation proves it, or is refused."""
    model, chosen = Activated(seed, Unused(), "half"), options()
    chosen.Precision.enableStochasticRounding(True)
    executor = sim.trainingModel(model, chosen, sim.optim.AdamW(model.parameters(), lr=0.01))
    x = torch.randn(3 * ROWS, FEATURES).half()
    executor.compile(x, torch.zeros_like(x))


def test_the_models_code_runs_for_the_compilation_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("called again")

    monkeypatch.setattr(Model, "forward", refuse)
    before = run.model.first.nz_values.detach().clone()
    run.step()
    assert not torch.equal(run.model.first.nz_values, before)


def test_options_that_nobody_knows() -> None:
    chosen = sim.Options()
    with pytest.raises(sim.SimulatorError, match=r"_Popart: expected one of .*, found autoRecompute"):
        chosen._Popart.set("autoRecompute", 3)
    with pytest.raises(sim.SimulatorError, match=r"engineOptions: expected one of .*, found opt\.autoLoad"):
        chosen._Popart.set("engineOptions", {"opt.autoLoad": "true"})
    with pytest.raises(sim.SimulatorError, match=r"setPatterns: expected one of .*, found TideGather"):
        chosen._Popart.setPatterns({"TideGather": True})
    with pytest.raises(ValueError, match=r"must be set to ReductionType\.Mean or Sum"):
        chosen.Training.accumulationAndReplicationReductionType(sim.ReductionType.NoReduction)


def test_forgotten_upload(run: Run) -> None:
    run.update(upload=False)
    with pytest.raises(sim.SimulatorError, match=r"first\.nz_values: changed on the host but never uploaded"):
        run.step()


def test_moments_left_behind(run: Run) -> None:
    run.update(load_moments=False)
    with pytest.raises(sim.SimulatorError, match=r"first\.meta_info: .*moments were left behind"):
        run.step()


def test_moments_written_back_in_the_old_layout(run: Run) -> None:
    old = copy.deepcopy(run.optimizer.state_dict())
    run.update()
    run.optimizer.load_state_dict(old)
    with pytest.raises(sim.SimulatorError, match=r"Accl1___first\.nz_values: .*left behind"):
        run.step()


def test_moments_of_another_layout(run: Run) -> None:
    run.update()
    state = run.optimizer.state_dict()
    state["ipu_state"]["Accl1___first.nz_values"].uniform_()  # fills the padding too
    run.optimizer.load_state_dict(state)
    with pytest.raises(sim.SimulatorError, match=r"moments of first\.nz_values: .*different patterns"):
        run.step()


def test_values_of_another_layout_than_meta_info(run: Run) -> None:
    before = run.model.first.nz_values.detach().clone()
    run.update()
    with torch.no_grad():
        run.model.first.nz_values.copy_(before)
    run.executor.copyWeightsToDevice()
    with pytest.raises(ValueError, match="different patterns"):
        run.step()


def test_slot_order_taken_for_device_layout(run: Run) -> None:
    with torch.no_grad():
        flat = run.layers[0].values.flatten()
        run.model.first.nz_values[: flat.numel()] = flat
    run.executor.copyWeightsToDevice()
    with pytest.raises(ValueError, match="different patterns"):
        run.step()


def test_meta_info_cast_on_the_way(run: Run) -> None:
    buffer = run.model.first.meta_info
    with torch.no_grad():
        buffer.copy_(buffer.float() * 1.0 + 0.0)
        buffer.copy_(torch.nan_to_num(buffer))
    run.executor.copyWeightsToDevice()
    state = run.optimizer.state_dict()
    state["ipu_state"] = {key: torch.zeros_like(x) for key, x in state["ipu_state"].items()}  # fits any layout
    run.optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="metaInfo"):
        run.step()


def test_changed_input_shape(run: Run) -> None:
    x, target = run.inputs()
    with pytest.raises(sim.SimulatorError, match=r"compiled for .* found"):
        run.executor(x[:ROWS], target[:ROWS])


def test_changed_parameter_shape(run: Run) -> None:
    run.model.first.nz_values = nn.Parameter(torch.zeros(7))
    with pytest.raises(sim.SimulatorError, match=r"first\.nz_values: compiled as .* found .*\[7\]"):
        run.executor.copyWeightsToDevice()
    with pytest.raises(sim.SimulatorError, match=r"first\.nz_values: compiled as"):
        run.step()


@pytest.mark.parametrize("upload", [True, False])
def test_integer_buffer_changed_after_compilation(run: Run, upload: bool) -> None:
    run.model.table[0] = 9
    with pytest.raises(sim.SimulatorError, match="table: an integer buffer is a constant"):
        run.executor.copyWeightsToDevice() if upload else run.step()


def test_edit_through_an_alias_then_download(run: Run) -> None:
    alias = run.model.first.nz_values.data
    run.step()
    alias.zero_()
    with pytest.raises(sim.SimulatorError, match=r"first\.nz_values: edited on the host through an alias"):
        run.model.first.nz_values.sum()


def test_edit_through_an_alias_then_step_or_upload(run: Run) -> None:
    alias = run.model.first.nz_values.data
    run.step()
    alias.zero_()
    with pytest.raises(sim.SimulatorError, match="alias"):
        run.step()
    with pytest.raises(sim.SimulatorError, match="would undo"):
        run.executor.copyWeightsToDevice()


def test_second_compilation(run: Run) -> None:
    with pytest.raises(sim.SimulatorError, match="second compilation"):
        run.executor.compile(*run.inputs())


def test_what_needs_an_executable_before_there_is_one(seed: int) -> None:
    run = Run(seed)
    executor = run.executor
    uses = (
        executor.attachToDevice,
        executor.copyWeightsToHost,
        executor.copyWeightsToDevice,
        lambda: executor.rng_state,
        lambda: setattr(executor, "rng_state", [0] * 5056),
    )
    for use in uses:
        with pytest.raises(sim.SimulatorError, match="Model has not been compiled"):
            use()
    assert not executor.isAttachedToDevice()
    run.step()


def test_custom_op_outside_a_trace_gives_zeros(run: Run) -> None:
    module = run.model.first
    x = torch.randn(ROWS, FEATURES)
    (y,) = sim.custom_op(
        (x, module.meta_info, module.nz_values), "BlockSparseLinear", "ai.graphcore", 1, (x,), module.plan.attributes()
    )
    assert not y.any()
    torch.testing.assert_close(module(x), run.layers[0](x) * 0 + module(x))  # the module itself takes a host path
    assert module(x).any()


def test_two_executables_on_one_device(run: Run) -> None:
    other = sim.inferenceModel(run.model, _inference_options())
    x, target = run.inputs()
    with pytest.raises(sim.SimulatorError, match="held by another"):
        other(x[:ROWS], target[:ROWS])
    run.executor.detachFromDevice()
    other(x[:ROWS], target[:ROWS])
    other.detachFromDevice()
    run.step()
    assert (run.executor.compilations, other.compilations) == (1, 1)


def _inference_options() -> sim.Options:
    result = sim.Options().outputMode(sim.OutputMode.All)
    return result


def test_pipeline_needs_enough_micro_batches(seed: int) -> None:
    run = Run(seed, accumulation=2)
    with pytest.raises(sim.SimulatorError, match="gradient accumulation must be at least"):
        run.step()
    assert not run.executor.isCompiled()
    assert run.optimizer.state_dict()["ipu_state"] is None, "a refused compilation leaves no state behind"


def test_variable_on_two_ipus(seed: int) -> None:
    class Shared(Model):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            with sim.Block("one", ipu_id=0):
                hidden = self.first(x)
            with sim.Block("two", ipu_id=1):
                return sim.identity_loss((hidden + self.first.bias - target).sum(), reduction="none")

    run = Run(seed)
    model = Shared(run.layers)
    executor = sim.trainingModel(model, options(), sim.optim.AdamW(model.parameters(), lr=0.1))
    with pytest.raises(sim.SimulatorError, match=r"first\.bias: used on IPU 0 and IPU 1"):
        executor(*run.inputs())


def test_frozen_options_and_refused_settings() -> None:
    frozen = options()
    frozen._freeze()
    with pytest.raises(AttributeError, match="frozen"):
        frozen.Training.gradientAccumulation(4)
    with pytest.raises(AttributeError, match="frozen"):
        frozen._Popart.set("a", 1)
    with pytest.raises(sim.SimulatorError, match="patterns would be frozen"):
        options().enableSyntheticData(True)
    with pytest.raises(sim.SimulatorError, match="re-laid"):
        options()._Popart.set("disableOptimizerStateTensorStreams", True)
