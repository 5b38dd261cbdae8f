"""python -m ipu_bert.bench_step: see ipu_bert/bench/step.py"""

from __future__ import annotations

import sys

from ipu_bert.bench.step import main

if __name__ == "__main__":
    sys.exit(main())
