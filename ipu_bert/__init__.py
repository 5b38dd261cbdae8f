"""BERT pre-training with dynamic block sparsity."""

import sys

if sys.argv[:1] == ["-m"]:  # of `python -m ipu_bert.evaluate`, for as long as this package is imported
    # Importing the rest takes seconds: who stops it by Ctrl-C reads a line. The process still ends by the signal.
    sys.excepthook = lambda kind, *more: (
        sys.stderr.write("stopped\n") if kind is KeyboardInterrupt else sys.__excepthook__(kind, *more)
    )
