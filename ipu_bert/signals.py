"""Signals that ask a run to stop, and the status that it ends with: between steps nothing is lost."""

from __future__ import annotations

import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

# What schedulers send before they take a machine away; a system that lacks one cannot send it.
_NAMES = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT")
PREEMPTION = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
GO_ON_LATER = 75  # EX_TEMPFAIL of sysexits.h
_SAVING = 60.0  # seconds that a run which we began has to save when it is stopped


class InterruptedRunError(BaseException):
    """The run was asked to stop by a signal; `saved` is the newest checkpoint, None where there is none.

    status: of the process, 75 where a scheduler asked, and as shells have it for Ctrl-C. As KeyboardInterrupt, it is no
    Exception: what catches any error must not take it for one.
    """

    def __init__(self, number: int, saved: Path | None) -> None:
        self.number, self.saved = number, saved
        self.status = GO_ON_LATER if number in PREEMPTION else 128 + number
        what = f"saved is {saved}, go on with --resume" if saved else "nothing had to be saved, start it again"
        super().__init__(f"stopped by {signal.Signals(number).name}; {what}")


class StopRequest:
    """The signal that asked the run to stop, 0 before."""

    number = 0


@contextmanager
def noted() -> Iterator[StopRequest]:
    """Signals are noted, so that the step under way is finished and saved.

    A second Ctrl-C ends the process at once; schedulers may repeat theirs, and have SIGKILL.
    """
    request = StopRequest()

    def note(number: int, frame: Any) -> None:
        request.number = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    with _handled((signal.SIGINT, *PREEMPTION), note):
        yield request


@contextmanager
def raised() -> Iterator[None]:
    """Preemption raises InterruptedRunError at once, where nothing is lost by it; Ctrl-C stays KeyboardInterrupt."""

    def end(number: int, frame: Any) -> None:
        raise InterruptedRunError(number, None)

    with _handled(PREEMPTION, end):
        yield


@contextmanager
def delayed() -> Iterator[None]:
    """A signal waits until this has been done, as beginning a process and noting it for who stops it then."""
    with noted() as request:
        yield
    if request.number:
        signal.raise_signal(request.number)


@contextmanager
def unheeded() -> Iterator[None]:
    """Nothing asks this process to stop: it is about to, and has something to find out first."""
    with _handled((signal.SIGINT, *PREEMPTION), signal.SIG_IGN):
        yield


def stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask runs that this process began to save and end; end those that do not. Those that have ended are left alone."""
    with unheeded():  # a second signal, as schedulers send, may cut the waiting short, and leaves none untold
        for process in running:
            process.terminate()
    for process in running:
        try:
            process.wait(_SAVING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _handled(numbers: tuple[int, ...], handler: Callable[[int, Any], None] | signal.Handlers) -> Iterator[None]:
    """The handler for those signals which the process was not started to ignore, as nohup does with SIGHUP."""
    before = {number: signal.getsignal(number) for number in numbers}
    taken = [number for number in numbers if before[number] != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
