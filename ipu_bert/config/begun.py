"""What a run that goes on takes from its checkpoint: what it began from, and what follows from that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Collection, Mapping

from ipu_bert.config.build import build
from ipu_bert.config.initial import FOLLOWING, Initial, over_sizes
from ipu_bert.config.no_effect import text_of
from ipu_bert.config.written import ConfigError, Written
from ipu_bert.data.tokenizer import why_not_taken
from ipu_bert.settings import Config

STARTS = ("model.init", "sparsity.init_pattern")  # what acts at a run's start alone
_TAKEN = {"model": ("init", *FOLLOWING), "sparsity": ("init_pattern",), "data": ("tokenizer", "vocab_size")}


@dataclass(frozen=True)
class Begun:
    """What a run began with, as its checkpoint says it; JSON can hold all of it.

    name: what messages call the checkpoint. tree: its config's values by section and key. tokenizer: the run's own
    tokenizer.json, "" where there is none.
    """

    name: str
    tree: Mapping[str, Any]
    tokenizer: str

    def config(self) -> Config:
        """The settings of a start and what follows from them; all others are defaults, also those unknown today.

        Raises ConfigError where a value is none of its setting.
        """
        errors: list[str] = []
        sections = {name: self.tree.get(name) for name in _TAKEN}
        taken = {
            name: {key: section[key] for key in _TAKEN[name] if key in section}
            for name, section in sections.items()
            if isinstance(section, dict)
        }
        config = build(taken, errors)
        if errors:
            raise ConfigError([f"{self.name}: {error}" for error in errors])
        return config


def follow_begun(
    config: Config, written: Written, begun: Begun, users: Collection[str]
) -> tuple[Written, list[str], dict[str, str]]:
    """What was written with what the run began with over it, a line for each value that gave way, and, by key, one for
    each of the user's that does nothing any more.

    What the run began from is not read: it may be gone. Raises ConfigError where the user wrote other sizes.
    """
    was = begun.config()
    idle = {key: line for key in STARTS if key in users for line in _idle(key, config, was)}
    start = {"model": {"init": was.model.init}, "sparsity": {"init_pattern": was.sparsity.init_pattern}}
    lines: list[str] = []
    written = written.over(start, None)
    if was.model.init:
        data = {key: getattr(was.data, key) for key in _TAKEN["data"]}
        initial = Initial({key: getattr(was.model, key) for key in FOLLOWING}, data)
        written, lines = over_sizes(config, written, initial, was.model.init)
    written, gone = _own_tokenizer(written, begun, was)
    return written, [*lines, *gone], idle


def _idle(key: str, config: Config, was: Config) -> list[str]:
    section, _, name = key.partition(".")
    mine, began = (getattr(getattr(one, section), name) for one in (config, was))
    if mine == began:
        return []
    origin = {"model.init": f"from {began or 'random weights'}", "sparsity.init_pattern": f"with {began}"}
    return [f"{key}={text_of(mine)}, since the run began {origin[key]}"]


def _own_tokenizer(written: Written, begun: Begun, was: Config) -> tuple[Written, list[str]]:
    """With the run's own tokenizer.json, and a line, where the tokenizer that was given cannot be read any more."""
    given = build(written.tree, []).data.tokenizer
    if not (given and was.data.tokenizer and begun.tokenizer) or given == begun.tokenizer:
        return written, []
    problem = why_not_taken(given)
    if not problem:
        return written, []
    line = f"data.tokenizer: {begun.tokenizer}, which the run keeps, since {problem}"
    return written.over({"data": {"tokenizer": begun.tokenizer}}, None), [line]
