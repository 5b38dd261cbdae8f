"""What a study is: rows of a table, each a config with settings over it, each run with every combination of a grid.

A file in configs/studies/ (or one of your own) has

    about: one sentence, the claim                  base: config that all rows start from
    settings: {section.key: value}                  over the base, for all rows
    rows: {LABEL: {settings: {...}, paper: 2.31}}   a line of the table each; paper: its masked-LM loss there
    grid: {run.seed: [0, 1, 2]}                     every row is run with each combination of these
    compare: [[LABEL, LABEL]]                       the first is claimed to end at the lower loss
    figures: [flops]                                of study/figures.py

A cell is one run of it: a row with one value of each key of the grid. Seeds are what the table averages over.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from ipu_bert.config import CONFIG_DIR, Config, ConfigError, as_dict, identity, load_config
from ipu_bert.config.written import beside, config_path, shortened
from ipu_bert.config.yaml_text import MOST_BYTES, Scalar, parse

STUDY_DIR = CONFIG_DIR / "studies"
SEED = "run.seed"
FIGURES = ("flops", "steps", "seconds", "explored", "grid")
_KEYS = ("about", "base", "settings", "rows", "grid", "compare", "figures")
_ROW_KEYS = ("settings", "paper")
_PLAIN = re.compile(r"[^a-z0-9.]+")
MOST_CELLS = 10_000
MOST_LETTERS = 100  # of a label: it is in names of files
# What a run reads and starts from is none of its identity: it may go on without. Values of it that no key has, either:
# the defaults, and the path of the studies here, whose results are older than keys that tell texts apart.
_IN_NO_KEY = {"data.path": ("", "data/books"), "model.init": ("",), "sparsity.init_pattern": ("magnitude",)}
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f|]")  # in a label they would end the line, or the column, of a table


@dataclass(frozen=True)
class Row:
    """A line of the table. paper: masked-LM loss [nats] that the paper has for it, None where it has none."""

    label: str
    paper: float | None


@dataclass(frozen=True)
class Cell:
    """One run. grid: its value of each key, as text. overrides: what is said to the program after --config `base`."""

    row: Row
    grid: Mapping[str, str]
    base: str
    overrides: tuple[str, ...]
    config: Config

    @property
    def key(self) -> str:
        """SHA-256 of all that decides the run's numbers: a finished run of this key is not repeated."""
        plain = as_dict(self.config)
        more = {name: plain[name.partition(".")[0]][name.partition(".")[2]] for name in _IN_NO_KEY}
        idle = {"data.path": self.config.data.source != "files", "sparsity.init_pattern": not self.config.model.init}
        more = {name: value for name, value in more.items() if value not in _IN_NO_KEY[name] and not idle.get(name)}
        return hashlib.sha256(json.dumps({**identity(self.config), **more}, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """The name of the run's folder: what it is, and eight digits of the key."""
        words = [self.row.label, *(f"{key.rpartition('.')[2]} {value}" for key, value in self.grid.items())]
        return "_".join(_PLAIN.sub("-", word.lower()).strip("-") for word in words) + f"_{self.key[:8]}"

    @property
    def title(self) -> str:
        """For a reader."""
        return ", ".join([self.row.label, *(f"{key.rpartition('.')[2]} {value}" for key, value in self.grid.items())])


@dataclass(frozen=True)
class Study:
    """A study whose every cell has a checked config. asked: what it was read by, its name or a file."""

    name: str
    about: str
    rows: tuple[Row, ...]
    grid: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    compare: tuple[tuple[str, str], ...]
    figures: tuple[str, ...]
    asked: str

    @property
    def told(self) -> list[str]:
        """What gave way in its rows, and what does nothing, a line each."""
        return self.gave_way + self.no_effect

    @property
    def gave_way(self) -> list[str]:
        """A line for each value that had to fit what was written: alone where it is so in all, else by row or run."""
        of: dict[str, dict[str, list[Cell]]] = {}  # by line and row
        for cell in self.cells:
            for line in cell.config.gave_way:
                of.setdefault(line, {}).setdefault(cell.row.label, []).append(cell)
        a_row, found = len(self.cells) // len(self.rows), []
        for line, rows in of.items():
            whole = {label for label, cells in rows.items() if len(cells) == a_row}
            if len(whole) == len(self.rows):
                found.append(f"gave way: {line}")
                continue
            for label, cells in rows.items():
                names = [label] if label in whole else [cell.title for cell in cells]
                found += [f"gave way: {name}: {line}" for name in names]
        return found

    @property
    def no_effect(self) -> list[str]:
        """A line for each setting in which runs differ and that does nothing in a row."""
        common = set.intersection(*(set(cell.overrides) for cell in self.cells))
        lines = []
        for cell in self.cells:
            own = {override.partition("=")[0] for override in cell.overrides if override not in common}
            lines += [f"no effect: {cell.row.label}: {x}" for x in cell.config.no_effect if x.partition("=")[0] in own]
        return list(dict.fromkeys(lines))


def read_study(name_or_file: str) -> Study:
    """A study of configs/studies/ or of a YAML file. Raises ConfigError with all that is wrong."""
    path = _path(name_or_file)
    tree = _tree(path)
    _only(path, tree, _KEYS, "")
    rows = _mapping(path, "rows", tree.get("rows"))
    if not rows:
        raise ConfigError([f"study {path}: rows: expected at least one, found none"])
    grid = {
        key: _texts(path, f"grid: {key}", values) for key, values in _mapping(path, "grid", tree.get("grid")).items()
    }
    for label in rows:
        if not 0 < len(label) <= MOST_LETTERS or _UNPRINTED.search(label):
            wanted = f"a label of up to {MOST_LETTERS} letters, without | and line breaks"
            raise ConfigError([f"study {path}: rows: expected {wanted}, found {label!r:.60}"])
    cells, errors = _cells(path, tree, rows, grid)
    found = Study(
        name=path.stem,
        about=_text(tree.get("about")) or path.stem,
        rows=tuple(dict.fromkeys(cell.row for cell in cells)),
        grid=grid,
        cells=tuple(cells),
        compare=tuple(_pair(path, pair, rows) for pair in _pairs(path, tree.get("compare"))),
        figures=_figures(path, tree.get("figures") or [], grid),
        asked=name_or_file,
    )
    twice = _twice(cells)
    errors += [f"study {path}: {a} and {b} are the same run: expected settings that differ" for a, b in twice]
    if errors:
        raise ConfigError(errors)
    return found


def _path(name_or_file: str) -> Path:
    named = STUDY_DIR / f"{name_or_file}.yaml"
    if "/" not in name_or_file and named.is_file():
        return named
    try:
        path = config_path(name_or_file)
    except ConfigError:
        known = ", ".join(sorted(path.stem for path in STUDY_DIR.glob("*.yaml")))
        raise ConfigError([f"study {name_or_file!r}: expected a .yaml file or one of {known}, found neither"]) from None
    if path.stem in (".", ".."):  # folders of results and of runs have its name
        raise ConfigError([f"study {path}: expected a name before .yaml, found {path.stem!r}"])
    return path


def _tree(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ConfigError([f"study {path}: expected at most {MOST_BYTES:,} bytes, found more"])
    try:
        tree = parse(data.decode("utf-8"))
    except ValueError as error:
        raise ConfigError([f"study {path}: {error}"]) from None
    return _mapping(path, "the file", tree)


def _cells(
    path: Path, tree: Mapping[str, Any], rows: Mapping[str, Any], grid: Mapping[str, Sequence[str]]
) -> tuple[list[Cell], list[str]]:
    """All cells in the order of the first value of the grid, then the second: one seed of everything comes first."""
    base, common = _base(path, tree), _settings(path, "settings", tree.get("settings"))
    if math.prod(map(len, grid.values())) * len(rows) > MOST_CELLS:
        raise ConfigError([f"study {path}: expected at most {MOST_CELLS:,} runs, found more"])
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    cells, errors = [], _both(path, "settings", common, grid)
    for combination in combinations:
        for label, row in rows.items():
            row = _mapping(path, f"rows: {label}", row)
            _only(path, row, _ROW_KEYS, f"rows: {label}: ")
            own = _settings(path, f"rows: {label}: settings", row.get("settings"))
            errors += _both(path, f"rows: {label}: settings", own, grid)
            line = Row(label, _number(path, label, row.get("paper")))
            settings = {**common, **own, **combination}
            overrides = tuple(f"{key}={value}" for key, value in settings.items())
            try:
                cells.append(Cell(line, combination, base, overrides, load_config(base, overrides)))
            except ConfigError as error:
                errors += [f"study {path}: {label}: {problem}" for problem in error.errors]
    return cells, list(dict.fromkeys(errors))


def _both(path: Path, where: str, settings: Mapping[str, str], grid: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each setting that the grid has, too: its value would never be run."""
    return [f"study {path}: {where}: {key}: expected it here or in grid, found both" for key in settings if key in grid]


def _base(path: Path, tree: Mapping[str, Any]) -> str:
    """What follows --config: a file beside the study's, or a name in configs/."""
    base = _text(tree.get("base"))
    if not base:
        raise ConfigError([f"study {path}: base: expected the name of a config, found none"])
    return str(beside(base, path, "study") or base)


def _twice(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    first: dict[str, Cell] = {}
    return [(first[cell.key].title, cell.title) for cell in cells if first.setdefault(cell.key, cell) is not cell]


def _pairs(path: Path, found: Any) -> list[Any]:
    if found is not None and not isinstance(found, list):
        raise ConfigError([f"study {path}: compare: expected a list of pairs of rows, found {found!r}"])
    return found or []


def _pair(path: Path, pair: Any, rows: Mapping[str, Any]) -> tuple[str, str]:
    labels = tuple(_text(label) for label in pair) if isinstance(pair, list) else ()
    if len(labels) != 2 or any(label not in rows for label in labels) or labels[0] == labels[1]:
        raise ConfigError([f"study {path}: compare: expected pairs of two rows, found {list(labels) or pair!r}"])
    return labels[0], labels[1]


def _figures(path: Path, found: Any, grid: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    names = tuple(_text(name) for name in found) if isinstance(found, list) else (_text(found),)
    if any(name not in FIGURES for name in names):
        raise ConfigError([f"study {path}: figures: expected some of {', '.join(FIGURES)}, found {list(names)}"])
    axes = {key: values for key, values in grid.items() if key != SEED}
    if "grid" in names and not (len(axes) == 1 and all(map(_is_above_zero, *axes.values()))):
        expected = f"one key of the grid beside {SEED}, with numbers above 0"
        raise ConfigError([f"study {path}: figures: grid: expected {expected}, found {shortened(axes)}"])
    return names


def _is_above_zero(text: str) -> bool:
    try:
        return 0.0 < float(text) < math.inf
    except ValueError:
        return False


def _settings(path: Path, where: str, found: Any) -> dict[str, str]:
    return {key: _text(value) for key, value in _mapping(path, where, found).items()}


def _texts(path: Path, where: str, found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not found:
        raise ConfigError([f"study {path}: {where}: expected a list of values, found {found!r}"])
    return tuple(_text(value) for value in found)


def _text(value: Any) -> str:
    """A value as it is written after `key=`."""
    if isinstance(value, Scalar):
        return value.text
    if isinstance(value, list):
        return json.dumps([_text(item) for item in value])
    return "" if value is None else str(value)


def _number(path: Path, label: str, found: Any) -> float | None:
    if found is None:
        return None
    try:
        number = float(str(found))
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ConfigError([f"study {path}: rows: {label}: paper: expected a number above 0, found {str(found)!r:.60}"])
    return number


def _mapping(path: Path, where: str, found: Any) -> dict[str, Any]:
    if found is None or (isinstance(found, Scalar) and found.value is None):
        return {}
    if not isinstance(found, dict):
        raise ConfigError([f"study {path}: {where}: expected keys and values, found {found!r}"])
    return found


def _only(path: Path, tree: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = [key for key in tree if key not in known]
    if unknown:
        raise ConfigError([f"study {path}: {where}{unknown[0]}: expected one of {', '.join(known)}"])
