"""From a file and overrides, or from nested values, to a checked Config."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Collection, Mapping, Sequence

from ipu_bert.config.automatic import place_automatically
from ipu_bert.config.begun import Begun, follow_begun
from ipu_bert.config.build import build
from ipu_bert.config.checks import cross_checks, folder_checks, room_checks
from ipu_bert.config.give_way import give_way, too_few_predictions
from ipu_bert.config.initial import follow_initial
from ipu_bert.config.no_effect import no_effect
from ipu_bert.config.resolve import resolve
from ipu_bert.config.written import ConfigError, config_path, keys_of, read, shortened
from ipu_bert.settings import Config
from sparse_ops.files import there


def _from_its_start(folder: str) -> Begun | None:
    return None


def load_config(
    name_or_file: str, overrides: Sequence[str] = (), begun: Callable[[str], Begun | None] = _from_its_start
) -> Config:
    """The checked config of a name in configs/ or a YAML file, with `section.key=value` overrides after it.

    What the user did not write gives way to what they wrote (give_way.py), and `gave_way` of the config says where;
    `no_effect` says what of theirs does nothing (no_effect.py). begun: of a run's folder, what the run that goes on
    there began with, None where it starts. Raises ConfigError with all that is wrong.
    """
    path = config_path(name_or_file)
    written = read(path)
    errors: list[str] = []
    for override in overrides:
        try:
            written = written.override(override)
        except ValueError as error:
            errors.append(str(error))
    users = written.chosen
    config = build(written.tree, errors)
    errors += folder_checks(config)
    idle: dict[str, str] = {}
    if not errors:
        _name(config, path.stem)
        errors += room_checks(config)
    if not errors:
        began = begun(config.run.dir)
        if began is None:
            written, followed = follow_initial(config, written)
        else:
            written, followed, idle = follow_begun(config, written, began, users)
        config = build(written.tree, errors)
        config.gave_way = [*_said_again(overrides), *followed, *give_way(config, written)]
    config = _checked(config, path.stem, errors, written.users)
    config.gave_way += too_few_predictions(config)
    config.no_effect = [*idle.values(), *no_effect(config, users - idle.keys())]
    return config


def _said_again(overrides: Sequence[str]) -> list[str]:
    """A line for each override that a later one of its key takes the place of, as where a script adds its caller's."""
    last = {override.partition("=")[0]: override for override in overrides}
    lost = [override for override in dict.fromkeys(overrides) if override != last[override.partition("=")[0]]]
    return [f"{shortened(one)}, since {shortened(last[one.partition('=')[0]])} comes after it" for one in lost]


def not_as_written(config: Config) -> list[str]:
    """A line for each value that gave way and for each of the user's that does nothing, for commands to say."""
    return [*(f"gave way: {line}" for line in config.gave_way), *(f"no effect: {line}" for line in config.no_effect)]


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The checked config of nested plain values, as `as_dict` gives them; nothing gives way.

    Raises ConfigError with all that is wrong.
    """
    if not isinstance(tree, dict):
        raise ConfigError([f"config: expected sections with keys, found {tree!r:.60}"])
    errors: list[str] = []
    return _checked(build(tree, errors), "run", errors, keys_of(tree))


def _checked(config: Config, name: str, errors: list[str], users: Collection[str]) -> Config:
    """The config with all that follows written out; users: the keys that stay as they are."""
    _name(config, name)
    if not errors:
        resolve(config)
        errors += cross_checks(config)
    if not errors and config.engine.name == "ipu" and config.ipu.layers_per_ipu == "auto":
        errors += place_automatically(config, users) or cross_checks(config)  # what was chosen is written out now
    if errors:
        raise ConfigError(errors)
    return config


def _name(config: Config, name: str) -> None:
    config.run.name = config.run.name or name
    config.run.dir = there(config.run.dir or str(Path("runs") / config.run.name))
