"""Studies: grids of runs that answer one question, their tables and figures; `python -m ipu_bert.study --help`."""

from __future__ import annotations
