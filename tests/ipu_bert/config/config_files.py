"""Config files written for a test, and a config seen flat or by what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import pytest

from ipu_bert.config import Config, ConfigError, as_dict, load_config


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def errors_of(name_or_file: str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(name_or_file, overrides)
    return caught.value.errors


def flat(config: Config) -> dict[str, object]:
    return {f"{section}.{key}": value for section, keys in as_dict(config).items() for key, value in keys.items()}
