"""The engine for IPUs: PopTorch on hardware, on Poplar's model of an IPU or offline, and the simulator on a CPU.

One executable trains and one evaluates; each is compiled once. Patterns are data to it: `host_state` downloads weights
and moments, translates them to slots, and when something changed translates back and uploads.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any, Iterator, Mapping

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
from ipu_bert.engines.ipu.model import IpuBert
from ipu_bert.engines.ipu.options import IpuRun, inference_options, training_options
from ipu_bert.engines.ipu.state import CanonicalModel, Moments, streamed_bytes
from ipu_bert.model import BertForPreTraining
from ipu_bert.optim import Optimization, parameter_groups
from ipu_bert.ranks import Ranks
from ipu_bert.stopwatch import Stopwatch
from sparse_ops.ipu.layout import Encoder, LayerPlan
from sparse_ops.linear import BlockSparseLinear


class IpuEngine:
    """Engine of `run` on the device it names.

    backend: the module with PopTorch's interface; encoder: the translation to its layout. Raises ValueError for
    settings that an IPU cannot have.
    """

    def __init__(
        self,
        model: BertForPreTraining,
        run: IpuRun,
        backend: Any,
        encoder: Encoder,
        ranks: Ranks,
        optimization: Optimization,
        timer: Stopwatch,
    ) -> None:
        if optimization.group_lasso:
            found = optimization.group_lasso
            raise ValueError(f"optim.group_lasso: expected 0, as PopTorch's AdamW has none, found {found}")
        if sum(run.layers_per_ipu) != model.shape.layers:
            raise ValueError(
                f"ipu.layers_per_ipu: expected {model.shape.layers} layers in all, found {list(run.layers_per_ipu)}"
            )
        self.run, self._poptorch, self._timer, self._ranks = run, backend, timer, ranks
        self._optimization, self._step = optimization, 0
        self._skipped = 0  # steps that a checkpoint's run passed over, which AdamW's correction of its bias leaves out
        self._random: list[int] | None = None  # the device's generator as a checkpoint had it, until it can be set
        self._device_model = IpuBert(model, run, lambda name, layer: layer_plan(name, layer, run), encoder, backend)
        self.canonical = CanonicalModel(model, self._device_model)
        self._optimizer = self._make_optimizer(model)
        ipus = len(run.layers_per_ipu)
        # PopTorch wraps a shallow copy, which keeps the flag `training` that the model has when it is wrapped.
        self._device_model.train()
        options = training_options(backend, run, ranks.options(ipus))
        self._trainer = backend.trainingModel(self._device_model, options=options, optimizer=self._optimizer)
        self._device_model.eval()
        options = inference_options(backend, run, ranks.options(ipus))
        self._evaluator = backend.inferenceModel(self._device_model, options=options)
        self.transfers = TransferRecord()
        self._check_same_patterns("start")

    def _make_optimizer(self, model: BertForPreTraining) -> Any:
        """PopTorch's AdamW over the device's parameters, grouped as the canonical ones."""
        options, parameters = self._optimization, dict(self._device_model.named_parameters())
        groups = [
            {
                "params": [parameters[self.canonical.names[name]] for name in group["names"]],
                "weight_decay": group["weight_decay"],
            }
            for group in parameter_groups(model, options.weight_decay)
        ]
        # Both moments in float32: with a half first moment PopART would take the loss scale out in half, where small
        # gradients vanish.
        return self._poptorch.optim.AdamW(
            groups,
            lr=options.lr * options.schedule(0),
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
            loss_scaling=self.run.loss_scale,
            bias_correction=True,
            accum_type=self.run.dtype,
            first_order_momentum_accum_type=torch.float32,
            second_order_momentum_accum_type=torch.float32,
            max_grad_norm=options.clip_norm or None,
        )

    # --- running

    @property
    def share(self) -> tuple[int, int]:
        """See Engine: poprun's instances have each a part of every batch."""
        return self._ranks.index, self._ranks.count

    def train_step(self, batch: Batch, gradient_counts: Mapping[str, int] | None = None) -> StepResult:
        """See Engine. The gradient's norm stays on the device and is NaN here.

        A loss that is not finite is found after the device has stepped.
        """
        if gradient_counts is not None:
            raise ValueError("sparsity.growth: the IPU engine has no dense gradient; expected random, found gradient")
        if self.run.device == "offline":
            raise ValueError("engine.device: offline compiles only; expected hardware, ipu_model or simulated to train")
        lr = self._optimization.lr * self._optimization.schedule(self._step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        inputs = self._inputs(batch, mean=True)
        micro_batches = self._ranks.count * self.run.micro_batches
        with self._timer("forward"):  # and backward, and the update: one executable
            self._activate(self._trainer)
            self._restore_random(inputs)
            self._trainer.setOptimizer(self._optimizer)
            _, mlm, nsp = self._trainer(*inputs)
        sums = self._ranks.sum([float(mlm.double().sum()), float(nsp.double().sum())])
        mlm_loss, nsp_loss = (each / micro_batches for each in sums)
        if not math.isfinite(mlm_loss + nsp_loss):
            message = f"loss became {mlm_loss + nsp_loss} (MLM {mlm_loss}, NSP {nsp_loss})"
            raise NonFiniteError(f"{message}; the weights on the device are lost", weights_kept=False)
        self._step += 1
        return StepResult(mlm_loss, nsp_loss, math.nan, lr)

    def eval_step(self, batch: Batch) -> EvalResult:
        """See Engine."""
        self._activate(self._evaluator)
        outputs = self._evaluator(*self._inputs(batch, mean=False))
        counts = [int((batch.masked_labels != IGNORED_LABEL).sum()), batch.next_sentence_labels.numel()]
        mlm, mlm_hits, nsp, nsp_hits = (float(x.double().sum()) for x in outputs)
        return EvalResult.of_sums(self._ranks.sum([mlm, counts[0], mlm_hits, nsp, counts[1], nsp_hits]))

    def compile(self, batch: Batch) -> None:
        """See Engine: both executables, which go into the executable cache if there is one."""
        self._device_model.train()
        self._trainer.compile(*self._inputs(batch, mean=True))
        self._device_model.eval()
        self._evaluator.compile(*self._inputs(batch, mean=False))

    def _restore_random(self, inputs: tuple[Tensor, ...]) -> None:
        """Set the generator of a checkpoint: PopTorch has none before there is an executable (docs/ipu.md)."""
        if self._random is None:
            return
        if not self._trainer.isCompiled():
            self._trainer.compile(*inputs)
        self._trainer.rng_state = self._random
        self._random = None

    def _activate(self, executor: Any) -> None:
        """Give the IPUs to one executable; PopTorch carries weights and optimizer state over."""
        other = self._evaluator if executor is self._trainer else self._trainer
        if other.isCompiled() and other.isAttachedToDevice():
            other.detachFromDevice()
        self._device_model.train(executor is self._trainer)
        if executor.isCompiled() and not executor.isAttachedToDevice():
            executor.attachToDevice()

    def _inputs(self, batch: Batch, mean: bool) -> tuple[Tensor, ...]:
        """The device's inputs of this instance's share of a batch; losses count as sums, or as `mean` needs them.

        The device takes the mean over M micro-batches of all instances. With weights M / labels of the whole batch it
        is the batch's own mean, however labels are spread, while each micro-batch's loss has the size of a mean.
        """
        sequences = batch.input_ids.shape[0]
        if sequences != self.run.sequences:
            raise ValueError(f"batch: expected {self.run.sequences} sequences for this instance, found {sequences}")
        labelled = batch.masked_labels != IGNORED_LABEL
        label_weight = sequence_weight = 1.0
        if mean:
            (labels,) = self._ranks.sum([int(labelled.sum())])
            label_weight = self._ranks.count * self.run.micro_batches / max(1.0, labels)
            sequence_weight = 1.0 / self.run.micro_batch_size
        return (
            batch.input_ids,
            batch.token_type_ids,
            batch.attention_mask.long(),
            batch.masked_positions,
            batch.masked_labels.where(labelled, torch.zeros_like(batch.masked_labels)),
            labelled.float() * label_weight,
            batch.next_sentence_labels,
            torch.full((sequences,), sequence_weight),
        )

    # --- the host's view

    @contextmanager
    def host_state(self) -> Iterator[HostState]:
        """See Engine: slots on the host; what was changed is encoded and uploaded when the context closes."""
        self.transfers = TransferRecord(compilations=self._compilations())
        state = self._read_state()
        moments = self.canonical.read_sparse(state)
        before = self._snapshot(moments)
        yield HostState(self.canonical.layers, moments)
        changed = any(not torch.equal(a, b) for a, b in zip(before, self._live(moments)))
        if changed:
            self._check_same_patterns(f"pattern update after step {self._step}")
            written = self.canonical.write_sparse(moments)
            self._upload({**(state or self._empty_state()), **written})
        self.transfers.compilations = self._compilations()

    def digests(self) -> dict[str, str]:
        """See Engine: positions; weights are the device's."""
        return {f"{name} positions": layer.pattern.checksum() for name, layer in self.canonical.layers.items()}

    def state(self) -> TensorGroups:
        """See Engine: the same groups and names as the torch engine's, so a checkpoint fits either."""
        moments = self.canonical.read_all(self._read_state())
        if self._skipped:
            moments["updates"] = torch.tensor(self._step - self._skipped)
        model = {name: tensor.detach() for name, tensor in self.canonical.model.state_dict().items()}
        random = {"torch": torch.get_rng_state()}
        if self._random is not None or self._trainer.isCompiled():
            state = self._trainer.rng_state if self._random is None else self._random
            random["ipu"] = torch.tensor(state, dtype=torch.int64)
        return {"model": model, "optimizer": moments, "random": random}

    def load_state(self, groups: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """See Engine."""
        check_state(self.canonical.model, groups, step)
        self._read_state()
        self.canonical.model.load_state_dict(dict(groups["model"]))
        updates = int(groups["optimizer"].get("updates", step))
        self._upload(self.canonical.write_all(groups["optimizer"], updates))
        self._step, self._skipped = step, step - updates
        if "ipu" in groups.get("random", {}):  # not in a checkpoint of the torch engine
            self._random = groups["random"]["ipu"].tolist()
        self._check_same_patterns(f"checkpoint of step {step}")

    def _check_same_patterns(self, when: str) -> None:
        """Raises ValueError before ranks with different patterns send any of them to their IPUs."""
        self._ranks.check_same(self.digests(), when)

    def _read_state(self) -> dict[str, Tensor] | None:
        """Download weights and optimizer state if the device has newer ones; None before there is any state."""
        newer = self._trainer.copyWeightsToHostIfNeeded()
        dirty = self._optimizer.host_state_is_dirty
        state: dict[str, Tensor] | None = self._optimizer.state_dict()["ipu_state"]
        self.transfers.bytes_down += (int(newer) + int(dirty)) * streamed_bytes(self._device_model, state)
        return state

    def _upload(self, state: dict[str, Tensor]) -> None:
        if self._trainer.isCompiled() and self._trainer.isAttachedToDevice():
            self._trainer.copyWeightsToDevice()
        # Written at the next call, or when the executable is attached again.
        known = self._optimizer.state_dict()
        parameters = known.get("ipu_param") or {}
        self._optimizer.load_state_dict({**known, "ipu_state": state, "ipu_param": parameters})
        self.transfers.bytes_up += 2 * streamed_bytes(self._device_model, state)

    def _empty_state(self) -> dict[str, Tensor]:
        """The state before the first step."""
        zeros = {
            f"{key}.{name}": torch.zeros(parameter.shape)
            for name, parameter in self.canonical.model.named_parameters()
            for key in MOMENTS
        }
        return self.canonical.write_all(zeros, updates=0)

    def _snapshot(self, moments: Moments) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._live(moments)]

    def _live(self, moments: Moments) -> list[Tensor]:
        layers = self.canonical.layers
        return [t for name, layer in layers.items() for t in (layer.rows, layer.cols, layer.values, *moments[name])]

    def _compilations(self) -> int:
        return int(self._trainer.isCompiled())


def layer_plan(name: str, layer: BlockSparseLinear, run: IpuRun) -> LayerPlan:
    """The plan of a sparse layer; 1x1 blocks have float partials only."""
    half_partials = run.half and run.half_partials and layer.block_size > 1
    return LayerPlan(
        layer=name,
        in_features=layer.in_features,
        out_features=layer.out_features,
        block_size=layer.block_size,
        blocks=layer.values.shape[0],
        batch=run.micro_batch_size * run.sequence_length,
        available_memory_proportion=run.sparse_available_memory,
        meta_info_bucket_oversize_proportion=run.sparse_oversize,
        partials="half" if half_partials else "float",
        data_type="half" if run.half else "float",
    )
