"""From nested values to a Config whose values are right one by one."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, Collection, Mapping, get_type_hints

from ipu_bert.config.values import LARGEST_FLOAT32, at_home, convert, in_range, range_text, type_name
from ipu_bert.config.written import shortened
from ipu_bert.settings import Config


def build(tree: Mapping[str, Any], errors: list[str]) -> Config:
    """The defaults with the tree's values over them; what is wrong with a value is added to `errors`."""
    config = Config()
    known = [f.name for f in dataclasses.fields(config)]
    for section, values in tree.items():
        if section not in known:
            errors.append(f"config: unknown section {shortened(section)}{_nearest(section, known)}")
        elif not isinstance(values, dict):
            errors.append(f"config {section}: expected keys and values, found {shortened(values)}")
        else:
            _fill(section, getattr(config, section), values, errors)
    return config


def _fill(section: str, settings: Any, values: Mapping[str, Any], errors: list[str]) -> None:
    types = get_type_hints(type(settings))
    fields = {f.name: f for f in dataclasses.fields(settings)}
    for name, value in values.items():
        if name not in fields:
            unknown = shortened(f"{section}.{name}")[1:-1]  # without quotes, but on one line
            errors.append(f"config: unknown key {unknown}{_nearest(name, fields)}")
            continue
        try:
            converted = convert(value, types[name])
        except OverflowError:
            errors.append(f"{section}.{name}: expected a number below {LARGEST_FLOAT32:.2g}, found {shortened(value)}")
            continue
        except (TypeError, ValueError):
            errors.append(f"{section}.{name}: expected {type_name(types[name])}, found {shortened(value)}")
            continue
        limits = fields[name].metadata
        if not in_range(converted, limits):
            errors.append(f"{section}.{name}: expected {range_text(limits)}, found {shortened(value)}")
        setattr(settings, name, at_home(converted) if limits["place"] else converted)


def _nearest(name: object, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(name)[:100], known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
