"""What a report is made of, besides the records of the run's metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from ipu_bert.config import Config
from ipu_bert.data.filling import Filling
from ipu_bert.data.quality import TextQuality
from ipu_bert.record.context import Context
from ipu_bert.sizes.flops import SequenceFlops
from ipu_bert.sizes.footprint import ParameterCounts
from ipu_bert.sizes.shape import BertShape


@dataclass(frozen=True)
class HeldoutMeans:
    """The last evaluation on held-out text: mean losses in nats, accuracies in [0, 1]; NaN where training diverged.

    Those of NSP are None where the text gives no pairs for it.
    """

    mlm_loss: float
    nsp_loss: float | None
    mlm_accuracy: float
    nsp_accuracy: float | None


@dataclass(frozen=True)
class Machine:
    """Where a run was computed, and with what; `cpus` is None where the system does not tell."""

    processor: str
    cpus: int | None
    threads: int
    torch: str
    python: str


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. Steps, seconds and elapsed_seconds cover the same span, all processes of the run together.

    flops: of one sequence, forward and backward. decoded: its places that the MLM head made scores for, a mean.
    splits: documents, sentences and tokens of each split of the corpus.
    quality: what became of the text. filling: of training sequences.
    unigram_entropy [nats]: of the whole held-out text, by which it is known. context: what that evaluation says of
    it; None where an older version made it. judged: sequences that `heldout` is of. training_frequencies_loss [nats]:
    the least that word frequencies come to in training sequences, NaN where nothing is asked for. seconds: by phase
    (stopwatch), of rank 0. best_checkpoint: step of the one in best/, None where that has none. waited_share: of its
    own time of training since it was started last, what each rank waited for others.
    """

    config: Config
    shape: BertShape
    parameters: ParameterCounts
    flops: SequenceFlops
    decoded: float
    splits: Mapping[str, Mapping[str, int]]
    quality: TextQuality
    filling: Filling
    unigram_entropy: float
    context: Context | None
    heldout: HeldoutMeans
    judged: int
    training_frequencies_loss: float
    steps: int
    seconds: Mapping[str, float]
    elapsed_seconds: float
    peak_memory_bytes: int
    best_checkpoint: int | None
    machine: Machine
    waited_share: Sequence[float]

    @property
    def text_warnings(self) -> list[str]:
        """A line for each thing that is bad in the text, or in the sequences made of it."""
        return [*self.quality.warnings(), *self.filling.warnings()]

    @property
    def sequences(self) -> int:
        """Sequences trained on, repetitions counted."""
        return self.steps * self.config.train.batch_size

    @property
    def tokens(self) -> int:
        """Tokens trained on, padding and repetitions counted."""
        return self.sequences * self.config.data.sequence_length

    @property
    def passes(self) -> float:
        """How often training went over its text, about: its own tokens, by those that sequences have room for."""
        room = self.splits["train"]["tokens"] * self.quality.shown
        return self.tokens * self.filling.own / room

    @property
    def stream_sequences_per_second(self) -> float | None:
        """How fast batches were made; None where no time was spent on it."""
        reading = self.seconds["data"]
        return self.sequences / reading if reading else None
