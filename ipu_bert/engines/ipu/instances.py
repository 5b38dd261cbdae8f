"""The ranks of IPUs: poprun starts processes, its instances, each with its replicas and share of every batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ipu_bert.ranks import ALONE, Ranks


class PopdistRanks(Ranks):
    """The instances of `poprun`, with horovod for the few numbers that go between hosts."""

    def __init__(self) -> None:
        import horovod.torch as horovod
        import popdist
        import popdist.poptorch

        horovod.init()
        self._popdist, self._horovod = popdist, horovod
        self.index, self.count = popdist.getInstanceIndex(), popdist.getNumInstances()
        self.local_index, self.local_count = horovod.local_rank(), horovod.local_size()

    def sum_(self, tensor: Tensor) -> None:
        """See Ranks."""
        tensor.copy_(self._horovod.allreduce(tensor, op=self._horovod.Sum))

    def broadcast_(self, tensor: Tensor) -> None:
        """See Ranks."""
        tensor.copy_(self._horovod.broadcast(tensor, root_rank=0))

    def meet(self) -> None:
        """See Ranks; horovod waits for ever, and says who is missing."""
        self.sum([0.0])

    def options(self, ipus_per_replica: int) -> Any:
        """See Ranks."""
        return self._popdist.poptorch.Options(ipus_per_replica=ipus_per_replica)


def find_instances(device: str) -> Ranks:
    """The instances of this run: popdist's under poprun, else this process alone."""
    if device == "simulated":
        return ALONE
    try:
        import popdist
    except ImportError:
        return ALONE
    return PopdistRanks() if popdist.isPopdistEnvSet() else ALONE
