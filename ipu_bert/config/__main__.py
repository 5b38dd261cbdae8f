"""Print docs/config.md: python -m ipu_bert.config > docs/config.md"""

from __future__ import annotations

from ipu_bert.config.reference import reference_page

print(reference_page(), end="")
