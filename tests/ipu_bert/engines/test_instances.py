"""Several processes under poprun, with popdist and horovod played by threads of this one."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from ipu_bert import assemble
from ipu_bert.config import load_config
from ipu_bert.data.ahead import BatchAhead
from ipu_bert.engines.ipu.build import make_run
from ipu_bert.engines.ipu.instances import (
    Instances,
    PopdistInstances,
    check_same_patterns,
    find_instances,
    folder_of_instance,
)
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.pattern import BlockPattern


def layer(seed: int) -> BlockSparseLinear:
    return BlockSparseLinear.from_pattern(BlockPattern.random((32, 32), 8, 0.5, torch.Generator().manual_seed(seed)))


class Two(Instances):
    """Instance 0 of two; `other` is what the second says."""

    count = 2

    def __init__(self, other: str) -> None:
        self.other = other

    def gather(self, text: str) -> list[str]:
        return [text, self.other]


def test_patterns_that_differ_stop_the_run() -> None:
    mine = check_same_patterns(Instances(), {"a": layer(1)})
    assert check_same_patterns(Two(mine), {"a": layer(1)}) == mine
    theirs = check_same_patterns(Instances(), {"a": layer(2)})
    with pytest.raises(ValueError, match="instance 1 holds other patterns than instance 0"):
        check_same_patterns(Two(theirs), {"a": layer(1)})
    assert check_same_patterns(Instances(), {"b": layer(1)}) != mine, "the name counts"


def test_popdist_and_horovod_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    popdist: Any = types.ModuleType("popdist")
    popdist.isPopdistEnvSet = lambda: True
    popdist.getInstanceIndex, popdist.getNumInstances = lambda: 1, lambda: 4
    popdist.poptorch = types.ModuleType("popdist.poptorch")
    popdist.poptorch.Options = lambda ipus_per_replica: ("options", ipus_per_replica)
    horovod: Any = types.ModuleType("horovod.torch")
    horovod.init, horovod.Sum = lambda: calls.append("init"), "sum"
    horovod.allreduce = lambda tensor, op: tensor * 4 if op == "sum" else None
    horovod.allgather = lambda tensor: torch.cat([tensor, tensor])
    parent: Any = types.ModuleType("horovod")
    parent.torch = horovod
    modules = {"popdist": popdist, "popdist.poptorch": popdist.poptorch, "horovod": parent, "horovod.torch": horovod}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    found = find_instances("hardware")
    assert isinstance(found, PopdistInstances)
    assert (found.index, found.count, calls) == (1, 4, ["init"])
    assert found.sum([1.0, 2.5]) == [4.0, 10.0]
    assert found.gather("abc") == ["abc", "abc"]
    assert found.options(4) == ("options", 4)
    assert type(find_instances("simulated")) is Instances, "the simulator is always alone"
    run = make_run(load_config("bert_base_dynsparse_pod64"), found)
    assert run.replicas == 4
    with pytest.raises(ValueError, match=r"ipu\.replicas: expected a multiple of the 4 instances"):
        make_run(load_config("bert_base_dynsparse_pod64", ["ipu.replicas=2", "train.batch_size=64"]), found)


def test_instance_0_writes_the_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = Instances()
    other.index = 3
    assert folder_of_instance(str(tmp_path), "simulated") == str(tmp_path)
    monkeypatch.setattr("ipu_bert.engines.ipu.instances.find_instances", lambda device: other)
    scratch = folder_of_instance(str(tmp_path), "hardware")
    assert scratch != str(tmp_path)
    assert "instance3-" in scratch


@pytest.mark.parametrize("device", ["hardware", "simulated"])
def test_a_trainer_asks_for_its_own_share_alone(device: str) -> None:
    """Made ahead where IPUs leave the CPU free; the simulator does not."""
    engine: Any = types.SimpleNamespace(share=(1, 4))
    stream: Any = types.SimpleNamespace(share=lambda *asked: asked)
    config = load_config("bert_base_dynsparse_pod64", [f"engine.device={device}"])
    batches: Any = assemble.train_batches(config, stream, engine)
    if device == "simulated":
        assert batches(7) == (7, 1, 4)
    else:
        assert isinstance(batches, BatchAhead)
        assert (batches._stream, batches._part, batches._parts) == (stream, 1, 4)
