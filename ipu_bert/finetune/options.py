"""What a fine-tuning is told; its command line has the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LEAST_LENGTH = 8  # tokens of a row, at the most that rows are cut to


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a file: first text, second text of a pair or none, label."""

    text: str
    pair: str | None
    label: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.text,) if self.pair is None else (self.text, self.pair)


@dataclass(frozen=True)
class Training:
    """How it is trained. epochs: at most; patience: of these without a better validation before it ends. lr: peak,
    after a warm-up over a tenth of the steps, then linear to 0. updates: parts that the run is cut into, between which
    patterns change (0: they stay). seed: of the classifier, order, dropout, pattern updates and the validation split.
    """

    epochs: int
    patience: int
    batch_size: int
    lr: float
    weight_decay: float
    dropout: float
    updates: int
    pruning_ratio: float
    seed: int


@dataclass(frozen=True)
class Start:
    """Where the weights come from. sparsity: None keeps those of the start; else its largest blocks are taken, of this
    size. from_scratch: sizes, words and patterns of the start, weights drawn anew.
    """

    where: str
    sparsity: float | None
    block_size: int
    from_scratch: bool


@dataclass(frozen=True)
class Files:
    """What is read. validation: a share of the training rows is held out for it where there is no file."""

    train: Path
    validation: Path | None
    validation_share: float
    test: Path | None
    columns: Columns
    encoding: str


@dataclass(frozen=True)
class Options:
    """A whole fine-tuning. max_length: in tokens, at most what the start was trained at."""

    start: Start
    files: Files
    training: Training
    regression: bool
    max_length: int
