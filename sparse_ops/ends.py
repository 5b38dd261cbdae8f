"""How a command ends: in one line of error and a status, for everything that its user can cause."""

from __future__ import annotations

import sys
from typing import Callable

from sparse_ops.files import in_words
from sparse_ops.saying import say


def with_one_line(act: Callable[[], object]) -> int:
    """Do it; 0, or 2 after one line that says what is wrong, or 130 after Ctrl-C. A fault of ours stays a traceback."""
    try:
        act()
        return 0
    except KeyboardInterrupt:
        say("stopped", sys.stderr)
        return 130
    except OSError as error:
        problem = in_words(error)
    except (ValueError, ArithmeticError) as error:
        problem = str(error)
    except BaseException as error:  # a panic of tokenizers is no Exception
        problem = out_of(error)
        if not problem:
            raise
    say(f"error: {' '.join(problem.splitlines())}", sys.stderr)
    return 2


def out_of(error: BaseException) -> str:
    """What this process was refused by the machine, memory or a thread, in words; empty for any other error."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):  # what torch raises for it
        return f"out of memory: {error}"
    lacking = any(words in str(error) for words in ("start new thread", "ThreadPoolBuildError"))
    return f"out of threads: {error}" if lacking else ""
