"""Configs: files and overrides in, a checked Config out; every error of a config is reported at once."""

from __future__ import annotations

from ipu_bert.config.begun import Begun
from ipu_bert.config.load import from_dict, load_config, not_as_written
from ipu_bert.config.plain import as_dict, config_hash, identity
from ipu_bert.config.reference import reference_page
from ipu_bert.config.written import CONFIG_DIR, ConfigError
from ipu_bert.settings import Config

__all__ = [
    "CONFIG_DIR",
    "Begun",
    "Config",
    "ConfigError",
    "as_dict",
    "config_hash",
    "from_dict",
    "identity",
    "load_config",
    "not_as_written",
    "reference_page",
]
