"""The gradient of a step whose micro-batches are spread over ranks: torch's DistributedDataParallel, but for its mean.

Losses here are sums divided by the labels of the whole batch, so gradients are added up and not averaged. Buckets go
out while the last micro-batch's backward pass still runs; the micro-batches before it exchange nothing.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack, nullcontext
from typing import Any, Callable, ContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ipu_bert.ranks import Ranks, TorchRanks
from ipu_bert.stopwatch import Stopwatch


class SummedGradients:
    """Runs a model's forward and backward passes; of one process alone they are the model's own.

    `model` is what to call. Rank 0's parameters are those of all ranks afterwards. timer: the wait for
    gradients that are still on their way, when there is nothing left to compute, counts as `exchange`.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, timer: Stopwatch) -> None:
        self.model: Callable[..., Any] = model
        self._parallel: Any = None
        self._timer, self._waiting = timer, ExitStack()
        self.sent_bytes = 0  # of gradients, in the last step
        if isinstance(ranks, TorchRanks):
            with warnings.catch_warnings():  # newer versions of torch have another name for broadcast_buffers
                warnings.simplefilter("ignore", FutureWarning)
                self.model = self._parallel = DistributedDataParallel(
                    model, process_group=ranks.group, broadcast_buffers=False, gradient_as_bucket_view=True
                )
            self._group = ranks.group
            # The reducer holds the hook, and the hook the reducer: neither is ever freed, and nor is the group. That is
            # well: a reducer that is the last to hold a group joins gloo's threads and keeps the GIL, which they may
            # wait for to let go of a tensor, and the process never ends (pytorch/pytorch#56297, seen with 2.13).
            self._parallel.register_comm_hook(None, lambda _, bucket: self._add_up(bucket))

    def micro_batch(self, last: bool) -> ContextManager[Any]:
        """For the forward and backward pass of one micro-batch; only in the `last` one of a step ranks exchange."""
        if self._parallel is None or last:
            self.sent_bytes = 0
            return nullcontext()
        context: ContextManager[Any] = self._parallel.no_sync()
        return context

    def arrived(self) -> None:
        """To be called when a backward pass is over."""
        self._waiting.close()

    def settle(self, loss: Callable[[Callable[..., Any]], Tensor]) -> None:
        """Run any loss once ahead: after their first backward pass buckets are laid out anew, in the order in which
        gradients come, and with them the order in which three ranks' gradients are added up."""
        if self._parallel is not None:
            for _ in range(2):
                loss(self.model).backward()
            self._waiting.close()

    def _add_up(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        tensor = bucket.buffer()
        self.sent_bytes += tensor.numel() * tensor.element_size()
        work = dist.all_reduce(tensor, group=self._group, async_op=True)
        if bucket.is_last():  # all is computed; from here on this rank only waits
            self._waiting.enter_context(self._timer("exchange"))
        return work.get_future().then(lambda future: future.value()[0])
