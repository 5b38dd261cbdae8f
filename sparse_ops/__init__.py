"""Block-sparse weights and the products with them; imports torch and nothing of ipu_bert."""

from sparse_ops.functional import block_linear
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.norms import block_norm
from sparse_ops.pattern import BlockIndex, BlockPattern
from sparse_ops.sparsify import sparsify

__all__ = ["BlockIndex", "BlockPattern", "BlockSparseLinear", "block_linear", "block_norm", "sparsify"]
