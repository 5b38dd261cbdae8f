"""python -m sparse_ops.bench"""

import sys

from sparse_ops.bench.products import main

sys.exit(main(sys.argv[1:]))
