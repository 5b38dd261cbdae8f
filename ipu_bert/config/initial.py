"""What follows from `model.init`: the sizes of the model that a run starts from, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from ipu_bert.config.build import build
from ipu_bert.config.written import ConfigError, Written, read
from ipu_bert.hub_files import find_file
from ipu_bert.json_file import read_object
from ipu_bert.run_layout import CONFIG_FILE, STATE, newest, runs_of
from ipu_bert.settings import Config
from ipu_bert.sizes.config_json import shape_from_config

SIZES = ("layers", "hidden_size", "heads", "intermediate_size", "max_positions")
FOLLOWING = (*SIZES, "layer_norm_eps")  # of the section model
_TOKENIZERS = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True)
class Initial:
    """model: values of FOLLOWING. data: the tokenizer, and the vocabulary's size where it is known."""

    model: dict[str, Any]
    data: dict[str, Any]


def follow_initial(config: Config, written: Written) -> tuple[Written, list[str]]:
    """What was written, with what follows from `model.init` over it, and a line for each value that gave way.

    Raises ConfigError where the model cannot be read, or where the user wrote other sizes than it has. A config that
    says all of it, as that of a run's folder, is taken as it is. A run that goes on reads no model (begun.py).
    """
    if not config.model.init or {*(f"model.{key}" for key in FOLLOWING), "data.tokenizer"} <= written.users:
        return written, []
    try:
        initial = _read(config.model.init)
    except (ValueError, OSError) as error:
        raise ConfigError([f"model.init: {' '.join(str(error).split())}"]) from None
    return over_sizes(config, written, initial, config.model.init)


def over_sizes(config: Config, written: Written, initial: Initial, where: str) -> tuple[Written, list[str]]:
    """What was written, with the values of a model over it, and a line for each that gave way; where: its name.

    Raises ConfigError where the user wrote other sizes.
    """
    users = written.users
    errors, lines = [], []
    tree: dict[str, dict[str, Any]] = {"model": {}, "data": {}}
    for section, values in (("model", initial.model), ("data", initial.data)):
        for key, value in values.items():
            name, found = f"{section}.{key}", getattr(getattr(config, section), key)
            if name not in users:
                tree[section][key] = value
                if found not in (value, 0, ""):
                    owner = f"{written.shipped[name]}'s" if name in written.shipped else "the default"
                    lines.append(f"{name}: {value}, since {owner} {found} is not that of model.init")
            elif key in SIZES and found not in (value, 0):
                errors.append(f"{name}: expected {value}, as of model.init {where}, found {found}")
    if errors:
        raise ConfigError(errors)
    return written.over(tree, None), lines


def _read(where: str) -> Initial:
    """From a config.json, or from what a run, a branch, a checkpoint of them or a folder of these says of itself."""
    folder = Path(where)
    if (folder / CONFIG_FILE).is_file():
        return _of_run(read(folder / CONFIG_FILE).tree, [folder])
    found = newest(folder)
    if found is not None:
        return _of_run(_object(found / STATE).get("config", {}), runs_of(found))
    file = find_file(where, "config.json")
    if file is None:
        raise ValueError(f"{where}: expected a BERT with config.json, or a run, found neither")
    shape = shape_from_config(_object(file))
    names = [str(folder / name) for name in _TOKENIZERS if (folder / name).is_file()]
    data = {"tokenizer": names[0] if names else where, "vocab_size": shape.vocab_size}
    return Initial({key: getattr(shape, key) for key in FOLLOWING}, data)


def _object(path: Path) -> Mapping[str, Any]:
    """As `read_object`; an error of what is in the file names it."""
    try:
        return read_object(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _of_run(tree: Any, folders: Sequence[Path]) -> Initial:
    errors: list[str] = []
    model = build(tree if isinstance(tree, dict) else {}, errors).model
    if errors:
        raise ValueError(f"{folders[0]}: {errors[0]}")
    tokenizer = next((folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()), None)
    if tokenizer is None:
        raise ValueError(
            f"{folders[0]}: expected a run with its tokenizer.json, found none, as in those of older versions: write "
            "data.tokenizer and the sizes of the model yourself"
        )
    return Initial({key: getattr(model, key) for key in FOLLOWING}, {"tokenizer": str(tokenizer)})
