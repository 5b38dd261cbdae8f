"""Processes that can be killed at any operation on a file, or find the disk full or read-only from there on.

A program with operations.cpp loaded (`start_watched`) imports everything once; a victim is a fork of it, which starts
in no time where a new process needs seconds.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable

HERE = Path(__file__).resolve().parent
MODES = ("before", "within", "full", "read-only", "once")  # as in operations.cpp
TRACEBACK = 70  # exit status of a victim that ended in one
_LIBRARY = "LD_PRELOAD"


@dataclass(frozen=True)
class Interruption:
    """What happens to a victim, at a file operation or at a moment.

    how: `before` or `within`: killed before the operation, or in the middle of a write and right after anything else;
    `full`, `read-only`: the disk is so from there on; `once`: that operation alone fails. at: which operation, from 1;
    0: none. signal, after: a signal and how many seconds after the start it comes; 0: none.
    """

    how: str
    at: int
    signal: int
    after: float

    def __str__(self) -> str:
        if self.signal:
            return f"{signal.Signals(self.signal).name} after {self.after:.3f} s"
        return f"{self.how} operation {self.at}" if self.at else "nothing"


def at(how: str, operation: int) -> Interruption:
    """Something at an operation."""
    return Interruption(how, operation, 0, 0.0)


def after(seconds: float, number: int) -> Interruption:
    """A signal at a moment."""
    return Interruption(MODES[0], 0, number, seconds)


NOTHING = at(MODES[0], 0)


@dataclass(frozen=True)
class Ended:
    """How a victim ended: exit status, or minus the signal; what it printed; its operations, `name result path`."""

    status: int
    printed: str
    operations: tuple[str, ...]
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether SIGKILL came before the end did."""
        return self.status == -signal.SIGKILL


def watched() -> bool:
    """Whether operations.cpp is loaded in this process."""
    return _LIBRARY in os.environ


def start_watched() -> int:
    """Run this program again with operations.cpp compiled and loaded; its exit status."""
    compiler = shutil.which("g++") or shutil.which("clang++") or "c++"
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "operations.so")
        source = str(HERE / "operations.cpp")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
        return subprocess.call([sys.executable, *sys.argv], env={**os.environ, _LIBRARY: library})


class Victim:
    """A fork of this process that does one thing and ends; its operations below `root` are watched."""

    def __init__(self, action: Callable[[], int], root: Path, what: Interruption) -> None:
        self._printed, self._log = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read in wait
        self._what, self._started = what, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        early = {signal.SIGTERM, signal.SIGINT}  # in the interpreter's own hooks after a fork Ctrl-C would be swallowed
        signal.pthread_sigmask(signal.SIG_BLOCK, early)
        self.pid = os.fork()
        if self.pid == 0:
            self._be(action, root)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, early)

    def _be(self, action: Callable[[], int], root: Path) -> None:
        status = TRACEBACK
        try:
            os.setpgid(0, 0)  # Ctrl-C is for the attacker
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
            for descriptor in (1, 2):
                os.dup2(self._printed.fileno(), descriptor)
            library, what = ctypes.CDLL(os.environ[_LIBRARY]), self._what
            log = self._log.fileno()
            library.operations_arm(str(root).encode(), ctypes.c_long(what.at), MODES.index(what.how), log)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # before here it would be a traceback of ours
            status = action()
        except SystemExit as ended:  # as the interpreter would end it
            status = ended.code if isinstance(ended.code, int) else 1
            print(ended.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self) -> Ended:
        """Wait for its end, with the signal in between that was planned."""
        ended = False
        while self._what.signal and not ended and time.monotonic() < self._started + self._what.after:
            time.sleep(0.002)
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if self._what.signal and not ended:
            os.kill(self.pid, self._what.signal)
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self._started
        operations = tuple(_text(self._log).splitlines())
        return Ended(os.waitstatus_to_exitcode(status), _text(self._printed), operations, seconds)


def run(action: Callable[[], int], root: Path, what: Interruption = NOTHING) -> Ended:
    """A victim, to its end."""
    return Victim(action, root, what).wait()


def run_and_import(action: Callable[[], int], root: Path) -> Ended:
    """A victim that nothing interrupts; whatever it imported is imported here, too, so that later ones need not."""
    with tempfile.NamedTemporaryFile("r") as names:

        def note() -> int:
            status = action()
            Path(names.name).write_text("\n".join(sorted(sys.modules)))
            return status

        ended = run(note, root)
        for name in names.read().split():
            with suppress(Exception):  # a module that was made up by another one
                importlib.import_module(name)
    return ended


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    with file:
        return file.read().decode("utf-8", "replace")
