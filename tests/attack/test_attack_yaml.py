"""Any text as a config file: a plan, or lines of error; nothing that is written twice is lost in silence."""

from __future__ import annotations

from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from test_attack_configs import assert_refused_or_planned

FRAGMENTS = (
    "!!int ''",
    "!!bool maybe",
    "!!timestamp x",
    "!!float x",
    "!!binary '?'",
    "!!set {a, b}",
    "!!omap [a]",
    "!!python/object/apply:os.getcwd []",
    "!unknown x",
    "2024-01-15",
    "12:30:45",
    "0o17",
    "1_0",
    ".inf",
    "9" * 400,
    "[" * 3000,
    "{a: " * 3000,
    "- " * 3000,
    "&a [*a]",
    "*nowhere",
    "{<<: 3}",
    "{<<: [{a: 1}]}",
    "? [a]",
    "[1, 2",
    "|",
    ">-",
    "'",
    '"\\xZZ"',
    "%YAML 9.9",
    "---",
    "...",
    "\t",
    "\0",
    "\ufeff",
    "\x85",
    "~",
    "=",
    "{1: 2}",
    "{}",
    "[]",
)
KEYS = ("run", "model", "sparsity", "data", "optim", "base", "<<", "layers", "seed", "name", "1", "~", "[a]", "? a")
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40)) + "run: *a40\n"


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A line as of a config: a key at some depth, and what may stand after it."""
    indent, key = draw(st.sampled_from(("", "  ", "    ", "\t"))), draw(st.sampled_from(KEYS))
    value = draw(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8)))
    return draw(st.sampled_from((f"{indent}{key}: {value}", f"{indent}{value}", f"{key}: {{{key}: {value}}}")))


@st.composite
def texts(draw: st.DrawFn, base: str) -> str:
    """Lines of their own, or between those of a config, of which some are twice or gone."""
    written = base.splitlines() if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(written)))
        kind = draw(st.sampled_from(("new", "new", "gone", "twice")))
        if kind == "new":
            written.insert(at, draw(lines()))
        elif kind == "gone":
            del written[at : at + 1]
        else:
            written[at:at] = written[at : at + 1]
    return "\n".join(written)


@given(st.data())
def test_any_text_is_planned_or_refused(small: Path, data: st.DataObject):
    attack(small, data.draw(texts(small.read_text())))


@given(st.text(max_size=60))
@example(LAUGHS)
@example("run: " + "[" * 3000)
@example("run: {name: 2024-01-15}")
@example("model: {layers: " + "9" * 400 + "}")
def test_any_characters_are_planned_or_refused(small: Path, text: str):
    attack(small, text)


@given(st.binary(max_size=30))
def test_any_bytes_are_planned_or_refused(small: Path, found: bytes):
    path = small.parent / "hostile.yaml"
    path.write_bytes(found)
    assert_refused_or_planned(["--config", str(path)], small.parent)


def attack(small: Path, text: str) -> bool:
    """Whether the text has a plan."""
    path = small.parent / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    return assert_refused_or_planned(["--config", str(path)], small.parent)


@given(st.data())
def test_nothing_that_is_written_twice_is_lost(small: Path, data: st.DataObject):
    """A section or a key, with the same value or another one, anywhere in the file."""
    written = small.read_text().splitlines()
    keys = [number for number, line in enumerate(written) if line.rstrip().endswith(":") or ": " in line]
    number = data.draw(st.sampled_from(keys))
    line = written[number]
    section = not line.startswith(" ")
    again = f"{line} {{}}" if section else line
    ends = [at for at in range(number + 1, len(written)) if not written[at].startswith(" ")] + [len(written)]
    at = data.draw(st.sampled_from(ends)) if section else data.draw(st.integers(number + 1, ends[0]))
    assert not attack(small, "\n".join([*written[:at], again, *written[at:]]))
