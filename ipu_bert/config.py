"""YAML and key=value overrides to a checked Config; every error of a config is reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import operator
from pathlib import Path
from typing import (
    Any,
    Callable,
    Iterator,
    Mapping,
    Sequence,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from ipu_bert.data.source import source_names
from ipu_bert.dynsparse.grow import GROW_RULES
from ipu_bert.settings import Config, SparsitySettings
from ipu_bert.sizes.distribution import match_weights
from ipu_bert.sizes.weights import encoder_weights

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"


class ConfigError(ValueError):
    """A config that cannot be run; `errors` has one line for each thing wrong with it."""

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


def load_config(name_or_file: str, overrides: Sequence[str] = ()) -> Config:
    """The checked config of a name in configs/ or a YAML file, with `section.key=value` overrides after it.

    Raises ConfigError with all that is wrong.
    """
    path = config_path(name_or_file)
    tree = _read(path, ())
    errors: list[str] = []
    for override in overrides:
        _override(tree, override, errors)
    return _checked(_build(tree, errors), path.stem, errors)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The checked config of nested plain values, as `as_dict` gives them."""
    errors: list[str] = []
    return _checked(_build(tree, errors), "run", errors)


def _checked(config: Config, name: str, errors: list[str]) -> Config:
    config.run.name = config.run.name or name
    config.run.dir = config.run.dir or str(Path("runs") / config.run.name)
    if not errors:
        _resolve(config)
        errors += _cross_checks(config)
    if errors:
        raise ConfigError(errors)
    return config


def config_path(name_or_file: str) -> Path:
    """The file that `--config` means; ConfigError with the nearest names when there is none."""
    path = Path(name_or_file)
    named = CONFIG_DIR / f"{name_or_file}.yaml"
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    if named.is_file():
        return named
    known = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml"))
    near = difflib.get_close_matches(name_or_file, known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"configs/ has {', '.join(known)}"
    raise ConfigError([f"config {name_or_file!r}: expected a name in configs/ or a .yaml file, found neither; {hint}"])


def as_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain values."""
    return dataclasses.asdict(config)


def config_hash(config: Config) -> str:
    """SHA-256 of the settings that decide the numbers of a run, `identity` below."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def identity(config: Config) -> dict[str, Any]:
    """The settings that two runs must share for one to continue the other, as `section.key: value`.

    Left out: names and folders, logging, how often to evaluate and save, where to stop, threads and kernels.
    """
    free = {"run.name", "run.dir", "train.stop_at", "data.dir", "data.workers", "data.path"}
    flat = {f"{s}.{k}": v for s, keys in as_dict(config).items() for k, v in keys.items()}
    return {
        key: value
        for key, value in flat.items()
        if key not in free and key.split(".")[0] not in ("eval", "checkpoint", "engine", "ipu", "log")
    }


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file's nested values over those of its base."""
    path = path.resolve()
    if path in seen:
        raise ConfigError([f"config {path.name}: `base:` comes back to {path.name} itself"])
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"config {path}: not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"config {path}: expected sections with keys, found {type(tree).__name__}"])
    base = tree.pop("base", None)
    if base is None:
        return tree
    beside = path.parent / f"{base}.yaml"
    return _merge(_read(beside if beside.is_file() else config_path(str(base)), (*seen, path)), tree)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _override(tree: dict[str, Any], text: str, errors: list[str]) -> None:
    key, separator, value = text.partition("=")
    section, dot, name = key.partition(".")
    if not separator or not dot:
        errors.append(f"override {text!r}: expected section.key=value")
        return
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    keys = tree.setdefault(section, {})
    if isinstance(keys, dict):
        keys[name] = parsed


def _build(tree: Mapping[str, Any], errors: list[str]) -> Config:
    config = Config()
    for section, values in tree.items():
        if not hasattr(config, section):
            errors.append(f"config: unknown section {section!r}{_nearest(section, vars(config))}")
        elif not isinstance(values, dict):
            errors.append(f"config {section}: expected keys and values, found {values!r}")
        else:
            _fill(section, getattr(config, section), values, errors)
    return config


def _fill(section: str, settings: Any, values: dict[str, Any], errors: list[str]) -> None:
    types = get_type_hints(type(settings))
    fields = {f.name: f for f in dataclasses.fields(settings)}
    for name, value in values.items():
        if name not in fields:
            errors.append(f"config: unknown key {section}.{name}{_nearest(str(name), fields)}")
            continue
        try:
            converted = _convert(value, types[name])
        except (TypeError, ValueError):
            errors.append(f"{section}.{name}: expected {_type_name(types[name])}, found {value!r}")
            continue
        limits = fields[name].metadata
        if not _in_range(converted, limits):
            errors.append(f"{section}.{name}: expected {_range_text(limits)}, found {value!r}")
        setattr(settings, name, converted)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _convert(value: Any, wanted: Any) -> Any:
    """The value as the wanted type; YAML reads 1e-4 as text, which is a number all the same."""
    origin = get_origin(wanted)
    if origin is Union:
        for option in get_args(wanted):
            try:
                return _convert(value, option)
            except (TypeError, ValueError):
                continue
        raise TypeError
    if wanted is type(None):
        if value is None:
            return None
        raise TypeError
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_convert(item, get_args(wanted)[0]) for item in items]
    if wanted is bool or isinstance(value, bool):
        if wanted is bool and isinstance(value, bool):
            return value
        raise TypeError
    if wanted is float and isinstance(value, (int, float, str)):
        number = float(value)
        if math.isnan(number):
            raise ValueError
        return number
    if wanted is int and isinstance(value, (int, float, str)):
        number = float(value) if isinstance(value, str) else value
        if number == int(number):
            return int(number)
        raise ValueError
    if wanted is str and isinstance(value, (str, int, float)):
        return str(value)
    raise TypeError


def _type_name(wanted: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    if get_origin(wanted) is Union:
        return " or ".join(_type_name(option) for option in get_args(wanted))
    if get_origin(wanted) is list:
        return f"a list of {_type_name(get_args(wanted)[0])}"
    return names[wanted]


_LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "low": ("at least", operator.ge),
    "high": ("at most", operator.le),
    "above": ("more than", operator.gt),
    "below": ("less than", operator.lt),
}


def _in_range(value: Any, limits: Mapping[str, Any]) -> bool:
    if limits["choices"] is not None:
        return value in limits["choices"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return all(test(value, limits[key]) for key, (_, test) in _LIMITS.items() if limits[key] is not None)


def _range_text(limits: Mapping[str, Any]) -> str:
    """What a field allows, in words; empty when anything of its type."""
    if limits["choices"] is not None:
        return "one of " + ", ".join(map(str, limits["choices"]))
    return " and ".join(f"{words} {limits[key]}" for key, (words, _) in _LIMITS.items() if limits[key] is not None)


def _resolve(config: Config) -> None:
    """Write out the defaults that follow from other settings."""
    model, train = config.model, config.train
    model.heads = model.heads or max(1, model.hidden_size // 64)
    model.intermediate_size = model.intermediate_size or 4 * model.hidden_size
    train.micro_batch_size = train.micro_batch_size or train.batch_size


def _cross_checks(config: Config) -> Iterator[str]:
    """What is wrong between settings that are right one by one."""
    model, sparsity, optim, data, train = config.model, config.sparsity, config.optim, config.data, config.train
    assert train.micro_batch_size is not None
    if model.hidden_size % model.heads:
        yield f"model.heads: expected a divisor of hidden_size {model.hidden_size}, found {model.heads}"
    if data.sequence_length > model.max_positions:
        limit = f"at most model.max_positions {model.max_positions}"
        yield f"data.sequence_length: expected {limit}, found {data.sequence_length}"
    if data.max_predictions > data.sequence_length - 3:
        yield f"data.max_predictions: expected at most {data.sequence_length - 3}, found {data.max_predictions}"
    if train.batch_size % train.micro_batch_size:
        divisor = f"a divisor of train.batch_size {train.batch_size}"
        yield f"train.micro_batch_size: expected {divisor}, found {train.micro_batch_size}"
    if train.stop_at is not None and train.stop_at > train.steps:
        yield f"train.stop_at: expected at most train.steps {train.steps}, found {train.stop_at}"
    if optim.warmup_steps > train.steps:
        yield f"optim.warmup_steps: expected at most train.steps {train.steps}, found {optim.warmup_steps}"
    if isinstance(optim.lr, str) and optim.lr != "auto":
        yield f"optim.lr: expected a number or auto, found {optim.lr!r}"
    elif not isinstance(optim.lr, str) and optim.lr <= 0:
        yield f"optim.lr: expected more than 0, found {optim.lr}"
    if data.source not in source_names():
        yield f"data.source: expected one of {', '.join(source_names())}, found {data.source!r}"
    if data.source == "files" and not data.path:
        yield "data.path: expected a file or folder with source files, found nothing"
    if sparsity.method != "dense":
        yield from _sparsity_checks(config)
    yield from _engine_checks(config)


def _engine_checks(config: Config) -> Iterator[str]:
    compute, ipu, train = config.precision.compute, config.ipu, config.train
    if config.engine.name != "ipu":
        if compute == "float16":
            yield "precision.compute: expected float32 or bfloat16 on the torch engine, found float16"
        return
    assert train.micro_batch_size is not None
    ipu.layers_per_ipu = ipu.layers_per_ipu or [config.model.layers]
    factor = ipu.replicas * train.micro_batch_size
    ipu.gradient_accumulation = ipu.gradient_accumulation or max(1, train.batch_size // factor)
    if compute == "bfloat16":
        yield "precision.compute: expected float16 or float32 on the ipu engine, found bfloat16"
    if sum(ipu.layers_per_ipu) != config.model.layers or min(ipu.layers_per_ipu) < 0:
        made = f"{ipu.layers_per_ipu}, which make {sum(ipu.layers_per_ipu)}"
        yield f"ipu.layers_per_ipu: expected counts that add up to model.layers {config.model.layers}, found {made}"
    if factor * ipu.gradient_accumulation != train.batch_size:
        yield (
            f"train.batch_size: expected ipu.replicas {ipu.replicas} x ipu.gradient_accumulation "
            f"{ipu.gradient_accumulation} x train.micro_batch_size {train.micro_batch_size} = "
            f"{factor * ipu.gradient_accumulation}, found {train.batch_size}"
        )
    if len(ipu.available_memory) not in (1, len(ipu.layers_per_ipu)):
        yield f"ipu.available_memory: expected 1 or {len(ipu.layers_per_ipu)} shares, found {len(ipu.available_memory)}"
    if not all(0.0 < share <= 1.0 for share in ipu.available_memory):
        yield f"ipu.available_memory: expected shares in (0, 1], found {ipu.available_memory}"
    if config.optim.group_lasso:
        yield f"optim.group_lasso: expected 0 on the ipu engine, found {config.optim.group_lasso}"
    if config.sparsity.method == "dynsparse" and config.sparsity.growth == "gradient":
        yield (
            "sparsity.growth: expected random on the ipu engine, found gradient: a dense gradient would have to be "
            "computed "
            "there in every step"
        )


def _sparsity_checks(config: Config) -> Iterator[str]:
    model, sparsity = config.model, config.sparsity
    sizes = (("model.hidden_size", model.hidden_size), ("model.intermediate_size", model.intermediate_size))
    undivided = [(name, size) for name, size in sizes if size % sparsity.block_size]
    for name, size in undivided:
        yield f"{name}: expected a multiple of sparsity.block_size {sparsity.block_size}, found {size}"
    if not undivided:
        yield from _sparse_weight_checks(config)
    if sparsity.growth not in GROW_RULES:
        yield f"sparsity.growth: expected one of {', '.join(GROW_RULES)}, found {sparsity.growth!r}"
    if sparsity.method == "dynsparse":
        if sparsity.start >= sparsity.stop:
            yield f"sparsity.start: expected less than sparsity.stop {sparsity.stop}, found {sparsity.start}"
        elif sparsity.updates > (sparsity.stop - sparsity.start) * config.train.steps:
            yield (
                f"sparsity.updates: expected at most one per step, {config.train.steps} step(s) from start to stop, "
                f"found {sparsity.updates}"
            )


def _sparse_weight_checks(config: Config) -> Iterator[str]:
    """Whether the names match weights and every sparse weight keeps a block; the first that does not is reported."""
    try:
        match_weights(encoder_weights(config.model, SparsitySettings(method="dense")), config.sparsity.layers)
    except ValueError as error:
        yield f"sparsity.layers: {error}"
        return
    try:
        encoder_weights(config.model, config.sparsity)
    except ValueError as error:
        yield f"sparsity.sparsity: {error}"


def reference_page() -> str:
    """The text of docs/config.md."""
    lines = [
        "# Settings",
        "",
        "Made from `ipu_bert/settings.py` by `python -m ipu_bert.config`. A config file has these sections;",
        "`base: NAME` inherits from another file; `section.key=value` after `--config` overrides.",
    ]
    config = Config()
    for section in dataclasses.fields(config):
        settings = getattr(config, section.name)
        types = get_type_hints(type(settings))
        lines += ["", f"## {section.name}", "", settings.__doc__.strip(), ""]
        lines += ["| key | default | what it is |", "|---|---|---|"]
        for f in dataclasses.fields(settings):
            kind = ", ".join(filter(None, (_type_name(types[f.name]), _range_text(f.metadata))))
            default = yaml.safe_dump(getattr(settings, f.name), default_flow_style=True).split("\n")[0].strip()
            lines.append(f"| `{section.name}.{f.name}` | `{default}` | {f.metadata['text']} ({kind}) |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference_page(), end="")
