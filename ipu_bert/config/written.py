"""What a user and the files in configs/ have written, and who wrote which key: YAML with `base:`, then overrides."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import yaml

_PACKAGE = Path(__file__).resolve().parent.parent
CONFIG_DIR = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir())  # installed; a checkout


class ConfigError(ValueError):
    """A config that cannot be run; `errors` has one line for each thing wrong with it."""

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True)
class Written:
    """Values as they were written.

    tree: the values by section and key, not yet checked. shipped: of the keys (`section.key`) that a file in configs/
    wrote last, which file; the other keys of the tree are the user's.
    """

    tree: dict[str, Any]
    shipped: dict[str, str]

    def over(self, tree: Mapping[str, Any], file: str | None) -> Written:
        """These values with those of `tree` over them, from a file in configs/ or (None) from the user."""
        keys = _keys(tree)
        shipped = {key: name for key, name in self.shipped.items() if key not in keys}
        return Written(_merge(self.tree, tree), {**shipped, **dict.fromkeys(keys, file)} if file else shipped)

    def override(self, text: str) -> Written:
        """These values with one `section.key=value` over them; ValueError when it has another form."""
        key, separator, value = text.partition("=")
        section, dot, name = key.partition(".")
        if not separator or not dot:
            raise ValueError(f"override {text!r}: expected section.key=value")
        if not isinstance(self.tree.get(section, {}), dict):
            return self  # a section that is no section is reported with all else
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        return self.over({section: {name: parsed}}, None)

    @property
    def users(self) -> set[str]:
        """The keys, `section.key`, that the user wrote."""
        return _keys(self.tree) - self.shipped.keys()


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


def read(path: Path, seen: tuple[Path, ...] = ()) -> Written:
    """A file's values over those of its base; ConfigError when it cannot be read as sections with keys."""
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
    under = Written({}, {})
    if base is not None:
        beside = path.parent / f"{base}.yaml"
        under = read(beside if beside.is_file() else config_path(str(base)), (*seen, path))
    shipped = CONFIG_DIR in path.parents
    return under.over(tree, f"configs/{path.relative_to(CONFIG_DIR).with_suffix('')}" if shipped else None)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _keys(tree: Mapping[str, Any]) -> set[str]:
    return {f"{section}.{key}" for section, keys in tree.items() if isinstance(keys, dict) for key in keys}
