"""The engine for CPUs: eager torch, AdamW, and weights that are the live tensors."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from functools import reduce
from operator import add
from typing import Callable, ContextManager, Iterator, Mapping, Sequence

import torch
from torch import Tensor

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
)
from ipu_bert.engines.checked_state import check_state
from ipu_bert.engines.summed import SummedGradients
from ipu_bert.model import BertForPreTraining, PretrainingLosses, pretraining_losses, sparse_layers
from ipu_bert.optim import Optimization, adamw, group_lasso_
from ipu_bert.precision import Precision
from ipu_bert.ranks import ALONE, Ranks
from ipu_bert.stopwatch import Stopwatch
from sparse_ops.distributed import digest
from sparse_ops.dynsparse.gradients import GradientSearch
from sparse_ops.norms import BlockNorm
from sparse_ops.pattern import named_generator
from sparse_ops.process import make_ready


class TorchEngine:
    """Runs micro-batches forward and backward, adds up gradients, clips, and steps AdamW.

    The losses of a step are means over the step's own labels, so cutting it into micro-batches, or spreading these over
    ranks, changes nothing but rounding. block_norm: of the dense gradient's blocks, for growth. seed: of dropout, whose
    masks depend on it, the step's number and the micro-batch's number within the step of all ranks, and on nothing that
    was drawn before.
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
        ranks: Ranks = ALONE,
    ) -> None:
        make_ready()
        self.transfers: TransferRecord | None = None
        self.model = model
        self._layers = dict(sparse_layers(model))
        self._parameters = dict(model.named_parameters())
        self._optimizer = adamw(model, optimization)
        self._optimization = optimization
        self._micro_batch_size, self._precision, self._block_norm = micro_batch_size, precision, block_norm
        self._timer, self._seed, self._ranks = timer, seed, ranks
        self._step = self._updates = 0  # steps begun, and those of them that changed the weights
        self._gradients = SummedGradients(model, ranks, timer)
        self._gradients.settle(_any_loss)
        self._optimizer.zero_grad()

    @property
    def share(self) -> tuple[int, int]:
        """See Engine."""
        return self._ranks.index, self._ranks.count

    def compile(self, batch: Batch) -> None:
        """See Engine: steps run eagerly, so there is nothing to make."""

    def train_step(self, batch: Batch, gradient_counts: Mapping[str, int] | None = None) -> StepResult:
        """See Engine. A step that is not finite counts in everything but the updates that AdamW corrects its bias by.

        With `gradient_counts` a step of several micro-batches runs them several times (GradientSearch). All that the
        search adds counts as `update`: its passes but the last, which is the step's own, and its work inside that one;
        what ranks wait for in them stays `exchange`.
        """
        self.model.train()
        self._step += 1
        micro_batches = _split(batch, self._micro_batch_size)
        with self._timer("exchange"):
            labels, sequences = self._ranks.sum([_labels(batch), batch.input_ids.shape[0]])
        search = None
        if gradient_counts is not None:
            several = len(micro_batches) * self._ranks.count > 1
            scale = self._precision.loss_scale
            search = GradientSearch(
                self._layers, gradient_counts, self._block_norm, several, scale, self._sum, self._searching
            )
        passes: list[ContextManager[None]] = [nullcontext()] if search is None else list(search.passes())
        try:
            for number, recording in enumerate(passes, start=1):
                self._optimizer.zero_grad()
                own = number == len(passes)
                with recording, nullcontext() if own else self._searching():
                    losses = self._accumulate(micro_batches, max(1, labels), sequences, own)
            with self._timer("optimizer"):
                lr = self._optimization.lr * self._optimization.schedule(self._step - 1)
                grad_norm = self._update_weights(lr)
        finally:
            self._optimizer.zero_grad()
        return StepResult(*losses, grad_norm, lr, None if search is None else search.found())

    def _accumulate(
        self, micro_batches: Sequence[Batch], labels: float, sequences: float, own: bool
    ) -> tuple[float, float]:
        """Add the gradient of these micro-batches to the parameters'.

        own: that of all ranks' micro-batches, in the step's own pass; else this process's, in one of the search's.
        Returns the mean losses (MLM, NSP) of all ranks. Raises NonFiniteError on all of them, and only when each has
        had its passes: a rank that went earlier would leave the others waiting.
        """
        mlm_loss = nsp_loss = 0.0
        before = self._ranks.index * len(micro_batches)
        forward, backward = ("forward", "backward") if own else ("update", "update")
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator, which is the user's
            for number, micro in enumerate(micro_batches, start=1):
                seed = named_generator(self._seed, "dropout", self._step, before + number - 1)
                torch.set_rng_state(seed.get_state())
                with self._gradients.micro_batch(last=own and number == len(micro_batches)):
                    with self._timer(forward):
                        losses = self._losses(micro)
                        mlm, nsp = losses.mlm_sum / labels, losses.nsp_sum / sequences
                    mlm_loss, nsp_loss = mlm_loss + mlm.item(), nsp_loss + nsp.item()
                    with self._timer(backward):
                        ((mlm + nsp) * self._precision.loss_scale).backward()
                        self._gradients.arrived()
        with self._timer("exchange"):
            mlm_loss, nsp_loss = self._ranks.sum([mlm_loss, nsp_loss])
        if not math.isfinite(mlm_loss + nsp_loss):
            message = f"loss became {mlm_loss + nsp_loss} (MLM {mlm_loss}, NSP {nsp_loss})"
            raise NonFiniteError(message, weights_kept=True)
        return mlm_loss, nsp_loss

    def _sum(self, blocks: Tensor) -> None:
        """Of all ranks, in place."""
        with self._timer("exchange"):
            self._ranks.sum_(blocks)

    def _searching(self) -> ContextManager[None]:
        """For what is done for a pattern update alone."""
        return self._timer("update")

    def _losses(self, batch: Batch) -> PretrainingLosses:
        with self._precision.autocast():
            losses: PretrainingLosses = self._gradients.model(
                *_inputs(batch), labels=(batch.masked_labels, batch.next_sentence_labels)
            )
        return losses

    def _update_weights(self, lr: float) -> float:
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        if self._precision.loss_scale != 1.0:
            torch._foreach_div_(gradients, self._precision.loss_scale)
        norm = self._clip(gradients)
        if not math.isfinite(norm):
            raise NonFiniteError(f"gradient norm became {norm}", weights_kept=True)
        if self._optimization.group_lasso:
            group_lasso_((layer.values for layer in self._layers.values()), lr, self._optimization.group_lasso)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._updates += 1
        return norm

    def _clip(self, gradients: Sequence[Tensor]) -> float:
        """Clip as torch.nn.utils.clip_grad_norm_ does, all ranks by rank 0's norm: its rounding depends on threads."""
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        with self._timer("exchange"):
            self._ranks.broadcast_(norm)
        factor = ((self._optimization.clip_norm or math.inf) / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
        return float(norm)

    def eval_step(self, batch: Batch) -> EvalResult:
        """See Engine."""
        part = eval_batch(self.model, self._precision, batch, self._micro_batch_size)
        return EvalResult.of_sums(self._ranks.sum(list(vars(part).values())))

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

    def digests(self) -> dict[str, str]:
        """See Engine: every position, parameter and moment; positions first, as all else of a block moves with it."""
        state = self.state()
        tensors = {**state["model"], **state["optimizer"]}
        names = sorted(tensors, key=lambda name: not name.endswith((".rows", ".cols")))
        return {name: digest([tensors[name]]) for name in names}

    def state(self) -> TensorGroups:
        """See Engine: parameters and positions, and moments; where steps were skipped, how many updates there were.

        "random" is for older versions, whose dropout went on from there.
        """
        moments = {
            f"{key}.{name}": self._moments(parameter)[key]
            for name, parameter in self._parameters.items()
            for key in MOMENTS
        }
        updates = {"updates": torch.tensor(self._updates)} if self._updates != self._step else {}
        return {
            "model": {name: tensor.detach() for name, tensor in self.model.state_dict().items()},
            "optimizer": {**moments, **updates},
            "random": {"torch": torch.Generator().manual_seed(self._seed).get_state()},
        }

    def load_state(self, groups: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """See Engine."""
        check_state(self.model, groups, step)
        self.model.load_state_dict(groups["model"])
        self._step = step
        self._updates = int(groups["optimizer"].get("updates", step))
        for name, parameter in self._parameters.items():
            state = self._moments(parameter)
            state["step"].fill_(self._updates)
            for key in MOMENTS:
                state[key].copy_(groups["optimizer"][f"{key}.{name}"])


def eval_batch(model: BertForPreTraining, precision: Precision, batch: Batch, micro_batch_size: int) -> EvalResult:
    """What a model makes of a batch, without dropout, in micro-batches as it is trained."""
    model.eval()
    return reduce(add, (_eval_micro_batch(model, precision, part) for part in _split(batch, micro_batch_size)))


@torch.no_grad()
def _eval_micro_batch(model: BertForPreTraining, precision: Precision, batch: Batch) -> EvalResult:
    with precision.autocast():
        mlm_logits, nsp_logits = model(*_inputs(batch))
    losses = pretraining_losses(mlm_logits, nsp_logits, batch.masked_labels, batch.next_sentence_labels)
    return EvalResult(
        losses.mlm_sum.item(),
        int(losses.mlm_count),
        int((mlm_logits.argmax(-1) == batch.masked_labels).sum()),
        losses.nsp_sum.item(),
        batch.next_sentence_labels.numel(),
        int((nsp_logits.argmax(-1) == batch.next_sentence_labels).sum()),
    )


def _inputs(batch: Batch) -> tuple[Tensor, ...]:
    """In the order of the model's arguments."""
    return batch.input_ids, batch.token_type_ids, batch.attention_mask, batch.masked_positions


def _labels(batch: Batch) -> int:
    return int((batch.masked_labels != IGNORED_LABEL).sum())


def _any_loss(model: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    """Of a sequence of one token, with a gradient for every parameter."""
    one = torch.zeros(1, 1, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        mlm_logits, nsp_logits = model(one, one, one == 0, one)
    return mlm_logits.sum() + nsp_logits.sum()


def _split(batch: Batch, size: int) -> list[Batch]:
    parts = (tensor.split(size) for tensor in vars(batch).values())
    return [Batch(*tensors) for tensors in zip(*parts)]
