"""YAML as configs use it: plain values that remember how they were written, no key twice, bounded in size and depth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

MOST_BYTES = 1 << 20
MOST_VALUES = 20_000
MOST_LEVELS = 10
MOST_DIGITS = 1000  # of a number, in characters as written: longer ones take seconds, and Python does not print them
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, repr=False)
class Scalar:
    """A number, true or false, or nothing, as YAML 1.1 reads it (`value`) and as it was written (`text`).

    A setting that is text takes the text: `0x10` is a name and not 16, `on` is not true; but `true` is no text.
    """

    text: str
    value: Any

    def __repr__(self) -> str:
        if self.value is None:
            return f"{self.text}, which YAML takes for nothing" if self.text else "nothing"
        return f"{self.text}, which YAML takes for {self.value!r}" if self.is_misread else repr(self.value)

    @property
    def is_misread(self) -> bool:
        """Whether it is another number than it looks: 010 is 8 in YAML 1.1, and 1:30 is 90."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            return False
        if ":" in self.text:
            return True
        return re.fullmatch("[-+]?[0-9_]+", self.text) is not None and int(self.text.replace("_", "")) != self.value


def parse(text: str) -> Any:
    """The value of a YAML text: dicts with text as keys, lists, text, and Scalars for all else; None where it is empty.

    Raises ValueError with the line for what is no YAML, would build an object, has a key twice, or is too large or too
    deep, where an alias counts as often as it is used.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"not YAML: {_where(error.problem_mark)}{what}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, _TextError):
            raise
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()
    return None if node is None else _Values().of(node, 1)


class _TextError(ValueError):
    """What parse refuses itself."""

    def __init__(self, mark: yaml.Mark, message: str) -> None:
        super().__init__(_where(mark) + message)


def _where(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}: " if mark else ""


def _check_size(level: int, values: int, mark: yaml.Mark) -> None:
    if level > MOST_LEVELS:
        raise _TextError(mark, f"expected at most {MOST_LEVELS} levels in one another, found more")
    if values > MOST_VALUES:
        raise _TextError(mark, f"expected at most {MOST_VALUES:,} values, aliases written out, found more")


class _Loader(yaml.SafeLoader):
    """SafeLoader that stops at a depth that no config has, long before Python does, and after so many nodes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._level += 1
        self._count += 1
        _check_size(self._level, self._count, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        return node


class _Values:
    """From nodes to values; an alias is the same node again, so a few lines may stand for any number of values."""

    def __init__(self) -> None:
        self._count = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def of(self, node: yaml.Node, level: int) -> Any:
        self._count += 1
        _check_size(level, self._count, node.start_mark)
        kind = node.tag[len(_TAG) :] if node.tag.startswith(_TAG) else ""
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, level)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.of(item, level + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "timestamp", "value"):
            return node.value
        if isinstance(node, yaml.ScalarNode) and kind in ("int", "float", "bool", "null"):
            return self._scalar(node)
        raise _TextError(node.start_mark, f"not YAML for plain values: the tag {node.tag!r}")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > MOST_DIGITS:
            return node.value
        try:
            return Scalar(node.value, self._scalars.construct_object(node))
        except (ValueError, KeyError, IndexError, OverflowError):  # `!!int ''`: PyYAML believes the tag
            return node.value

    def _mapping(self, node: yaml.MappingNode, level: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _TextError(key.start_mark, "expected text as a key, found a list or keys and values")
            if key.value in lines:
                raise _TextError(
                    key.start_mark, f"{key.value!r} again, which stands in line {lines[key.value]} already"
                )
            lines[key.value] = key.start_mark.line + 1
            if key.tag == _TAG + "merge":
                merged.update(self._merge(value, level))
            else:
                own[key.value] = self.of(value, level + 1)
        return {**merged, **own}

    def _merge(self, node: yaml.Node, level: int) -> dict[str, Any]:
        """What `<<` brings in: keys and values, or a list of them in which the first that has a key wins."""
        merged: dict[str, Any] = {}
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            self._count += 1
            _check_size(level, self._count, part.start_mark)
            if not isinstance(part, yaml.MappingNode):
                raise _TextError(part.start_mark, "expected keys and values after <<, found none")
            merged = {**self._mapping(part, level + 1), **merged}
        return merged
