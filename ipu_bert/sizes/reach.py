"""Settings that a run does not come up to, as blocks or batches are too few, or gradients too small."""

from __future__ import annotations

from typing import Sequence

from ipu_bert.settings import Config
from ipu_bert.sizes.weights import EncoderWeight
from sparse_ops.dynsparse.updater import PatternUpdater


def batches_reached(config: Config, heldout: int) -> list[str]:
    """A line where the held-out text has so many batches, fewer than `eval.batches`."""
    asked = config.eval.batches
    return [f"eval.batches={asked} beyond {heldout}, since the held-out text has no more"] if heldout < asked else []


def rate_reached(config: Config) -> list[str]:
    """A line where gradients are clipped below Adam's epsilon: it adds that to their root mean square and divides."""
    clip, eps = config.optim.clip_norm, config.optim.eps
    if not 0.0 < clip < eps:
        return []
    most = f"no gradient moves a weight by more than {clip / eps:.2g} of it"
    return [f"optim.lr={config.optim.lr} in full, since optim.clip_norm {clip} is below optim.eps {eps}, and {most}"]


def moves_reached(updater: PatternUpdater, weights: Sequence[EncoderWeight]) -> list[str]:
    """A line where no update moves a block, or the largest has fewer free places than blocks to move.

    weights: as the updater will have them; a segment of one is pruned by itself.
    """
    plan, parts = updater.plan, [weight for weight in weights for _ in range(weight.segments) if weight.is_sparse]
    step = max(updater.ratios, key=lambda step: updater.ratios[step], default=None)
    if step is None or not plan.pruning_ratio:
        return []
    asked = possible = 0
    for weight in parts:
        blocks = weight.blocks // weight.segments
        places = weight.size // (weight.block_size**2 * weight.segments)
        count = updater.blocks_to_move(blocks, step)
        asked += count
        possible += count if plan.allow_removed else min(count, places - blocks)
    setting = f"sparsity.pruning_ratio={plan.pruning_ratio}"
    if not asked:
        return [f"{setting}, since it is less than half a block of every weight, and moves none"]
    if possible < asked:
        return [
            f"{setting} in full, since {possible:,} of the {asked:,} blocks of an update have a free place to go to"
        ]
    return []
