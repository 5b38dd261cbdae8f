"""Several processes under poprun, with popdist and horovod played by threads of this one."""

from __future__ import annotations

import json
import sys
import types
from typing import Any

import pytest
import torch

from ipu_bert import assemble
from ipu_bert.config import load_config
from ipu_bert.data.ahead import BatchAhead
from ipu_bert.engines.ipu.build import make_run
from ipu_bert.engines.ipu.instances import PopdistRanks, find_instances
from ipu_bert.ranks import ALONE, Ranks


class Two(Ranks):
    """Rank 0 of two; the second says `other`."""

    count = 2

    def __init__(self, other: dict[str, str]) -> None:
        self.other = other

    def gather(self, text: str) -> list[str]:
        return [text, json.dumps(self.other)]


def test_what_differs_stops_the_run() -> None:
    mine = {"a positions": "1", "b positions": "2"}
    Two(mine).check_same(mine, "start")
    with pytest.raises(ValueError, match="step 7: rank 1 has another b positions than rank 0: 3, expected 2"):
        Two({**mine, "b positions": "3"}).check_same(mine, "step 7")
    with pytest.raises(ValueError, match="rank 1 has another b positions than rank 0: None, expected 2"):
        Two({"a positions": "1"}).check_same(mine, "start")


def test_popdist_and_horovod_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    popdist: Any = types.ModuleType("popdist")
    popdist.isPopdistEnvSet = lambda: True
    popdist.getInstanceIndex, popdist.getNumInstances = lambda: 1, lambda: 4
    popdist.poptorch = types.ModuleType("popdist.poptorch")
    popdist.poptorch.Options = lambda ipus_per_replica: ("options", ipus_per_replica)
    horovod: Any = types.ModuleType("horovod.torch")
    horovod.init, horovod.Sum = lambda: calls.append("init"), "sum"
    horovod.local_rank, horovod.local_size = lambda: 1, lambda: 2
    horovod.allreduce = lambda tensor, op: tensor * 4 if op == "sum" else None
    horovod.broadcast = lambda tensor, root_rank: tensor + 1 if root_rank == 0 else None
    parent: Any = types.ModuleType("horovod")
    parent.torch = horovod
    modules = {"popdist": popdist, "popdist.poptorch": popdist.poptorch, "horovod": parent, "horovod.torch": horovod}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    found = find_instances("hardware")
    assert isinstance(found, PopdistRanks)
    assert (found.index, found.count, calls) == (1, 4, ["init"])
    assert found.sum([1.0, 2.5]) == [4.0, 10.0]
    tensor = torch.tensor([1.0, 2.0])
    found.broadcast_(tensor)
    assert tensor.tolist() == [2.0, 3.0]
    found.meet()
    assert (found.local_index, found.local_count) == (1, 2)
    assert found.options(4) == ("options", 4)
    assert find_instances("simulated") is ALONE, "the simulator is always alone"
    run = make_run(load_config("bert_base_dynsparse_pod64"), found)
    assert run.replicas == 4
    with pytest.raises(ValueError, match=r"ipu\.replicas: expected a multiple of the 4 instances"):
        make_run(load_config("bert_base_dynsparse_pod64", ["ipu.replicas=2", "train.batch_size=64"]), found)


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
