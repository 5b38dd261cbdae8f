"""The engine for CPUs: eager torch, AdamW, and weights that are the live tensors."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from typing import ContextManager, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ipu_bert.data.batches import Batch
from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.engines.base import (
    MOMENTS,
    EvalResult,
    HostState,
    NonFiniteError,
    StepResult,
    TensorGroups,
    TransferRecord,
    check_model_state,
)
from ipu_bert.model import BertForPreTraining, PretrainingLosses, pretraining_losses, sparse_layers
from ipu_bert.optim import Optimization, adamw, group_lasso_
from ipu_bert.precision import Precision
from ipu_bert.stopwatch import Stopwatch
from sparse_ops.dynsparse.gradients import record_gradient_blocks
from sparse_ops.host_memory import keep_freed_memory
from sparse_ops.norms import BlockNorm, GradientBlocks


class TorchEngine:
    """Runs micro-batches forward and backward, adds up gradients, clips, and steps AdamW.

    The losses of a step are means over the step's own labels, so cutting it into micro-batches changes nothing but
    rounding. block_norm: of the dense gradient's blocks, for growth. seed: of dropout.
    """

    def __init__(
        self,
        model: BertForPreTraining,
        *,
        optimization: Optimization,
        precision: Precision,
        micro_batch_size: int,
        block_norm: BlockNorm,
        seed: int,
        timer: Stopwatch,
    ) -> None:
        keep_freed_memory()
        self.transfers: TransferRecord | None = None
        self.model = model
        self._layers = dict(sparse_layers(model))
        self._parameters = dict(model.named_parameters())
        self._optimizer = adamw(model, optimization)
        self._optimization = optimization
        self._scheduler = LambdaLR(self._optimizer, optimization.schedule)
        self._micro_batch_size, self._precision, self._block_norm = micro_batch_size, precision, block_norm
        self._timer = timer
        torch.manual_seed(seed)  # dropout draws from torch's own generator

    def compile(self, batch: Batch) -> None:
        """See Engine: steps run eagerly, so there is nothing to make."""

    def train_step(self, batch: Batch, gradient_counts: Mapping[str, int] | None = None) -> StepResult:
        """See Engine. The gradient for growth is that of the step's last micro-batch."""
        self.model.train()
        labels = max(1, int((batch.masked_labels != IGNORED_LABEL).sum()))
        sequences = batch.input_ids.shape[0]
        mlm_loss = nsp_loss = 0.0
        gradients: dict[str, GradientBlocks] | None = None
        micro_batches = _split(batch, self._micro_batch_size)
        for number, micro in enumerate(micro_batches, 1):
            recording: ContextManager[dict[str, GradientBlocks] | None] = nullcontext()
            if gradient_counts is not None and number == len(micro_batches):
                recording = record_gradient_blocks(self._layers, gradient_counts, self._block_norm)
            with recording as gradients:  # noqa: F811
                with self._timer("forward"):
                    losses = self._losses(micro)
                    mlm, nsp = losses.mlm_sum / labels, losses.nsp_sum / sequences
                mlm_loss, nsp_loss = mlm_loss + mlm.item(), nsp_loss + nsp.item()
                if not math.isfinite(mlm_loss + nsp_loss):
                    self._optimizer.zero_grad()
                    message = f"loss became {mlm_loss + nsp_loss} (MLM {mlm_loss}, NSP {nsp_loss})"
                    raise NonFiniteError(message, weights_kept=True)
                with self._timer("backward"):
                    ((mlm + nsp) * self._precision.loss_scale).backward()
        with self._timer("optimizer"):
            lr = float(self._scheduler.get_last_lr()[0])
            grad_norm = self._update_weights(lr)
        return StepResult(mlm_loss, nsp_loss, grad_norm, lr, gradients)

    def _losses(self, batch: Batch) -> PretrainingLosses:
        return pretraining_losses(*self._logits(batch), batch.masked_labels, batch.next_sentence_labels)

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with self._precision.autocast():
            mlm_logits, nsp_logits = self.model(
                batch.input_ids, batch.token_type_ids, batch.attention_mask, batch.masked_positions
            )
        return mlm_logits, nsp_logits

    def _update_weights(self, lr: float) -> float:
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        if self._precision.loss_scale != 1.0:
            torch._foreach_div_(gradients, self._precision.loss_scale)
        limit = self._optimization.clip_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit))
        if not math.isfinite(norm):
            self._optimizer.zero_grad()
            raise NonFiniteError(f"gradient norm became {norm}", weights_kept=True)
        if self._optimization.group_lasso:
            group_lasso_((layer.values for layer in self._layers.values()), lr, self._optimization.group_lasso)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._scheduler.step()
        return norm

    @torch.no_grad()
    def eval_step(self, batch: Batch) -> EvalResult:
        """See Engine."""
        self.model.eval()
        mlm_logits, nsp_logits = self._logits(batch)
        losses = pretraining_losses(mlm_logits, nsp_logits, batch.masked_labels, batch.next_sentence_labels)
        return EvalResult(
            losses.mlm_sum.item(),
            int(losses.mlm_count),
            int((mlm_logits.argmax(-1) == batch.masked_labels).sum()),
            losses.nsp_sum.item(),
            batch.next_sentence_labels.numel(),
            int((nsp_logits.argmax(-1) == batch.next_sentence_labels).sum()),
        )

    @contextmanager
    def host_state(self) -> Iterator[HostState]:
        """The live tensors: what is written here is what the next step uses."""
        moments = {name: [self._moments(layer.values)[key] for key in MOMENTS] for name, layer in self._layers.items()}
        yield HostState(self._layers, moments)

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """The optimizer's state of a parameter, made as AdamW would make it where no step has been taken yet."""
        state = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state.update({key: torch.zeros_like(parameter) for key in MOMENTS})
        return state

    def state(self) -> TensorGroups:
        """See Engine: parameters and positions, moments, the step AdamW counts, and torch's generator."""
        moments = {
            f"{key}.{name}": self._moments(parameter)[key]
            for name, parameter in self._parameters.items()
            for key in MOMENTS
        }
        return {
            "model": {name: tensor.detach() for name, tensor in self.model.state_dict().items()},
            "optimizer": moments,
            "random": {"torch": torch.get_rng_state()},
        }

    def load_state(self, groups: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """See Engine."""
        check_model_state(self.model.state_dict(), groups["model"])
        self.model.load_state_dict(groups["model"])
        for name, parameter in self._parameters.items():
            state = self._moments(parameter)
            state["step"].fill_(step)
            for key in MOMENTS:
                state[key].copy_(groups["optimizer"][f"{key}.{name}"])
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        self._scheduler = LambdaLR(self._optimizer, self._optimization.schedule, last_epoch=step - 1)
        torch.set_rng_state(groups["random"]["torch"])


def _split(batch: Batch, size: int) -> list[Batch]:
    parts = (tensor.split(size) for tensor in vars(batch).values())
    return [Batch(*tensors) for tensors in zip(*parts)]
