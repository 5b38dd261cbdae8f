"""run_pretraining.py and the console command `ipu-bert`: what has to be said before the program is imported."""

from __future__ import annotations

import sys


def main(argv: list[str]) -> int:
    """Run the program; its exit status.

    Importing it takes seconds: who stops it then reads one line, as does who lacks what the application needs.
    """
    try:
        try:
            from ipu_bert import cli
        except ModuleNotFoundError as missing:
            how = "pip install 'ipu-bert-dynsparse[quickstart]', in a checkout -r requirements.txt"
            print(f"error: ipu-bert needs the package {missing.name}, which is not installed: {how}", file=sys.stderr)
            return 2
        return cli.main(argv)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def command() -> int:
    """The console command."""
    return main(sys.argv[1:])
