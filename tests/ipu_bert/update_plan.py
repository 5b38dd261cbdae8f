"""A plan of pattern updates to vary with `dataclasses.replace`: half of the blocks after steps 10, 20 and 30 of 40."""

from __future__ import annotations

from ipu_bert.dynsparse.grow import GROW_RULES
from ipu_bert.dynsparse.schedules import constant
from ipu_bert.dynsparse.updater import UpdatePlan
from sparse_ops.norms import l1

PLAN = UpdatePlan(
    updates=4,
    total_steps=40,
    pruning_ratio=0.5,
    schedule=constant,
    start=0.0,
    stop=1.0,
    norm=l1,
    growth=GROW_RULES["random"],
    allow_removed=False,
    seed=1,
)
