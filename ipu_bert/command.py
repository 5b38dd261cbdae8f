"""The console command `ipu-bert`: run_pretraining.py, installed."""

from __future__ import annotations

import sys


def command() -> int:
    """Run the program; where the library was installed without what the application needs, say so in one line."""
    try:
        from ipu_bert.cli import main
    except ModuleNotFoundError as missing:
        how = "pip install 'ipu-bert-dynsparse[quickstart]'"
        print(f"error: ipu-bert needs the package {missing.name}, which is not installed: {how}", file=sys.stderr)
        return 2
    return main(sys.argv[1:])
