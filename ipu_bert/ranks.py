"""The processes of one run, its ranks: who this one is, what they tell each other, and how all end when one fails.

torchrun starts processes that share a CPU engine's steps (`TorchRanks`, over gloo); poprun starts those of IPUs
(engines/ipu/instances.py); a process alone is its run's only rank. All ranks run the same program on parts of the same
batches. Rank 0 alone writes files and decides about patterns.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Dict, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ipu_bert.signals import InterruptedRunError, unheeded
from sparse_ops.files import in_words
from sparse_ops.saying import say

Groups = Dict[str, Dict[str, Tensor]]

MEETING_SECONDS = 2 * 60 * 60.0  # while others prepare text, compile, save or report: hours of text at most
SILENT_SECONDS = 10.0  # of waiting for others to begin at all, before a line says so
ROLL_CALL_SECONDS = 3.0  # for others to say what became of them, when one is missing
SAME_SECONDS = 1.0  # for rank 0 to say what this rank has to say
_TEXT = ("utf-8", "surrogateescape")  # names of files may be other bytes
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankError(ValueError):
    """Another rank failed, with its message, or does not answer; `status`: of this process, as of that one.

    The message is empty where rank 0 says it for all.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Ranks:
    """One process alone, whose sums are its own.

    index, count: of all; local_index, local_count: of those on this machine.
    """

    index = 0
    count = 1
    local_index = 0
    local_count = 1

    # --- what each kind of ranks has of its own

    def sum_(self, tensor: Tensor) -> None:
        """Put the sum over all ranks in the tensor's place: the same bits on all."""

    def broadcast_(self, tensor: Tensor) -> None:
        """Put rank 0's in the tensor's place."""

    def meet(self) -> None:
        """Wait until all ranks are here: for what one of them does alone, which may take long."""

    def connect(self, patience: float) -> None:
        """Be ready for steps, in which a rank waits at most `patience` seconds for the others."""

    def options(self, ipus_per_replica: int) -> Any:
        """popdist's own options, or None to make ordinary ones."""
        return None

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in here on one rank fails on all of them, with its message."""
        yield

    # --- what is made of that

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and decides."""
        return self.index == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element by element over all ranks; exact for counts."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64)
        self.sum_(total)
        return [float(x) for x in total]

    def largest(self, value: float) -> float:
        """The largest of all ranks' values."""
        return max(self.sum([value if rank == self.index else 0.0 for rank in range(self.count)]))

    def gather(self, text: str) -> list[str]:
        """What every rank says, by index."""
        data = text.encode(*_TEXT)
        lengths = self.sum([len(data) if rank == self.index else 0 for rank in range(self.count)])
        rows = torch.zeros(self.count, int(max(lengths)), dtype=torch.int32)  # types that every backend adds up
        rows[self.index, : len(data)] = torch.tensor(list(data), dtype=torch.int32)
        self.sum_(rows)
        return [bytes(row[: int(length)].tolist()).decode(*_TEXT) for row, length in zip(rows, lengths)]

    def text_from_first(self, text: str) -> str:
        """What rank 0 says; the others' text does not count."""
        if self.count == 1:
            return text
        data = list(text.encode(*_TEXT)) if self.first else []
        length = torch.tensor([len(data)])
        self.broadcast_(length)
        letters = torch.tensor(data, dtype=torch.int32) if self.first else torch.zeros(int(length), dtype=torch.int32)
        self.broadcast_(letters)
        return bytes(letters.tolist()).decode(*_TEXT)

    def plain_from_first(self, value: Any) -> Any:
        """Rank 0's value, of what JSON can hold, NaN and infinities too."""
        return value if self.count == 1 else json.loads(self.text_from_first(json.dumps(value)))

    def tensors_from_first(self, groups: Mapping[str, Mapping[str, Tensor]]) -> Groups:
        """Rank 0's tensors by group and name, which it may take long to have; what the others give does not count."""
        self.meet()
        if self.count == 1:
            return {group: dict(tensors) for group, tensors in groups.items()}
        described = [
            (group, name, str(tensor.dtype).partition(".")[2], list(tensor.shape))
            for group, tensors in groups.items()
            for name, tensor in tensors.items()
        ]
        found: Groups = {group: {} for group in self.plain_from_first(list(groups))}
        for group, name, dtype, shape in self.plain_from_first(described):
            tensor = groups[group][name].contiguous() if self.first else torch.empty(shape, dtype=getattr(torch, dtype))
            self.broadcast_(tensor)
            found[group][name] = tensor
        return found

    def check_same(self, found: Mapping[str, str], when: str) -> None:
        """Raises ValueError, on all ranks, when one of the values, by what they are of, is not the same on all."""
        if self.count == 1:
            return
        every = [json.loads(text) for text in self.gather(json.dumps(dict(found)))]
        for rank, theirs in enumerate(every):
            for name in {**every[0], **theirs}:
                here, there = every[0].get(name), theirs.get(name)
                if here != there:
                    raise ValueError(f"{when}: rank {rank} has another {name} than rank 0: {there}, expected {here}")


ALONE = Ranks()


class TorchRanks(Ranks):
    """The processes that torchrun, or whoever sets its variables, has started; they talk through gloo.

    Messages about failures go through the store at which ranks found each other: torchrun's own outlives them.
    """

    def __init__(self) -> None:
        limit = timedelta(seconds=MEETING_SECONDS)
        store, self.index, self.count = next(dist.rendezvous("env://", timeout=limit))
        # Where torchrun has started ranks again, the store may still have the addresses of those that are gone.
        self._store = dist.PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        self.local_index = int(os.environ.get("LOCAL_RANK", self.index))
        self.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        dist.init_process_group("gloo", store=self._store, rank=self.index, world_size=self.count, timeout=limit)
        self.group: Any = None  # until `connect`, the one that waits for a long time

    def connect(self, patience: float) -> None:
        """See Ranks."""
        self.group = dist.new_group(timeout=timedelta(seconds=patience))

    def sum_(self, tensor: Tensor) -> None:
        """See Ranks; gloo adds each element up on one rank and hands the result out."""
        dist.all_reduce(tensor, group=self.group)

    def broadcast_(self, tensor: Tensor) -> None:
        """See Ranks."""
        dist.broadcast(tensor, 0, group=self.group)

    def meet(self) -> None:
        """See Ranks."""
        dist.all_reduce(torch.zeros(1))

    @contextmanager
    def together(self) -> Iterator[None]:
        """See Ranks. Raises RankError for what another rank says, or where one is gone."""
        try:
            yield
        except BaseException as error:
            with unheeded():  # torchrun sends SIGTERM to all when one has ended
                try:
                    found = self._ended_by(error)
                except RuntimeError:  # the store is gone, and the machine that had it
                    found = RankError("the machine where ranks meet does not answer", 2) if _is_lost(error) else error
            raise found from None
        dist.destroy_process_group()

    def _ended_by(self, error: BaseException) -> BaseException:
        """What this rank ends with: the error, or another rank's where that one comes first."""
        if _is_lost(error):
            return self._what_happened(str(error).splitlines()[0]) or error
        found = self._what_happened("") if isinstance(error, InterruptedRunError) else None
        if found and found.status != getattr(error, "status", 2):  # not itself one that was told to stop
            return found
        message, status, end = _in_words(error), getattr(error, "status", 2), time.monotonic() + SAME_SECONDS
        self._leave(message, status)
        while not self.first and time.monotonic() < end:  # what is wrong everywhere is said once
            if self._left(0) == (message, status):
                return RankError("", status)
            time.sleep(0.05)
        return error

    def _leave(self, message: str, status: int) -> None:
        """Say why this rank ends, empty where it only lost others."""
        self._store.set(f"left/{self.index}", json.dumps([message, status]))

    def _what_happened(self, lost: str) -> RankError | None:
        """Who failed, when this rank has lost others or was told to stop; None where that is all.

        lost: gloo's words, empty where nobody is missing.
        """
        self._leave("", 2)
        others, end = set(range(self.count)) - {self.index}, time.monotonic() + ROLL_CALL_SECONDS
        while True:
            left = {rank: found for rank, found in ((rank, self._left(rank)) for rank in sorted(others)) if found}
            said = [(rank, message, status) for rank, (message, status) in left.items() if message]
            if said:
                rank, message, status = said[0]
                return RankError(f"rank {rank}: {message}", status)
            if not lost:
                return None
            if others == left.keys() or time.monotonic() > end:
                break
            time.sleep(0.05)
        words = lost.partition("] ")[2].partition(". This is")[0] or lost
        missing = ", ".join(map(str, sorted(others - left.keys()))) or "all"
        return RankError(f"rank {missing} does not answer: it was killed, hangs, or its network is gone ({words})", 2)

    def _left(self, rank: int) -> tuple[str, int] | None:
        """The message and status that a rank ended with; None where it has not said."""
        if not self._store.check([f"left/{rank}"]):
            return None
        message, status = json.loads(self._store.get(f"left/{rank}"))
        return message, status


def _is_lost(error: BaseException) -> bool:
    """Whether this is what gloo raises where another rank does not answer."""
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def _in_words(error: BaseException) -> str:
    """An exception as one line."""
    text = in_words(error) if isinstance(error, OSError) else str(error)
    return " ".join(text.splitlines()) or type(error).__name__


def join() -> Ranks:
    """This process among those that torchrun has started, else alone.

    Raises ValueError, one line, for variables that torchrun does not set so.
    """
    if not all(name in os.environ for name in _TORCHRUN):
        return ALONE
    rank, count = (_whole(name) for name in ("RANK", "WORLD_SIZE"))
    _whole("MASTER_PORT")
    if rank >= max(count, 1):
        raise ValueError(f"RANK: expected a number below WORLD_SIZE={count}, as torchrun sets it, found {rank}")
    if count < 2:
        return ALONE
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    others = "the other rank" if count == 2 else f"{count - 1} other ranks"
    waiting = f"rank {rank}: waiting for {others} at {where}, as RANK and WORLD_SIZE={count} are set"
    told = threading.Timer(SILENT_SECONDS, say, (waiting, sys.stderr))
    told.daemon = True  # of a process that ends while it waits
    told.start()
    try:
        return TorchRanks()
    except (RuntimeError, ValueError) as error:  # no such machine, a wrong or taken port, nobody there
        raise ValueError(f"ranks: expected to meet at {where}: {str(error).splitlines()[0]}") from None
    finally:
        told.cancel()


def _whole(name: str) -> int:
    text = os.environ[name]
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"{name}: expected a whole number, as torchrun sets it, found {text[:60]!r}")
    return int(text)
