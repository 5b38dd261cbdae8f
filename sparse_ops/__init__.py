"""Block-sparse weights and the products with them; imports torch and nothing of ipu_bert."""

import sys

if sys.argv[:1] == ["-m"]:  # of `python -m sparse_ops.tune`, for as long as this package is imported
    # Importing the rest takes seconds: who stops it by Ctrl-C reads a line. The process still ends by the signal.
    sys.excepthook = lambda kind, *more: (
        sys.stderr.write("stopped\n") if kind is KeyboardInterrupt else sys.__excepthook__(kind, *more)
    )

from sparse_ops.functional import block_linear
from sparse_ops.host_memory import keep_freed_memory
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.norms import block_norm
from sparse_ops.pattern import BlockIndex, BlockPattern
from sparse_ops.sparsify import sparsify

__all__ = [
    "BlockIndex",
    "BlockPattern",
    "BlockSparseLinear",
    "block_linear",
    "block_norm",
    "keep_freed_memory",
    "sparsify",
]
