"""How a command ends: in one line of error and a status, for everything that its user can cause."""

from __future__ import annotations

import sys
import traceback
from typing import Callable

from sparse_ops.files import in_words
from sparse_ops.saying import printable, say

_OURS = ("__main__", "sparse_ops", "ipu_bert")


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
    say(f"error: {printable(' '.join(problem.splitlines()))}", sys.stderr)
    return 2


def out_of(error: BaseException) -> str:
    """What this process lacks, memory, a thread or a package of others, in words; empty for any other error."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):  # what torch raises for it
        return f"out of memory: {error}"
    if isinstance(error, ImportError):
        package = _not_imported(error)
        return f"expected the package {package}, found that it cannot be imported: {error}" if package else ""
    lacking = any(words in str(error) for words in ("start new thread", "ThreadPoolBuildError"))
    return f"out of threads: {error}" if lacking else ""


def _not_imported(error: ImportError) -> str:
    """The package that we import and that is missing or broken; empty where it is ours.

    One that is broken may say nothing of itself: it is the first in the traceback after our own last line.
    """
    stdlib = getattr(sys, "stdlib_module_names", ("importlib",))  # of its modules importlib is always between
    found = (error.name or "").partition(".")[0]
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in _OURS:
            break
        if package not in stdlib:
            found = package
    return "" if found in (*_OURS, *stdlib) else found
