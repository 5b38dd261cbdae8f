"""From rows to what a model is given: label numbers, splits, token ids, batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor

from ipu_bert.config.values import LARGEST_FLOAT32
from ipu_bert.data.errors import DataError
from ipu_bert.finetune.rows import Rows

_WORD = Decimal("Infinity")  # where words stand among numbers
_STEPS = 100  # rounding to whole ones adds a twelfth of a squared step to the variance: 8e-6 of it, below what is shown


@dataclass(frozen=True)
class Labels:
    """What labels mean. classes: sorted; empty for a regression. mean, spread (standard deviation, or 1 where there is
    none): of the training labels of a regression, else 0 and 1.
    """

    classes: tuple[str, ...]
    mean: float
    spread: float

    @classmethod
    def of(cls, rows: Rows, regression: bool) -> Labels:
        """From training rows.

        Raises DataError for labels of one class only, for a number that is written in two ways as two classes, and, of
        a regression, for what is no finite number of float32 and for what float32 does not tell apart.
        """
        assert rows.labels is not None
        if regression:
            numbers = torch.tensor([_number(rows, i) for i in range(len(rows.labels))], dtype=torch.float64)
            spread = float(numbers.std(unbiased=False))
            _check_steps(rows, float(numbers.abs().max()), spread)
            return cls((), float(numbers.mean()), spread or 1.0)
        classes = sorted(set(rows.labels), key=_in_order)
        if len(classes) < 2:
            raise DataError(f"{rows.file}: expected labels of two classes or more, found {classes[0]!r:.60} only")
        for one, other in zip(classes, classes[1:]):
            if _in_order(one)[0] == _in_order(other)[0] != _WORD:
                raise DataError(
                    f"{rows.file}: expected each class written in one way, found {one!r:.60} and {other!r:.60}"
                )
        if len(classes) > max(2, len(rows.labels) // 2):
            raise DataError(
                f"{rows.file}: expected classes of two rows or more in the mean, found {len(classes)} different labels "
                f"in {len(rows.labels)} rows; numbers are learned with --regression"
            )
        return cls(tuple(classes), 0.0, 1.0)

    def numbers(self, rows: Rows) -> Tensor:
        """int64 classes, or float64 numbers as written, [rows]. Raises DataError for a label that training has not."""
        assert rows.labels is not None
        if not self.classes:
            return torch.tensor([_number(rows, i) for i in range(len(rows.labels))], dtype=torch.float64)
        known = {name: number for number, name in enumerate(self.classes)}
        for i, label in enumerate(rows.labels):
            if label not in known:
                raise DataError(
                    f"{rows.file}, row {i + 1}: expected a label that the training rows have, found {label!r:.60}"
                )
        return torch.tensor([known[label] for label in rows.labels])


def _in_order(label: str) -> tuple[Decimal, str]:
    """Numbers by size before words; exactly, as numbers of twenty digits may differ in the last."""
    try:
        return (Decimal(label) if math.isfinite(float(label)) else _WORD), label
    except (ValueError, ArithmeticError):  # no number, or none that even Decimal holds
        return _WORD, label


def _check_steps(rows: Rows, largest: float, spread: float) -> None:
    """A model answers in float32, whose rounding near the labels must vanish beside their spread."""
    step = 2 * np.spacing(np.float32(largest / 2))  # the largest number of all has no next one
    step = max(float(step), float(np.finfo(np.float32).tiny))  # below which some processors round to zero
    if 0 < spread < _STEPS * step:
        raise DataError(
            f"{rows.file}: expected labels whose standard deviation is {_STEPS} steps of float32 or more, found "
            f"{spread:g} and steps of {step:g} at {largest:g}: subtract what they have in common, or take another unit"
        )


def _number(rows: Rows, i: int) -> float:
    assert rows.labels is not None
    try:
        value = math.nan if "_" in rows.labels[i] else float(rows.labels[i])  # 1_0 is Python's 10, and nobody else's
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST_FLOAT32:
        raise DataError(f"{rows.file}, row {i + 1}: expected a finite number as label, found {rows.labels[i]!r:.60}")
    return value


def split(rows: Rows, share: float, seed: int, by_class: bool) -> tuple[Rows, Rows]:
    """Training and validation rows; by_class: with the same shares of classes in both.

    Raises DataError where there are too few rows of a class, or in all.
    """
    from sklearn.model_selection import train_test_split

    numbers = list(range(len(rows.texts)))
    try:
        train, validation = train_test_split(
            numbers, test_size=share, random_state=seed % 2**32, stratify=rows.labels if by_class else None
        )
    except ValueError as error:
        raise DataError(
            f"{rows.file}: expected rows enough to hold out {share:g} of them for validation: {error}"
        ) from None
    return rows.take(sorted(train)), rows.take(sorted(validation))


@dataclass(frozen=True)
class Batch:
    """input_ids, token_type_ids, attention_mask: int64 [B, S]; numbers: of the rows, int64 [B]."""

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor
    numbers: Tensor


@dataclass(frozen=True)
class Encoded:
    """Token ids and types of every row, cut to the length. cut: how many rows were longer."""

    ids: tuple[Tensor, ...]
    types: tuple[Tensor, ...]
    cut: int

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Rows as one batch, padded to the longest."""
        pad = torch.nn.utils.rnn.pad_sequence
        ids, types = [self.ids[i] for i in numbers], [self.types[i] for i in numbers]
        mask = pad([torch.ones_like(one) for one in ids], batch_first=True)
        return Batch(pad(ids, batch_first=True), pad(types, batch_first=True), mask, torch.tensor(list(numbers)))


def encode(tokenizer: Any, rows: Rows, max_length: int) -> Encoded:
    """By a tokenizer of transformers; of a pair the longer text is cut first."""
    columns = [list(column) for column in zip(*rows.texts)]
    options = {"return_token_type_ids": True, "return_attention_mask": False, "verbose": False}
    whole = tokenizer(*columns, truncation=False, **options)
    cut = sum(len(ids) > max_length for ids in whole["input_ids"])
    if cut:
        whole = tokenizer(*columns, truncation=True, max_length=max_length, **options)
    ids, types = (tuple(map(torch.tensor, whole[name])) for name in ("input_ids", "token_type_ids"))
    return Encoded(ids, types, cut)
