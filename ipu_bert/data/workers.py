"""Worker processes for the two stages that take longest: cleaning pages of a dump, and sentences and pieces."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Callable, Iterable, Iterator, TypeVar

from ipu_bert.data.errors import DataError

_AHEAD = 8  # items for each worker that wait or are done and not yet asked for
NO_GUARD = (
    "the processes that prepare text ended: in a script, call prepare() under `if __name__ == '__main__':`, since each "
    "of them runs the script's other lines, or with workers=1; if it is there, one was killed, as for lack of memory"
)
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """The function of each item, in the order of the items, by so many processes; in this one if one is enough.

    In memory: a few items and results for each worker. Raises DataError where a worker ends that should not.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # spawn: tokenizers and torch hold threads, which do not survive a fork
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[Result]] = deque()
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start) as pool:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(NO_GUARD) from None


def worker_count(asked: int) -> int:
    """As asked, or for 0 one for each processor that this process may use.

    One where the program came by standard input: a worker begins with the main script, and there is none to be found.
    """
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is None and not os.path.exists(getattr(main, "__file__", os.curdir)):
        return 1
    return asked or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def end_if_worker() -> None:
    """End a worker in which the caller's script runs again and prepares text: its parent waits for it (NO_GUARD)."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(1)


def _start() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism here
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:  # a killed run must leave nobody behind who waits for work
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
