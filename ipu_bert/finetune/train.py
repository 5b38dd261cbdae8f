"""The loop: shuffle, step AdamW, move blocks, validate after every epoch, keep the best, stop early.

A small loop of our own and not transformers' Trainer: that one has no place for pattern updates, which need the
optimizer's moments, and draws dropout and order from global generators. Here everything drawn is named by seed, step
and purpose, so that a seed gives the same bits whatever ran before.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ipu_bert.assemble import update_plan
from ipu_bert.engines.base import MOMENTS, NonFiniteError
from ipu_bert.finetune.examples import Encoded, Labels
from ipu_bert.finetune.measures import Measures, better, measures
from ipu_bert.finetune.options import Training
from ipu_bert.hub.auto import SparseBertForSequenceClassification
from ipu_bert.lr_schedules import LR_SCHEDULES, with_warmup
from ipu_bert.model import sparse_layers
from ipu_bert.optim import Optimization, adamw
from ipu_bert.settings import Config
from sparse_ops.dynsparse.updater import PatternUpdater
from sparse_ops.pattern import named_generator
from sparse_ops.saying import say

_WARMUP = 0.1  # share of the steps, as in BERT's fine-tuning (Devlin et al. 2018)


@dataclass(frozen=True)
class Examples:
    """Text and its labels as `Labels.numbers` gives them, [rows]."""

    text: Encoded
    labels: Tensor


@dataclass(frozen=True)
class Fitted:
    """epochs: measures of the validation after each. best: which of them, from 1, the model is of. moved: blocks that
    changed place up to that one's end, over all updates.
    """

    epochs: tuple[Measures, ...]
    best: int
    moved: int


def fit(
    model: SparseBertForSequenceClassification,
    train: Examples,
    validation: Examples,
    labels: Labels,
    training: Training,
) -> Fitted:
    """Train in place; the model ends as it was after its best epoch.

    Raises NonFiniteError where loss or gradient is not finite.
    """
    stepper = _Stepper(model, training, steps_of(len(train.labels), training))
    target = train.labels if labels.classes else (train.labels - labels.mean) / labels.spread
    found: list[Measures] = []
    best = moved = 0
    kept: dict[str, Tensor] = {}
    for epoch in range(1, training.epochs + 1):
        losses = [
            stepper.step(train.text, numbers, target[numbers])
            for numbers in _batches(len(train.labels), training.batch_size, training.seed, epoch)
        ]
        predicted, _ = predict(model, validation.text, labels, training.batch_size)
        found.append(measures(validation.labels.numpy(), predicted, not labels.classes))
        shown = "  ".join(f"{name} {'none' if value is None else f'{value:.4f}'}" for name, value in found[-1].items())
        say(f"epoch {epoch}/{training.epochs}  loss {sum(losses) / len(losses):.4f}  validation {shown}", sys.stdout)
        if better(found[-1], found[best - 1] if best else None):
            best, moved = epoch, stepper.moved
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        elif epoch - best >= training.patience:
            break
    model.load_state_dict(kept)
    return Fitted(tuple(found), best, moved)


def steps_of(rows: int, training: Training) -> int:
    """Steps of a training on so many rows that nothing ends before its last epoch."""
    return training.epochs * math.ceil(rows / training.batch_size)


@torch.no_grad()
def predict(
    model: SparseBertForSequenceClassification, text: Encoded, labels: Labels, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Without dropout: classes int64 [rows] and their probabilities, or numbers float64 [rows] in both.

    Raises NonFiniteError where the model has no answer: the last step's loss is that before it, and says nothing of it.
    """
    model.eval()
    logits = torch.cat([_logits(model, text, numbers) for numbers in torch.arange(len(text.ids)).split(batch_size)])
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteError("the model's answers became infinite or no numbers; a smaller --lr may help", False)
    if not labels.classes:
        values = logits.squeeze(-1).double() * labels.spread + labels.mean
        return values.numpy(), values.numpy()
    best = logits.double().softmax(-1).max(-1)
    return best.indices.numpy(), best.values.numpy()


@torch.no_grad()
def in_units_of(labels: Labels, model: SparseBertForSequenceClassification) -> None:
    """Let a regression answer in its labels' units, in place; it was trained on labels of mean 0 and deviation 1.

    Raises ValueError where float32 cannot hold what that takes.
    """
    if not labels.classes:
        model.classifier.weight.mul_(labels.spread)
        model.classifier.bias.mul_(labels.spread).add_(labels.mean)
        if not all(bool(torch.isfinite(p).all()) for p in model.classifier.parameters()):
            raise ValueError(
                f"--regression: expected labels that float32 can answer in, found some up to {labels.spread:g}"
            )


def _batches(rows: int, size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    yield from torch.randperm(rows, generator=named_generator(seed, "order", epoch)).split(size)


def _logits(model: SparseBertForSequenceClassification, text: Encoded, numbers: Tensor) -> Tensor:
    batch = text.batch(numbers.tolist())
    logits: Tensor = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
    return logits


class _Stepper:
    """Optimizer steps, and pattern updates between them."""

    def __init__(self, model: SparseBertForSequenceClassification, training: Training, steps: int) -> None:
        optim, sparsity = Config().optim, Config().sparsity
        self._model, self._training = model, training
        self._optimization = Optimization(
            lr=training.lr,
            schedule=with_warmup(LR_SCHEDULES[optim.schedule], steps, math.ceil(_WARMUP * steps)),
            beta1=optim.beta1,
            beta2=optim.beta2,
            eps=optim.eps,
            weight_decay=training.weight_decay,
            group_lasso=optim.group_lasso,
            clip_norm=optim.clip_norm,
        )
        self._optimizer = adamw(model, self._optimization)
        self._layers = dict(sparse_layers(model))
        self._updater = None
        if training.updates:
            moved = replace(sparsity, updates=training.updates, pruning_ratio=training.pruning_ratio)
            self._updater = PatternUpdater(update_plan(moved, steps, training.seed))
            self._updater.track(self._layers)
        self._step = 0
        self.moved = 0

    def step(self, text: Encoded, numbers: Tensor, target: Tensor) -> float:
        """One step on some rows; the mean loss before it, in nats or squared deviations."""
        self._model.train()
        self._step += 1
        self._optimizer.zero_grad()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(named_generator(self._training.seed, "dropout", self._step).get_state())
            logits = _logits(self._model, text, numbers)
            if target.is_floating_point():
                loss = F.mse_loss(logits.squeeze(-1), target.to(logits.dtype))
            else:
                loss = F.cross_entropy(logits, target)
            loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._optimization.clip_norm))
        value = loss.item()
        if not math.isfinite(value + norm):
            raise NonFiniteError(
                f"step {self._step}: loss became {value}, gradient norm {norm}; a smaller --lr may help", True
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._optimization.lr * self._optimization.schedule(self._step - 1)
        self._optimizer.step()
        if self._updater is not None and self._updater.is_due(self._step):
            state = self._optimizer.state
            moments = {name: [state[layer.values][key] for key in MOMENTS] for name, layer in self._layers.items()}
            report = self._updater.update(self._layers, moments, self._step)
            self.moved += sum(layer.moved for layer in report.layers.values())
        return value
