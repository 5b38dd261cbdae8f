"""The next batch, made by a process beside this one while a device works on the batch before."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from multiprocessing.connection import Connection

import torch

from ipu_bert.data.batches import Batch, BatchOptions, BatchStream
from ipu_bert.data.token_files import TokenFiles


class BatchAhead:
    """Parts of a stream's batches by number; once one was asked for, the next is made meanwhile.

    A process, because PopTorch holds Python's lock while the IPUs run (`python/poptorch.cpp` 864, 3.4). It holds its
    own copy of what a BatchStream holds, and ends when this process does. Where it was killed, as by a signal to all
    processes of a job, the batch is made here. Raises ValueError as the stream does.
    """

    def __init__(self, stream: BatchStream, part: int, parts: int) -> None:
        self._stream, self._part, self._parts = stream, part, parts
        self._connection: Connection | None = None
        self._asked: int | None = None  # number of the batch that is being made

    def __call__(self, index: int) -> Batch:
        """This part of batch number `index`."""
        try:
            return self._received(index)
        except (EOFError, ConnectionError):
            self._connection = self._asked = None
            return self._stream.share(index, self._part, self._parts)

    def _received(self, index: int) -> Batch:
        connection = self._connected()
        if self._asked not in (None, index):
            connection.recv()
            self._asked = None
        if self._asked is None:
            connection.send(index)
        made = connection.recv()
        connection.send(index + 1)
        self._asked = index + 1
        if isinstance(made, str):
            raise ValueError(made)
        return Batch(*(torch.from_numpy(array) for array in made))

    def _connected(self) -> Connection:
        if self._connection is None:
            # Not forked: PopTorch's threads and locks must not be copied in the middle of their work.
            spawn = multiprocessing.get_context("spawn")
            self._connection, other = spawn.Pipe()
            source = (self._stream.directory, self._stream.split, self._stream.options, self._part, self._parts)
            spawn.Process(target=_serve, args=(other, *source), daemon=True, name="batches").start()
            other.close()
        return self._connection


def _serve(connection: Connection, directory: str, split: str, options: BatchOptions, part: int, parts: int) -> None:
    """Answer each number with that batch's arrays, or with what went wrong, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to hear
    stream = BatchStream(TokenFiles.open(directory), split, options)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            index = connection.recv()
            try:
                made = [tensor.numpy() for tensor in vars(stream.share(index, part, parts)).values()]
            except ValueError as error:
                connection.send(str(error))
            else:
                connection.send(made)
