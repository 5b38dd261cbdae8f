"""`--throughput`: its seconds by a clock of the test's own, its bytes and batches counted here."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import torch

import run_pretraining
from ipu_bert import assemble, trial
from ipu_bert.data.batches import BatchStream
from ipu_bert.engines.ipu.engine import IpuEngine
from ipu_bert.engines.simulator import executor
from ipu_bert.engines.torch_engine import TorchEngine
from ipu_bert.ranks import ALONE
from ipu_bert.throughput import throughput

IPU = ["engine.name=ipu", "train.micro_batch_size=1", "train.batch_size=12"]
PIPELINES = [*IPU, "ipu.layers_per_ipu=[1,1]", "ipu.replicas=2", "precision.compute=float16"]


class Clock:
    """Seconds that pass only where the test lets them; and the batches that were made and handed over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: type, phase: str) -> None:
        self.now, self.made, self.trained = 0.0, [], []
        monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: self.now))
        share, step, update = BatchStream.share, engine.train_step, engine.host_state

        def made(stream, index, part, parts):
            self.now += 0.25
            self.made.append(index)
            return share(stream, index, part, parts)

        def trained(this, given, counts=None):
            self.trained.append(given)
            self.now += 100.0 if len(self.trained) == 1 else 0.5  # the first compiles, warms caches, ...
            with this._timer(phase):
                self.now += 2.0
            return step(this, given, counts)

        def updated(this):
            self.now += 7.0
            return update(this)

        monkeypatch.setattr(BatchStream, "share", made)
        monkeypatch.setattr(engine, "train_step", trained)
        monkeypatch.setattr(engine, "host_state", updated)


@pytest.mark.parametrize(
    ("overrides", "engine", "samples", "replicas", "ipus"),
    [([], TorchEngine, 4, 1, None), (PIPELINES, IpuEngine, 12, 2, 4)],
    ids=["torch", "ipu"],
)
def test_rates_and_seconds_by_the_clock(tiny, monkeypatch, overrides, engine, samples, replicas, ipus):
    config = tiny(*overrides)
    assemble.open_data(config, progress=False)
    clock = Clock(monkeypatch, engine, "forward")
    found = throughput(config, steps=3)
    assert (found.step.whole, found.step.data) == (2.75, 0.25)
    assert found.step.host == 0.75  # the batch, and half a second outside the engine's phases
    assert found.warm_up_seconds == 102.25
    assert found.samples == samples
    assert found.tokens == samples * 32
    rates = found.rates()
    assert rates["samples_per_second"]["all"] == samples / 2.75
    assert rates["samples_per_second"]["replica"] == samples / 2.75 / replicas
    assert rates["tokens_per_second"].get("ipu") == (samples * 32 / 2.75 / ipus if ipus else None)
    assert found.update is not None
    assert (found.update.number, found.update.seconds) == (3, 7.0)
    # Compilation has one of its own; then one before, three that count and one after the update.
    assert clock.made == [0, 0, 1, 2, 3, 4]
    assert [len(batch.input_ids) for batch in clock.trained] == [samples] * 5
    different = {tuple(batch.input_ids.flatten().tolist()) for batch in clock.trained}
    assert len(different) == 5, "the same batch again is no transfer that a run would have"


def test_bytes_of_an_update_are_what_the_device_moved(tiny, monkeypatch):
    """Every streamed variable twice each way: 2 bytes a weight and a metaInfo code, 4 a moment and a step counter."""
    moved, made = [], []
    update, make = trial.Trial.update, assemble.make_engine

    def keep(*arguments):
        made.append(make(*arguments))
        return made[-1]

    def counted(self, seconds):
        before = vars(made[0]._trainer.transfers).copy()
        result = update(self, seconds)
        moved.append({key: value - before[key] for key, value in vars(made[0]._trainer.transfers).items()})
        return result

    monkeypatch.setattr(assemble, "make_engine", keep)
    monkeypatch.setattr(trial.Trial, "update", counted)
    found = throughput(tiny(*PIPELINES), steps=1)
    assert found.update is not None
    transfers = found.update.transfers
    assert transfers is not None
    model = made[0]._device_model
    weights, tensors = sum(p.numel() for p in model.parameters()), len(list(model.parameters()))
    codes = sum(b.numel() for name, b in model.named_buffers() if name.endswith("meta_info"))
    everything = 2 * weights + 2 * codes + 4 * (2 * weights + tensors)
    assert (transfers.bytes_down, transfers.bytes_up) == (2 * everything, 2 * everything)
    assert (moved[0]["bytes_down"], moved[0]["bytes_up"]) == (2 * everything, 2 * everything)
    assert transfers.compilations == 1


def test_compilation_is_timed_by_itself_and_happens_once(tiny, monkeypatch):
    config, clock, compile_once = tiny(*PIPELINES, "sparsity.method=static"), [0.0], executor.PoplarExecutor.compile
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow(self, *inputs):
        clock[0] += 30.0
        return compile_once(self, *inputs)

    monkeypatch.setattr(executor.PoplarExecutor, "compile", slow)
    clock_of_steps = IpuEngine.train_step

    def step(self, batch, counts=None):
        clock[0] += 1.0
        return clock_of_steps(self, batch, counts)

    monkeypatch.setattr(IpuEngine, "train_step", step)
    found = throughput(config, steps=2)
    assert found.compile_seconds >= 30.0
    assert (found.warm_up_seconds, found.step.whole) == (1.0, 1.0)
    assert found.update is None
    assert "patterns stay" in found.render()


@pytest.mark.parametrize("is_prepared", [True, False], ids=["text", "random"])
@pytest.mark.parametrize("overrides", [[], [*PIPELINES, "sparsity.updates=1"]], ids=["torch", "ipu"])
def test_the_command_says_it_in_text_and_in_json_and_writes_nothing(tiny, tmp_path, overrides, is_prepared, capsys):
    assemble.open_data(tiny(), progress=False)
    where = [] if is_prepared else [f"data.dir={tmp_path / 'data'}"]
    command = ["--config", str(tmp_path / "tiny.yaml"), *where, *overrides, "--throughput", "--steps", "2"]
    assert run_pretraining.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples_per_second"]["all"] == pytest.approx(found["samples"] / found["step"]["whole"])
    assert found["tokens_per_second"]["all"] == pytest.approx(32 * found["samples_per_second"]["all"])
    assert found["ipus"] == (4 if overrides else None)
    assert 0 < found["step"]["data"] <= found["step"]["host"] < found["step"]["whole"]
    assert found["batches"] == ("text" if is_prepared else "random ids")
    executor._attached.clear()
    assert run_pretraining.main(command) == 0
    text = capsys.readouterr().out
    assert "samples/s" in text
    assert ("by IPU, of 4" in text) == bool(overrides)
    assert os.listdir(tmp_path) == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--throughput", "--steps", "0"], "expected a whole number from 1 on, found '0'"),
        (["--throughput", "--steps", "many"], "expected a whole number from 1 on, found 'many'"),
        (["--throughput", "engine.name=ipu", "engine.device=offline", "train.micro_batch_size=1"], "offline"),
        (["--throughput", "train.batch_size=0"], "train.batch_size"),
        (["--steps", "3"], "--throughput"),
        (["--throughput", "--dry-run"], "--dry-run"),
        (["--throughput", "--resume"], "--resume"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, arguments, said, capsys):
    tiny()
    try:
        status = run_pretraining.main(["--config", str(tmp_path / "tiny.yaml"), *arguments])
    except SystemExit as stop:
        status = stop.code
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert status == 2
    assert len(errors) == 1
    assert said in errors[0]


@pytest.mark.parametrize("is_prepared", [True, False])
def test_one_instance_of_two_is_timed_with_its_own_share(tiny, tmp_path, monkeypatch, is_prepared):
    monkeypatch.setattr(TorchEngine, "share", property(lambda self: (1, 2)))
    config = tiny("train.batch_size=8", *([] if is_prepared else [f"data.dir={tmp_path / 'nothing'}"]))
    mine = trial.Trial(config, ALONE)._batch(3)
    assert mine.input_ids.shape == (4, config.data.sequence_length)
    if is_prepared:
        whole = assemble.make_stream(config, assemble.open_data(config, progress=False), "train").batch(3)
        assert torch.equal(mine.input_ids, whole.input_ids[4:])
