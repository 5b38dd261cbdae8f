"""What of matplotlib draws pictures into files, by its Agg: MPLBACKEND is about windows, and no name in it an error.

Everything here that draws imports matplotlib through this module, since that is when matplotlib reads MPLBACKEND.
"""

from __future__ import annotations

import contextlib
import os

_named = os.environ.pop("MPLBACKEND", None)
with contextlib.ExitStack() as _after:
    if _named is not None:
        _after.callback(os.environ.__setitem__, "MPLBACKEND", _named)
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, PercentFormatter
if _named is not None:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _named  # of whoever goes on with pyplot, as in a notebook

__all__ = [
    "Axes",
    "Figure",
    "FigureCanvasAgg",
    "FixedLocator",
    "FuncFormatter",
    "MaxNLocator",
    "Patch",
    "PercentFormatter",
]
