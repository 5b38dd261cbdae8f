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
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # what torch raises for it
            raise
        problem = f"out of memory: {error}"
    say(f"error: {' '.join(problem.splitlines())}", sys.stderr)
    return 2
