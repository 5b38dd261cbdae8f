"""The processes of a distributed run: poprun starts several, each with its replicas and share of every batch."""

from __future__ import annotations

import hashlib
import tempfile
from typing import Any, Mapping, Sequence

import torch

from sparse_ops.linear import BlockSparseLinear


class Instances:
    """One process alone; what a step needs of others is a sum, and there are none."""

    index = 0
    count = 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element by element over all instances."""
        return list(values)

    def gather(self, text: str) -> list[str]:
        """What every instance says, by index."""
        return [text]

    def options(self, ipus_per_replica: int) -> Any:
        """popdist's own options, or None to make ordinary ones."""
        return None


class PopdistInstances(Instances):
    """The instances of `poprun`, with horovod for the few numbers that go between hosts."""

    def __init__(self) -> None:
        import horovod.torch as horovod
        import popdist
        import popdist.poptorch

        horovod.init()
        self._popdist, self._horovod = popdist, horovod
        self.index, self.count = popdist.getInstanceIndex(), popdist.getNumInstances()

    def sum(self, values: Sequence[float]) -> list[float]:
        """See Instances."""
        total = self._horovod.allreduce(torch.tensor(list(values), dtype=torch.float64), op=self._horovod.Sum)
        return [float(x) for x in total]

    def gather(self, text: str) -> list[str]:
        """See Instances. All texts must be of one length."""
        rows = self._horovod.allgather(torch.tensor([list(text.encode("ascii"))], dtype=torch.uint8))
        return [bytes(row.tolist()).decode("ascii") for row in rows]

    def options(self, ipus_per_replica: int) -> Any:
        """See Instances."""
        return self._popdist.poptorch.Options(ipus_per_replica=ipus_per_replica)


def find_instances(device: str) -> Instances:
    """The instances of this run: popdist's under poprun, else this process alone."""
    if device == "simulated":
        return Instances()
    try:
        import popdist
    except ImportError:
        return Instances()
    return PopdistInstances() if popdist.isPopdistEnvSet() else Instances()


def folder_of_instance(folder: str, device: str) -> str:
    """The run's own folder for instance 0, which writes its files; a scratch folder for every other instance."""
    instances = find_instances(device)
    return folder if instances.index == 0 else tempfile.mkdtemp(prefix=f"instance{instances.index}-")


def check_same_patterns(instances: Instances, layers: Mapping[str, BlockSparseLinear]) -> str:
    """The checksum of all patterns; ValueError when another instance holds different ones."""
    digest = hashlib.sha256()
    for name, layer in layers.items():
        digest.update(name.encode() + layer.pattern.checksum().encode())
    found = instances.gather(digest.hexdigest())
    different = [i for i, checksum in enumerate(found) if checksum != found[0]]
    if different:
        raise ValueError(
            f"instance {different[0]} holds other patterns than instance 0 (checksums {found[different[0]][:12]} and "
            f"{found[0][:12]}): start all instances with the same config, seed and checkpoint"
        )
    return found[0]
