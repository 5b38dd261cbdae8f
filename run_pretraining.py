"""Pre-train BERT with dynamic block sparsity; `python run_pretraining.py --help`, and ipu_bert/cli.py, say how."""

from __future__ import annotations

import sys

from ipu_bert.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
