"""Threads give way: spinning in processor time, waiting in a case made to wait, and what follows from waiting."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sparse_ops import openmp

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

SPINNING = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # which two threads fill
import time, torch
from sparse_ops.openmp import asleep
torch.set_num_threads(2)
numbers = torch.ones(1 << 20)

def spent():
    begun = time.process_time()
    for _ in range(20):
        numbers.mul_(1.0)
        time.sleep(0.02)
    return time.process_time() - begun

numbers.mul_(1.0)
first = spent()
with asleep():
    within = spent()
print(first, within, spent())
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_threads_sleep_at_the_end_of_a_region_only_within_asleep():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", SPINNING], env=environment, stdout=subprocess.PIPE, check=True, text=True
    )
    before, within, after = map(float, done.stdout.split())
    # The work is some 20 ms; 300,000 spins take 1 to 10 ms, 20 times; 100 take nothing.
    assert within < min(before, after) / 2, (before, within, after)


def test_waiting_for_a_core_is_counted():
    core = {min(os.sched_getaffinity(0))}

    def work() -> None:
        os.sched_setaffinity(0, core)  # of this thread alone
        while time.thread_time() < 0.2:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)  # without the interpreter's lock
        measured.wait()

    measured = threading.Event()
    before, begun = openmp.waited(), time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while sum(_processor_seconds(threads)) < 0.4 and time.monotonic() < begun + 60:
        time.sleep(0.02)
    waited = openmp.waited()
    measured.set()
    for thread in threads:
        thread.join()
    assert (waited or 0.0) - (before or 0.0) > 0.1  # each of two had the core for 0.2 s, in turn


def _processor_seconds(threads: list[threading.Thread]) -> list[float]:
    """By the threads' own numbers: the largest are not the newest where the system has begun to count anew."""
    tasks = [Path(f"/proc/self/task/{thread.native_id}/schedstat") for thread in threads]
    return [int(task.read_text().split()[0]) / 1e9 for task in tasks]


def test_it_gives_way_while_threads_have_waited_and_no_longer(monkeypatch):
    seen: list[str] = []
    shares = iter([0.0, 0.05, 0.5, 0.9, 0.2, 0.01, 0.0, 0.3])
    total = 0.0

    def waited() -> float:
        return total

    def sleep(_: float) -> None:
        nonlocal total
        share = next(shares)  # ends the loop when there are no more
        seen.append(str(share))
        clock[0] += 1.0
        total += share

    @contextlib.contextmanager
    def asleep():
        seen.append("asleep")
        yield
        seen.append("awake")

    clock = [0.0]
    monkeypatch.setattr(openmp, "waited", waited)
    monkeypatch.setattr(openmp, "asleep", asleep)
    monkeypatch.setattr(openmp.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(openmp.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(openmp.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(openmp.time, "sleep", sleep)
    with pytest.raises(StopIteration):
        openmp._look_for_ever()
    assert seen == ["0.0", "0.05", "0.5", "asleep", "0.9", "0.2", "0.01", "awake", "0.0", "0.3", "asleep"]


@pytest.mark.parametrize(("threads", "cores", "expected"), [(1, 2, False), (2, 16, False), (8, 16, True), (2, 2, True)])
def test_only_a_process_with_half_of_the_cores_gives_way(monkeypatch, threads, cores, expected):
    looks = iter([None] * 3)
    waited = iter(range(100))
    monkeypatch.setattr(openmp, "waited", lambda: float(next(waited)))
    monkeypatch.setattr(openmp.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(openmp.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(openmp.time, "sleep", lambda _: next(looks))
    with contextlib.nullcontext() if expected else pytest.raises(StopIteration):
        openmp._until(crowded=True)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setattr(openmp.threading, "Thread", lambda **_: pytest.fail("a thread was started"))
    monkeypatch.setenv(name, "1000")
    assert not openmp.give_way.__wrapped__()


def test_where_nobody_counts_nothing_is_done(monkeypatch):
    monkeypatch.setattr(openmp.threading, "Thread", lambda **_: pytest.fail("a thread was started"))
    monkeypatch.setattr(openmp, "waited", lambda: None)
    assert not openmp.give_way.__wrapped__()


def test_where_no_thread_can_be_started_none_is_asked_for(monkeypatch):
    """GNU's runtime would end the process, which has a run to save."""
    start, left, looked = openmp.threading.Thread.start, [2], []

    def start_one_of_two(thread):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    def look(crowded):
        looked.append(crowded)
        if len(looked) == 2:
            raise StopIteration

    monkeypatch.setattr(openmp.threading.Thread, "start", start_one_of_two)
    assert openmp.can_start(2)
    assert not openmp.can_start(1)
    assert not openmp.give_way.__wrapped__()
    monkeypatch.setattr(openmp, "_until", look)
    monkeypatch.setattr(openmp, "asleep", lambda: pytest.fail("a team was asked for"))
    with pytest.raises(StopIteration):
        openmp._look_for_ever()
    assert looked == [True, True]


SETTLED = """
import torch
from sparse_ops.openmp import use_threads
a, b = torch.ones(1024, 256).bfloat16(), torch.ones(1024, 256).bfloat16()
for threads in (3, 2, 1):
    said = use_threads(threads)
    print(torch.get_num_threads(), bool((torch.nn.functional.linear(a, b) == 256).all()), said)
"""


@pytest.mark.parametrize(
    ("variable", "threads"),
    [
        ("OMP_THREAD_LIMIT=2", [2, 2, 1]),
        ("OMP_MAX_ACTIVE_LEVELS=0", [1, 1, 1]),
        ("OMP_THREAD_LIMIT=9", [3, 2, 1]),
        ("OMP_DYNAMIC=true", [3, 2, 1]),
    ],
)
def test_torch_computes_with_the_threads_that_it_gets(variable, threads):
    """torch said 3, and so did the report; bfloat16 products of oneDNN were wrong by half of their rows."""
    if openmp.runtime() is None:
        pytest.skip("needs an OpenMP runtime that can be asked")
    others = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    environment = {**others, **dict([variable.split("=")])}
    command = [sys.executable, "-c", SETTLED]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    lines = [f"threads: expected {n}, found {k}: {variable}" if k < n else "" for n, k in zip((3, 2, 1), threads)]
    assert done.stdout.splitlines() == [f"{k} True {line}" for k, line in zip(threads, lines)]
