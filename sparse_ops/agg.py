"""What of matplotlib draws pictures into files, by its Agg: MPLBACKEND is about windows, and no name in it an error.

Everything here that draws imports matplotlib through this module, since that is when matplotlib reads MPLBACKEND.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Iterator, Mapping

_named = os.environ.pop("MPLBACKEND", None)
with contextlib.ExitStack() as _after:
    if _named is not None:
        _after.callback(os.environ.__setitem__, "MPLBACKEND", _named)
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, PercentFormatter, ScalarFormatter
    from matplotlib.transforms import Bbox
if _named is not None:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _named  # of whoever goes on with pyplot, as in a notebook


@contextlib.contextmanager
def own_style(changes: Mapping[str, Any]) -> Iterator[None]:
    """Matplotlib's own settings with these changes in the block, whatever a matplotlibrc says; then those of before."""
    settings: Any = {**matplotlib.rcParamsDefault, **changes}
    del settings["backend"]
    with matplotlib.rc_context(settings):
        yield


__all__ = [
    "Axes",
    "Bbox",
    "Figure",
    "FigureCanvasAgg",
    "FixedLocator",
    "FuncFormatter",
    "MaxNLocator",
    "Patch",
    "PercentFormatter",
    "ScalarFormatter",
    "own_style",
]
