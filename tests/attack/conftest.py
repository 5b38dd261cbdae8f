"""Two profiles of attack: a few examples, always the same, in `make test`; as many new ones as FUZZ says in `make fuzz`."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import small_run

_QUICK = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # `make fuzz` makes what it finds small, too
hypothesis.settings.register_profile(
    "ci", max_examples=25, derandomize=True, database=None, deadline=None, phases=_QUICK
)
hypothesis.settings.register_profile(
    "fuzz", max_examples=int(os.environ.get("FUZZ", 0)) or 1, database=None, deadline=None, print_blob=True
)
hypothesis.settings.load_profile("fuzz" if "FUZZ" in os.environ else "ci")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config file of a small run, in a folder of its own with its text; module-wide, since examples share it."""
    return small_run.write(tmp_path_factory.mktemp("attack"))
