"""Pictures of numbers, which are there without them: drawn by matplotlib's own settings, or not at all, in one line.

A matplotlibrc is for figures of its user's own: LaTeX or fonts that are asked for there may be missing here.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping

from sparse_ops import files

if TYPE_CHECKING:
    from sparse_ops.agg import Figure

Make = Callable[[], "Figure"]  # imports what draws itself, for matplotlib may be what is missing


class PictureError(ValueError):
    """A picture that cannot be drawn, in one line; `problem`: the line without the picture's name."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.problem = problem


def write_picture(path: Path, form: str, make: Make, dpi: int = 144) -> None:
    """Write a figure whole; form: png or svg, whatever the file is called. The same figure gives the same bytes.

    Raises PictureError for whatever fails while it is drawn (the package, its fonts or cache, memory), and OSError
    where it cannot be written.
    """
    files.write(path, drawn(path, form, make, dpi))


def drawn(path: Path, form: str, make: Make, dpi: int) -> bytes:
    """The bytes of a picture that will have this name. Raises PictureError."""
    how: dict[str, Any] = {"metadata": {"Date": None}} if form == "svg" else {"dpi": dpi}
    try:
        from sparse_ops.agg import FigureCanvasAgg, own_style

        with own_style({"svg.hashsalt": path.name}):  # of names within an SVG, else made at random
            figure, file = make(), io.BytesIO()
            FigureCanvasAgg(figure)
            figure.savefig(file, format=form, facecolor="white", **how)
        return file.getvalue()
    except Exception as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise PictureError(path, f"expected matplotlib to draw it, found {found:.300}") from error


def write_each(folder: Path, makes: Mapping[str, Make]) -> tuple[list[str], list[str]]:
    """Write all pictures of a report, by name, that can be drawn.

    Returns their names, and a line for each reason why others cannot. Raises OSError where one cannot be written.
    """
    written: list[str] = []
    failed: dict[str, list[str]] = {}
    for name, make in makes.items():
        try:
            write_picture(folder / name, Path(name).suffix[1:], make)
            written.append(name)
        except PictureError as error:
            failed.setdefault(error.problem, []).append(name)
    return written, [f"{', '.join(names)}: {problem}" for problem, names in failed.items()]
