"""Two profiles of attack: few examples, always the same, in `make test`; new ones, FUZZ of each, in `make fuzz`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import hypothesis
import pytest
import small_run

_QUICK = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # `make fuzz` makes what it finds small, too
hypothesis.settings.register_profile(
    "ci", max_examples=10, derandomize=True, database=None, deadline=None, phases=_QUICK
)
hypothesis.settings.register_profile(
    "fuzz", max_examples=int(os.environ.get("FUZZ", 0)) or 1, database=None, deadline=None, print_blob=True
)
hypothesis.settings.load_profile("fuzz" if "FUZZ" in os.environ else "ci")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config file of a small run, in a folder of its own with its text; module-wide, since examples share it."""
    return small_run.write(tmp_path_factory.mktemp("attack"))


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[None]:
    """Runs in this module write empty pictures: drawing a run's three takes longer than all else that it does."""
    with pytest.MonkeyPatch.context() as patch:
        small_run.blank_pictures(patch.setattr)
        yield
