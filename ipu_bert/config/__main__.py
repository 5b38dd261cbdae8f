"""Print docs/config.md: python -m ipu_bert.config > docs/config.md"""

from __future__ import annotations

import sys

from ipu_bert.config.reference import reference_page
from sparse_ops.ends import with_one_line
from sparse_ops.saying import answer

sys.exit(with_one_line(lambda: answer(reference_page().rstrip("\n"))))
