"""What every engine offers: run a step, evaluate, and let the host read and write what lives on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ContextManager, Dict, Mapping, Protocol, Sequence

from torch import Tensor

from ipu_bert.data.batches import Batch
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.norms import GradientBlocks

TensorGroups = Dict[str, Dict[str, Tensor]]  # "model", "optimizer", "random" -> tensors by name
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, in PopART's order Accl1, Accl2


class NonFiniteError(ArithmeticError):
    """A loss or a gradient became NaN or infinite.

    weights_kept: whether the weights are those of the step before; where a device finds out after it has stepped they
    are lost, and only a checkpoint helps.
    """

    def __init__(self, message: str, weights_kept: bool) -> None:
        super().__init__(message)
        self.weights_kept = weights_kept


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: mean losses in nats over the step's labels, before the update."""

    mlm_loss: float
    nsp_loss: float
    grad_norm: float  # before clipping; NaN where it stays on the device
    lr: float
    gradients: dict[str, GradientBlocks] | None = None  # per sparse layer, when they were asked for


@dataclass(frozen=True)
class EvalResult:
    """Sums over one batch, so that batches can be added up."""

    mlm_sum: float  # nats
    mlm_count: int  # labels
    mlm_correct: int
    nsp_sum: float
    nsp_count: int
    nsp_correct: int

    def __add__(self, other: EvalResult) -> EvalResult:
        return EvalResult(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    @classmethod
    def of_sums(cls, sums: Sequence[float]) -> EvalResult:
        """From the fields in order, of which counts may be given as floats."""
        mlm_sum, mlm_count, mlm_correct, nsp_sum, nsp_count, nsp_correct = sums
        return cls(mlm_sum, round(mlm_count), round(mlm_correct), nsp_sum, round(nsp_count), round(nsp_correct))

    def means(self) -> dict[str, float]:
        """Mean losses and accuracies. Raises ValueError where nothing was masked, as where no word has room."""
        if not self.mlm_count:
            raise ValueError(
                "evaluation: expected positions to predict, found none: every word held out has more pieces than "
                "data.max_predictions; is the tokenizer one for this text?"
            )
        return {
            "mlm_loss": self.mlm_sum / self.mlm_count,
            "nsp_loss": self.nsp_sum / self.nsp_count,
            "mlm_accuracy": self.mlm_correct / self.mlm_count,
            "nsp_accuracy": self.nsp_correct / self.nsp_count,
        }


@dataclass(frozen=True)
class HostState:
    """Sparse layers and, per layer, the optimizer's tensors [nnz, b, b] of its values, on the host."""

    layers: Mapping[str, BlockSparseLinear]
    moments: Mapping[str, Sequence[Tensor]]


@dataclass
class TransferRecord:
    """What the last host_state() moved. Bytes as PopART moves them: every transfer is of all streamed variables."""

    bytes_down: int = 0
    bytes_up: int = 0
    compilations: int = 0


class Engine(Protocol):
    """How a step runs and where the weights live."""

    @property
    def transfers(self) -> TransferRecord | None:
        """What the last host_state() moved; None where the weights are the host's own."""

    @property
    def share(self) -> tuple[int, int]:
        """(part, parts): the part of every batch that this process makes and hands in below; (0, 1) is all of it."""

    def compile(self, batch: Batch) -> None:
        """Make ahead what steps and evaluations of such batches need; nothing where they run as they are written."""

    def train_step(self, batch: Batch, gradient_counts: Mapping[str, int] | None = None) -> StepResult:
        """One optimizer step. With `gradient_counts` also its dense gradient's largest free blocks, as many a segment.

        Raises NonFiniteError when a loss or the gradient is not finite; it says whether the weights were kept. Where
        they were, moments and patterns are kept too, and the next call is the step after: its learning rate and dropout
        go by its number.
        """

    def eval_step(self, batch: Batch) -> EvalResult:
        """Losses of a batch without dropout; changes nothing."""

    def host_state(self) -> ContextManager[HostState]:
        """A context in which slots' values, moments and positions can be read and written; pushes what changed."""

    def digests(self) -> dict[str, str]:
        """Checksums by name of what must be the same on all ranks, as far as the host knows it."""

    def state(self) -> TensorGroups:
        """Everything a checkpoint needs, in canonical slots."""

    def load_state(self, groups: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Continue after `step`; ValueError when the tensors are those of another model."""
