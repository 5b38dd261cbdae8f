"""The small words of a report: numbers with their units, tables, pictures."""

from __future__ import annotations

from typing import Mapping, Sequence

Figures = Mapping[str, str]  # figure: file name beside report.md


def number(value: float | None, digits: int = 3) -> str:
    """A decimal with thousands separators, or "not measured"."""
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def scaled(value: float | None, unit: str) -> str:
    """1.23 G<unit>: three digits and a power of 1000."""
    if value is None:
        return "not measured"
    sizes = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    prefix, size = next((pair for pair in sizes if abs(value) >= pair[1]), ("", 1.0))
    value /= size
    return f"{value:.3g} {prefix}{unit}" if abs(value) < 999.5 else f"{value:,.0f} {prefix}{unit}"


def memory(value: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return "not measured" if value is None else f"{100 * value:.{digits}f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column left, the others right."""
    lines = [head, [":--"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(figures: Figures, name: str, caption: str) -> str:
    """A picture with its caption, the first sentence of which stands for it; empty where it was not drawn."""
    return f"![{caption.split('.')[0]}]({figures[name]})\n\n*{caption}*" if name in figures else ""


def join(*parts: str) -> str:
    """Paragraphs, without the empty ones."""
    return "\n\n".join(part for part in parts if part)
