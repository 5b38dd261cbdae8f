"""`python -m ipu_bert`: run_pretraining.py, from anywhere."""

from __future__ import annotations

import sys

from ipu_bert.command import command

if __name__ == "__main__":
    sys.exit(command())
