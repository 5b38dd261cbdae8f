"""What a run needs on disk, counted before it starts, and what is free where it goes."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from ipu_bert.data.token_files import TOKENIZER
from ipu_bert.settings import Config
from ipu_bert.sizes.footprint import parameter_counts
from ipu_bert.sizes.shape import BertShape
from ipu_bert.sizes.weights import EncoderWeight

# Parameter tensors of an encoder layer (four weights and biases, two LayerNorms) and of embeddings, pooler and heads.
_LAYER_TENSORS, _OTHER_TENSORS = 12, 14
# What safetensors' header says of a tensor with a name of this model, on average; state.json; the generator's state.
_HEADER_BYTES, _STATE_BYTES, _RANDOM_BYTES = 112, 4_600, 5_128
_PIECE_BYTES, _COUNT_BYTES = 24, 8  # of a word piece in tokenizer.json, and how often it was seen


@dataclass(frozen=True)
class DiskNeed:
    """Bytes. checkpoints: the most that are there at a time, the one that is being written included.

    prepared_bytes: of the token files, None until they are made. run_free, data_free: on the file systems of run.dir
    and data.dir, None where the system does not tell.
    """

    checkpoint_bytes: int
    checkpoints: int
    prepared_bytes: int | None
    run_free: int | None
    data_free: int | None

    @property
    def checkpoints_bytes(self) -> int:
        """Of all checkpoints together."""
        return self.checkpoint_bytes * self.checkpoints

    @property
    def fits(self) -> bool:
        """Whether the checkpoints have room, as far as is known."""
        return self.run_free is None or self.checkpoints_bytes <= self.run_free

    def to_dict(self) -> dict[str, Any]:
        """Fields, total and verdict as plain values."""
        return {**asdict(self), "checkpoints_bytes": self.checkpoints_bytes, "fits": self.fits}


def disk_need(
    config: Config, shape: BertShape, weights: Sequence[EncoderWeight], prepared: Mapping[str, Any] | None
) -> DiskNeed:
    """What a run of these sizes needs; prepared: the manifest of its token files, once they are there."""
    dynamic = config.sparsity.method == "dynsparse"
    return DiskNeed(
        checkpoint_bytes=checkpoint_bytes(shape, weights, dynamic) + _text_bytes(shape.vocab_size, prepared),
        checkpoints=_checkpoints(config),
        prepared_bytes=sum(entry["bytes"] for entry in prepared["files"].values()) if prepared else None,
        run_free=free_bytes(config.run.dir),
        data_free=free_bytes(config.data.dir),
    )


def checkpoint_bytes(shape: BertShape, weights: Sequence[EncoderWeight], dynamic: bool) -> int:
    """Weights and both moments in float32, positions, and with changing patterns what was explored (explored.py).

    Without what is kept of the text.
    """
    counts, sparse = parameter_counts(shape, weights), [weight for weight in weights if weight.is_sparse]
    parameters = _LAYER_TENSORS * shape.layers + _OTHER_TENSORS
    tensors = 3 * parameters + 2 * len(sparse)
    size = 3 * 4 * counts.total + 2 * 4 * counts.sparse_blocks
    if dynamic:
        tensors += 3 * len(sparse) + 2
        size += 2 * 8 + sum(_history_bytes(weight) for weight in sparse)
    return size + _HEADER_BYTES * tensors + _STATE_BYTES + _RANDOM_BYTES


def _text_bytes(vocab_size: int, prepared: Mapping[str, Any] | None) -> int:
    """What a checkpoint keeps of the text: the tokenizer, and how often each id was seen (kept_text.py)."""
    tokenizer = prepared["files"][TOKENIZER]["bytes"] if prepared else _PIECE_BYTES * vocab_size
    return tokenizer + _COUNT_BYTES * vocab_size


def _history_bytes(weight: EncoderWeight) -> int:
    """A bit for each block position, an int32 for each block and one int64."""
    positions = weight.size // weight.block_size**2
    return (positions + 7) // 8 + 4 * weight.blocks + 8


def _checkpoints(config: Config) -> int:
    """One at the end and one at each multiple of `checkpoint.every`, as many as are kept and the newest beside them.

    The best one is beside those, and again while it is replaced, which is not while one of the others is written.
    """
    last, every = config.train.last_step, config.checkpoint.every
    written = -(-last // every) if every else 1
    regular = min(written, config.checkpoint.keep + 1) if config.checkpoint.keep else written
    return regular + int(config.checkpoint.keep_best)


def free_bytes(folder: str) -> int | None:
    """What is free for this user where a folder is or will be; None where the system does not tell."""
    path = Path(folder).absolute()
    try:
        return shutil.disk_usage(next(place for place in (path, *path.parents) if place.is_dir())).free
    except (OSError, StopIteration):
        return None
