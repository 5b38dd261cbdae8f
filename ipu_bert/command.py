"""run_pretraining.py and the console command `ipu-bert`: what has to be said before the program is imported."""

from __future__ import annotations

import sys

from ipu_bert.signals import InterruptedRunError, raised


def main(argv: list[str]) -> int:
    """Run the program; its exit status.

    Importing it takes seconds: who stops it then reads one line, as does who lacks what the application needs; a
    scheduler is given the status that it may go by. Not while ranks wait for each other: a handler would wait, too, for
    a call of torch that takes as long as a rank is missing.
    """
    try:
        try:
            with raised():
                from ipu_bert import cli
        except ModuleNotFoundError as missing:
            how = "pip install 'ipu-bert-dynsparse[quickstart]', in a checkout -r requirements.txt"
            print(f"error: ipu-bert needs the package {missing.name}, which is not installed: {how}", file=sys.stderr)
            return 2
        except ImportError as error:
            if (error.name or "").partition(".")[0] in ("ipu_bert", "sparse_ops"):  # a fault of ours
                raise
            found = " ".join(f"{error.name or 'of others'}: {error}".split())
            print(f"error: ipu-bert needs a package that cannot be imported: {found}", file=sys.stderr)
            return 2
        except FileNotFoundError as error:  # of the package itself, as where it is a zip
            print(f"error: {error}", file=sys.stderr)
            return 2
        return cli.main(argv)
    except InterruptedRunError as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def command() -> int:
    """The console command."""
    return main(sys.argv[1:])
