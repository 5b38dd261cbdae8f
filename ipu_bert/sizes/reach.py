"""Settings that a run does not come up to, as blocks, batches or documents are too few, or gradients too small."""

from __future__ import annotations

from typing import Mapping, Sequence

from ipu_bert.data.filling import Filling
from ipu_bert.settings import Config
from ipu_bert.sizes.weights import EncoderWeight
from sparse_ops.dynsparse.updater import PatternUpdater


def text_reached(config: Config, splits: Mapping[str, Mapping[str, int]], heldout: int, filled: Filling) -> list[str]:
    """The lines of a text that is prepared. splits: its counts, by split; heldout: as in `batches_reached`."""
    return [*batches_reached(config, heldout), *documents_reached(config, splits), *lengths_reached(config, filled)]


def batches_reached(config: Config, heldout: int) -> list[str]:
    """A line where the held-out text has so many batches, fewer than `eval.batches`."""
    asked = config.eval.batches
    return [f"eval.batches={asked} beyond {heldout}, since the held-out text has no more"] if heldout < asked else []


def documents_reached(config: Config, splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line where another share of the documents is held out than asked for, or left, by more than half of it."""
    asked, out = config.data.heldout_fraction, splits["heldout"]
    total = {key: sum(split[key] for split in splits.values()) for key in ("documents", "tokens")}
    if abs(out["documents"] / total["documents"] - asked) <= min(asked, 1.0 - asked) / 2:
        return []
    held = f"{out['documents']:,} of {total['documents']:,} documents are held out, with "
    tokens = f"{100 * out['tokens'] / total['tokens']:.1f} % of the tokens"
    return [f"data.heldout_fraction={asked}, since {held}{tokens}: hashes decide, and two at least are on either side"]


def lengths_reached(config: Config, filled: Filling) -> list[str]:
    """A line where less than a third as many sequences are shorter than asked for, and so many are enough to tell."""
    asked = config.data.short_sequence_probability
    if asked * filled.sequences < 16 or filled.shorter >= asked / 3:
        return []
    found = f"{100 * filled.shorter:.1f} % of the first {filled.sequences:,} sequences are shorter"
    length = f"data.sequence_length {config.data.sequence_length}"
    return [
        f"data.short_sequence_probability={asked}, since {found} than {length}: two whole sentences are kept, which "
        "mostly fill it"
    ]


def predictions_reached(config: Config, wanted: int) -> list[str]:
    """A line where a full sequence has another share of predictions than asked for, by more than a third of it.

    wanted: predictions of a full sequence, were there places for all.
    """
    asked, length = config.data.mask_probability, config.data.sequence_length
    if abs(wanted / length - asked) <= asked / 3:
        return []
    found = f"{wanted} of {length} tokens, {100 * wanted / length:.2g} %, are predicted"
    limit = "whole tokens, one at least" if wanted / length > asked else "[CLS] and [SEP] are not"
    return [f"data.mask_probability={asked}, since {found}: {limit}"]


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
