"""torch's OpenMP runtime: its threads for our kernels, and how long they spin while others want the cores.

GNU's runtime spins at the end of a parallel region for a few milliseconds, in which the next one usually begins: with
threads that sleep, a quiet machine is up to a fifth slower. Beside a busy process that is wrong: threads that wait for
one that has lost its core keep the other cores from it, and a step takes three to four times as long. So it is decided
while the process runs. Results do not depend on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import torch

SECONDS = 1.0  # between two looks
# Seconds that threads wait for cores in one second: 0.01 to 0.02 in training alone, 0.6 to 1.2 beside one busy process.
CROWDED = 0.1
_FEWER = ("OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS")  # variables: fewer threads than were asked for
_SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@functools.lru_cache(maxsize=None)
def runtime() -> tuple[str, Any] | None:
    """Path and library of the OpenMP runtime that torch has loaded, None where it runs on one without GOMP_parallel.

    A runtime of our own would be a second set of threads that spin while torch's want the cores.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            loaded = sorted({line.split(maxsplit=5)[5].rstrip("\n") for line in file if "omp" in line and "/" in line})
    except OSError:
        return None
    torch_folder = os.path.dirname(os.path.dirname(torch.__file__))
    for path in sorted(loaded, key=lambda p: not p.startswith(torch_folder)):
        if os.path.basename(path).startswith(("libgomp", "libiomp", "libomp")):
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(path)
                library.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
                library.GOMP_parallel.restype = None
                return path, library
    return None


@functools.lru_cache(maxsize=None)
def parallel_address() -> int | None:
    """Address of GOMP_parallel in torch's OpenMP runtime; None (threads are then started per call) without one."""
    found = runtime()
    return None if found is None else ctypes.cast(found[1].GOMP_parallel, ctypes.c_void_p).value


def use_threads(count: int) -> str:
    """Let torch compute with `count` threads (0: with as many as now), or with as many as it gets; a line where
    variables let it have fewer.

    oneDNN's bfloat16 products leave rows uncomputed where a team is smaller than torch said.
    """
    if count:
        torch.set_num_threads(count)
    found = runtime()
    ran: list[None] = []
    variables = [f"{name}={os.environ[name]}" for name in _FEWER if name in os.environ]
    if found is None or not variables:
        return ""
    found[1].omp_set_dynamic(0)  # a team that shrinks and grows with the machine's load
    asked, note = torch.get_num_threads(), ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ran.append)
    found[1].GOMP_parallel(ctypes.cast(note, ctypes.c_void_p), None, asked, 0)
    if len(ran) == asked:
        return ""
    torch.set_num_threads(len(ran))
    return f"threads: expected {asked}, found {len(ran)}: {' '.join(variables)}"


@functools.lru_cache(maxsize=None)
def give_way() -> bool:
    """From now on, look once a second whether threads wait for cores, and let them sleep instead of spin while they do.

    Whether that is possible here: Linux, GNU's OpenMP, a user who has not set OMP_WAIT_POLICY or GOMP_SPINCOUNT, and
    room for a thread.
    """
    found = runtime()
    ours = found is not None and os.path.basename(found[0]).startswith("libgomp")
    if not ours or any(name in os.environ for name in _SET_BY_USER) or waited() is None:
        return False
    if not can_start(1):
        return False
    threading.Thread(target=_look_for_ever, name="give_way", daemon=True).start()
    return True


def can_start(threads: int) -> bool:
    """Whether the system lets this process have so many threads more, which ends or raises where it asks in vain."""
    end, started = threading.Event(), []
    try:
        for _ in range(threads):
            started.append(threading.Thread(target=end.wait, daemon=True))
            started[-1].start()
    except RuntimeError:
        started.pop()
    end.set()
    for thread in started:
        thread.join()
    return len(started) == threads


def waited() -> float | None:
    """Seconds that the living threads of this process have waited for a core, all together; None if nobody counts them.

    The second number of /proc/PID/task/TID/schedstat (Linux, Documentation/scheduler/sched-stats).
    """
    total, counted = 0, False
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # it may have ended
            total += int(task.read_text(encoding="ascii").split()[1])
            counted = True
    return total / 1e9 if counted else None


@contextlib.contextmanager
def asleep() -> Iterator[None]:
    """Within this, threads that wait at the end of a parallel region sleep at once.

    The runtime spins 100 times in place of 300,000 while there are more OpenMP threads than cores (its manual, section
    GOMP_SPINCOUNT), whoever has them; so a thread that has nothing to do keeps a team of its own.
    """
    found, begun, end = runtime(), threading.Event(), threading.Event()
    assert found is not None

    def keep_a_team() -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of NULL
        found[1].GOMP_parallel(nothing, None, _team(), 0)
        begun.set()
        end.wait()

    keeper = threading.Thread(target=keep_a_team, name="asleep", daemon=True)
    keeper.start()
    begun.wait()
    try:
        yield
    finally:
        end.set()
        keeper.join()


def _look_for_ever() -> None:
    while True:
        _until(crowded=True)
        if can_start(_team()):
            with asleep():
                _until(crowded=False)


def _until(crowded: bool) -> None:
    """Return when, in the second before, threads that could sleep have waited for cores, or have not."""
    while True:
        before, begun = waited() or 0.0, time.monotonic()
        time.sleep(SECONDS)
        share = ((waited() or 0.0) - before) / (time.monotonic() - begun)
        # Of less than half of the cores it would take more threads to wait for the others than the process has.
        possible = torch.get_num_threads() > 1 and _team() <= torch.get_num_threads() + 2
        if (possible and share > CROWDED) is crowded:
            return


def _team() -> int:
    """How many threads more make, with torch's, more than there are cores; one of them is in no count."""
    return max(2, len(os.sched_getaffinity(0)) - torch.get_num_threads() + 2)
