"""One value of a config: its conversion to the type of its setting, its range, and both in words."""

from __future__ import annotations

import math
import operator
import os
import re
from typing import Any, Callable, Mapping, Union, get_args, get_origin

from ipu_bert.config.yaml_text import Scalar

LARGEST_FLOAT32 = 3.4028234663852886e38
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def convert(value: Any, wanted: Any) -> Any:
    """The value as the wanted type; YAML reads 1e-4 as text, which is a number all the same, and `none`, which is none
    where a setting may be that and is not text.

    Raises TypeError or ValueError when it is not one, or where YAML reads another number than anybody else, and
    OverflowError for a number that float32 cannot hold.
    """
    origin = get_origin(wanted)
    if origin is Union:
        return _convert_to_any(value, get_args(wanted))
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [convert(item, get_args(wanted)[0]) for item in items]
    if isinstance(value, Scalar):
        if value.is_misread and wanted is not str:
            raise ValueError
        value = value.text if wanted is str and _is_text(value) else value.value
    if wanted is type(None) and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    if wanted is bool and isinstance(value, bool):
        return value
    if isinstance(value, bool):
        raise TypeError
    if wanted is float and isinstance(value, (int, float, str)):
        number = float(value)
        if math.isnan(number):
            raise ValueError
        if abs(number) > LARGEST_FLOAT32:
            raise OverflowError
        return number
    if wanted is int and isinstance(value, (int, float, str)):
        return _whole(value)
    if wanted is str and isinstance(value, (str, int, float)):
        text = str(value)
        if _CONTROL.search(text) or not is_unicode(text):
            raise ValueError
        return text
    raise TypeError


def _is_text(value: Scalar) -> bool:
    """Whether it stands for itself where text is wanted: `no` is a language; nobody means a folder by `true`."""
    return value.value is not None and value.text.lower() not in ("true", "false")


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: bytes of a command line that are none become lone surrogates."""
    return not _SURROGATE.search(text)


def _convert_to_any(value: Any, options: tuple[Any, ...]) -> Any:
    """As the first of the types that can hold it."""
    for option in options:
        try:
            return convert(value, option)
        except (TypeError, ValueError, OverflowError):
            continue
    raise TypeError


def _whole(value: int | float | str) -> int:
    if isinstance(value, str):
        try:
            return int(value)  # to the last digit
        except ValueError:
            value = float(value)  # 1e3
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)


def at_home(place: str | list[str]) -> str | list[str]:
    """Files or folders with the home folder for a `~` before them: no shell replaces one within section.key=value."""
    return [os.path.expanduser(one) for one in place] if isinstance(place, list) else os.path.expanduser(place)


def type_name(wanted: Any) -> str:
    """A type in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    if get_origin(wanted) is Union:
        return " or ".join(type_name(option) for option in get_args(wanted))
    if get_origin(wanted) is list:
        return f"a list of {type_name(get_args(wanted)[0])}"
    return names[wanted]


_LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "low": ("at least", operator.ge),
    "high": ("at most", operator.le),
    "above": ("more than", operator.gt),
    "below": ("less than", operator.lt),
}


def in_range(value: Any, limits: Mapping[str, Any]) -> bool:
    """Whether a field with these limits (`settings.setting`) allows a value of its type."""
    if limits["choices"] is not None:
        return value in limits["choices"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return all(test(value, limits[key]) for key, (_, test) in _LIMITS.items() if limits[key] is not None)


def range_text(limits: Mapping[str, Any]) -> str:
    """What a field allows, in words; empty when anything of its type."""
    if limits["choices"] is not None:
        return "one of " + ", ".join(map(str, limits["choices"]))
    return " and ".join(f"{words} {limits[key]}" for key, (words, _) in _LIMITS.items() if limits[key] is not None)
