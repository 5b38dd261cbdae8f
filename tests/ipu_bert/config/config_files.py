"""Config files written for a test, and what is wrong with a config."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import pytest

from ipu_bert.config import ConfigError, load_config


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def errors_of(name_or_file: str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(name_or_file, overrides)
    return caught.value.errors
