"""What a user and the files in configs/ have written, and who wrote which key: YAML with `base:`, then overrides."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

from ipu_bert.config.plain import as_dict
from ipu_bert.config.values import is_unicode
from ipu_bert.config.yaml_text import MOST_BYTES, Scalar, parse
from ipu_bert.settings import Config

_PACKAGE = Path(__file__).resolve().parent.parent
MOST_BASES = 16
_ENDINGS = (".yaml", ".yml")
_MOST = 0.75  # of the settings are in a file that a run of an older version wrote down; in no other one
LONGEST = 900  # characters of a line of error


def _config_dir() -> Path:
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):  # installed; a checkout
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"{_PACKAGE}: expected the folder configs in it or beside it, found none: ipu_bert runs from a checkout or "
        "installed, not from a zip"
    )


CONFIG_DIR = _config_dir()


class ConfigError(ValueError):
    """A config that cannot be run; `errors` has one line for each thing wrong with it, none longer than LONGEST."""

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = [cut(error, LONGEST) for error in errors]
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True)
class Written:
    """Values as they were written.

    tree: the values by section and key, not yet checked. shipped: of the keys (`section.key`) that a file in configs/
    wrote last, which file; the other keys of the tree are the user's. recorded: of these, those that a run wrote down.
    """

    tree: dict[str, Any]
    shipped: dict[str, str]
    recorded: frozenset[str] = frozenset()

    def over(self, tree: Mapping[str, Any], file: str | None) -> Written:
        """These values with those of `tree` over them, from a file in configs/ or (None) from the user."""
        keys = keys_of(tree)
        shipped = {key: name for key, name in self.shipped.items() if key not in keys}
        shipped |= dict.fromkeys(keys, file) if file else {}
        return Written(_merge(self.tree, tree), shipped, self.recorded - keys)

    def override(self, text: str) -> Written:
        """These values with one `section.key=value` over them; ValueError when it has another form.

        A quoted value and a list are read as YAML; all else is, for a setting that is text, what stands after the `=`.
        """
        key, separator, value = text.partition("=")
        section, dot, name = key.partition(".")
        if not separator or not dot:
            raise ValueError(f"override {shortened(text)}: expected section.key=value")
        if not isinstance(self.tree.get(section, {}), dict):
            return self  # a section that is no section is reported with all else
        return self.over({section: {name: _override_value(value.strip())}}, None)

    @property
    def users(self) -> set[str]:
        """The keys, `section.key`, that the user wrote."""
        return keys_of(self.tree) - self.shipped.keys()

    @property
    def chosen(self) -> set[str]:
        """Of the keys that the user wrote, those that somebody chose: not those of a run's own config.yaml."""
        return self.users - self.recorded


def _override_value(text: str) -> Any:
    try:
        value = parse(text)
    except ValueError:
        return text
    if isinstance(value, Scalar):
        return Scalar(text, value.value)
    if value is None:
        return text or Scalar("", None)  # `#1` is a comment in a file alone
    return value if isinstance(value, list) or text[0] in "'\"!" else text


def config_path(name_or_file: str) -> Path:
    """The file that `--config` means; ConfigError with the nearest names when there is none."""
    if not is_unicode(name_or_file):
        raise ConfigError([f"config {shortened(name_or_file)}: expected a name in UTF-8, found other bytes"])
    path = Path(name_or_file)
    named = CONFIG_DIR / f"{name_or_file}.yaml"
    if path.suffix in _ENDINGS and os.path.isfile(path):
        return path
    if os.path.isfile(named):  # which is false, too, for a name that no file can have
        return named
    known = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml"))
    near = difflib.get_close_matches(name_or_file[:100], known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"configs/ has {', '.join(known)}"
    expected = "expected a name in configs/ or a .yaml file, found neither"
    raise ConfigError([f"config {shortened(name_or_file)}: {expected}; {hint}"])


def beside(base: str, path: Path, kind: str) -> Path | None:
    """The file that `base:` in the file `path` means, which is beside it; None where it may be a name in configs/.

    Raises ConfigError where one of that name is in the folder that the program works in, and none beside `path`: which
    of them is meant would depend on where a run is started. kind: of `path`, config or study.
    """
    named, is_file = path.parent / base, Path(base).suffix in _ENDINGS
    for one in (*[named] * is_file, path.parent / f"{base}.yaml"):
        if os.path.isfile(one):
            return one
    if is_file and os.path.isfile(base):
        elsewhere = f"{shortened(base)} in {os.getcwd()}, where the program works"
        raise ConfigError([f"{kind} {path}: base: expected a file in {path.parent}, beside it, found {elsewhere}"])
    return None


def read(path: Path, seen: tuple[Path, ...] = ()) -> Written:
    """A file's values over those of its base; ConfigError when it cannot be read as sections with keys."""
    path = path.resolve()
    if path in seen:
        raise ConfigError([f"config {path.name}: `base:` comes back to {path.name} itself"])
    if len(seen) > MOST_BASES:
        raise ConfigError(
            [f"config {path}: expected at most {MOST_BASES} files under one another by `base:`, found more"]
        )
    tree = _read_tree(path)
    base = tree.pop("base", None)
    if isinstance(base, Scalar):
        base = None if base.value is None else base.text
    under = Written({}, {})
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError([f"config {path}: base: expected the name of a config, found {shortened(base)}"])
        under = read(beside(base, path, "config") or _named_by(path, base), (*seen, path))
    shipped = CONFIG_DIR in path.parents
    found = under.over(tree, f"configs/{path.relative_to(CONFIG_DIR).with_suffix('')}" if shipped else None)
    return replace(found, recorded=found.recorded | keys_of(tree)) if _is_record(tree) else found


def _named_by(path: Path, base: str) -> Path:
    """As `config_path`, for `base:` in a file, which is named in the error."""
    try:
        return config_path(base)
    except ConfigError as error:
        raise ConfigError([f"config {path}: base: {line.removeprefix('config ')}" for line in error.errors]) from None


def _is_record(tree: Mapping[str, Any]) -> bool:
    """Whether a run wrote this file down: it has settings of every section, and most there are, but for newer ones."""
    sections = as_dict(Config())
    known = keys_of(sections)
    return tree.keys() >= sections.keys() and len(keys_of(tree) & known) > _MOST * len(known)


def _read_tree(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ConfigError([f"config {path}: expected at most {MOST_BYTES:,} bytes, found more"])
    try:
        tree = parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError([f"config {path}: not YAML: {error}"]) from None
    except ValueError as error:
        raise ConfigError([f"config {path}: {error}"]) from None
    if tree is None or (isinstance(tree, Scalar) and tree.value is None):
        return {}
    if not isinstance(tree, dict):
        kind = "list" if isinstance(tree, list) else "one value"
        raise ConfigError([f"config {path}: expected sections with keys, found {kind}"])
    return tree


def shortened(value: object) -> str:
    """The repr of a value, cut in the middle where it would fill more than a line."""
    return cut(repr(value), 120)


def cut(text: str, longest: int) -> str:
    """The text, cut in the middle where it is longer."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]} ... {text[-(longest // 6) :]} ({len(text):,} characters)"


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def keys_of(tree: Mapping[str, Any]) -> set[str]:
    return {f"{section}.{key}" for section, keys in tree.items() if isinstance(keys, dict) for key in keys}
