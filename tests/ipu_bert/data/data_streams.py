"""Batches for the tests of ipu_bert.data, and what is asked of many of them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ipu_bert.data.batches import Batch, BatchOptions, BatchStream
from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.data.token_files import TokenFiles

WIDTH = 32
OPTIONS = BatchOptions(
    batch_size=16,
    sequence_length=WIDTH,
    max_predictions=6,
    mask_probability=0.15,
    whole_word=True,
    short_sequence_probability=0.1,
    seed=5,
)


def stream(files: TokenFiles, split: str = "train", **changes: object) -> BatchStream:
    """Batches with some of OPTIONS changed."""
    return BatchStream(files, split, replace(OPTIONS, **changes))


def original(batch: Batch) -> torch.Tensor:
    """The text before masking: input ids with the labels put back."""
    ids = batch.input_ids.clone()
    rows, places = (batch.masked_labels != IGNORED_LABEL).nonzero(as_tuple=True)
    ids[rows, batch.masked_positions[rows, places]] = batch.masked_labels[rows, places]
    return ids


def within(count: int, total: int, probability: float) -> bool:
    """Five standard deviations of a binomial: once in two million runs by chance."""
    return abs(count - total * probability) <= 5 * math.sqrt(total * probability * (1 - probability))
