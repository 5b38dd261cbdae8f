"""What asks a run to stop: noted or raised, ended with the status that says what to do next."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

import run_pretraining
from ipu_bert import checkpoint
from ipu_bert.signals import InterruptedRunError, delayed, noted, raised

PROGRAM = Path(run_pretraining.__file__)
STATUS = {
    signal.SIGTERM: 75,
    signal.SIGHUP: 75,
    signal.SIGUSR1: 75,
    signal.SIGQUIT: 75,
    signal.SIGINT: 130,
}


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Whatever the tests themselves were started to ignore, as nohup does with SIGHUP."""
    default = {number: signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL for number in STATUS}
    before = {number: signal.signal(number, handler) for number, handler in default.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_is_noted_and_has_its_status(number):
    before = signal.getsignal(number)
    with noted() as request:
        assert request.number == 0
        os.kill(os.getpid(), number)
        assert request.number == number
    assert signal.getsignal(number) == before
    assert InterruptedRunError(number, Path("x")).status == STATUS[number]


def test_schedulers_may_repeat_themselves_and_a_second_ctrl_c_ends_at_once():
    with noted() as request:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert request.number == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_where_nothing_is_lost_preemption_ends_at_once():
    with pytest.raises(InterruptedRunError, match="stopped by SIGUSR1; nothing had to be saved"), raised():
        os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt), raised():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, InterruptedRunError), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_waits_until_what_must_be_whole_is_done(number, error):
    """A process that had been begun and not been noted went on by itself."""
    done = []

    def act() -> None:
        with raised():
            with delayed():
                os.kill(os.getpid(), number)
                time.sleep(0.01)
                done.append("noted")
            done.append("after it")

    with pytest.raises(error):
        act()
    assert done == ["noted"]


@pytest.mark.parametrize("manager", [noted, raised])
def test_what_the_process_was_started_to_ignore_stays_ignored(manager):
    """As nohup does with SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with manager():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_run_whose_terminal_is_closed_saves_and_says_go_on_later(tiny, tmp_path):
    """The program writes to a terminal of which nobody holds the other end any more."""
    tiny()
    outer, inner = os.openpty()
    command = [sys.executable, str(PROGRAM), "--config", str(tmp_path / "tiny.yaml"), "train.steps=9999"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    with started(command, stdin=inner, stdout=inner, stderr=inner, start_new_session=True) as process:
        os.close(inner)
        os.set_blocking(outer, False)
        deadline = time.monotonic() + 120
        while not (metrics.exists() and '"train"' in metrics.read_text()) and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                os.read(outer, 1 << 16)
            time.sleep(0.05)
        os.close(outer)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=120) == 75
    step, saved = checkpoint.complete(tmp_path / "run" / "checkpoints")[-1]
    assert 0 < step < 9999
    checkpoint.verify(saved)
