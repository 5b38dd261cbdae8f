"""Where tests of native kernels are left out: where there is no compiler, and not where the kernels do not compile."""

from __future__ import annotations

import pytest

from sparse_ops import build, native


def _has_compiler() -> bool:
    try:
        build.find_compiler()
    except build.BuildError:
        return False
    return True


HAS_COMPILER = _has_compiler()
HAS_KERNELS = HAS_COMPILER or native.available()  # which a wheel may have brought
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler here")
needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="no C++ compiler here")
# The instruction levels that can be tried here, the processor's best last.
LEVELS = native.LEVELS[: native._library().sparse_ops_best_level() + 1] if HAS_KERNELS else ()
