"""Losses ahead of time: train as the product does, but on a GPU, where sparse weights are dense ones with a mask.

PYTHONPATH=. python docs/examples/masked_on_gpu.py run --config NAME [section.key=value ...]
PYTHONPATH=. python docs/examples/masked_on_gpu.py study NAME_or_FILE --jobs 8

It saves neither time nor memory, and is no engine of the product: it says which loss a model will reach in more steps
than a CPU takes in a night (docs/study.md). Start, data, schedule, pattern updates, evaluation and records are the
product's own; the step is a CUDA graph, its products are TF32. What it has not is refused (ONLY).
"""

from __future__ import annotations

import copy
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping

import torch
from torch import Tensor, nn

from ipu_bert import assemble, cli, summary
from ipu_bert.data.ahead import BatchAhead
from ipu_bert.data.batches import Batch
from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.engines.base import MOMENTS, EvalResult, HostState, NonFiniteError, StepResult
from ipu_bert.model import pretraining_losses, sparse_layers
from ipu_bert.optim import adamw
from ipu_bert.study import __main__ as study
from ipu_bert.study import run
from sparse_ops.linear import BlockSparseLinear, as_blocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ONLY = {
    "model.dropout": 0.0,
    "model.attention_dropout": 0.0,
    "sparsity.growth": "random",
    "optim.group_lasso": 0.0,
    "precision.compute": "float32",
    "engine.name": "torch",
}


def scattered(layer: BlockSparseLinear, values: Tensor) -> Tensor:
    """Values [nnz, b, b] of the layer's blocks as a dense weight."""
    dense = values.new_zeros(layer.out_features, layer.in_features)
    as_blocks(dense, layer.block_size)[layer.rows.long(), layer.cols.long()] = values
    return dense


def gathered(layer: BlockSparseLinear, dense: Tensor) -> Tensor:
    """The layer's blocks [nnz, b, b] of a dense weight."""
    return as_blocks(dense, layer.block_size)[layer.rows.long(), layer.cols.long()]


class MaskedLinear(nn.Module):
    """A sparse layer as a dense one with a mask: its gradient is to be multiplied by that."""

    mask: Tensor

    def __init__(self, layer: BlockSparseLinear) -> None:
        super().__init__()
        assert layer.bias is not None
        self.weight = nn.Parameter(scattered(layer, layer.values.detach()))
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.register_buffer("mask", scattered(layer, torch.ones_like(layer.values)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class MaskedEngine:
    """An ipu_bert.engines.base.Engine. Its `twin`, the product's own model, holds patterns, and weights when asked."""

    transfers = None
    share = (0, 1)

    def __init__(self, twin: Any, optimization: Any) -> None:
        self.twin, self._optimization = twin, optimization
        self.layers = dict(sparse_layers(twin))
        self.model = copy.deepcopy(twin)
        self.masked = {name: MaskedLinear(layer) for name, layer in self.layers.items()}
        for name, linear in self.masked.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, linear)
        self.model.to(DEVICE).train()
        self._named = dict(self.model.named_parameters())
        self._optimizer = adamw(self.model, optimization)
        self._lr = torch.zeros((), device=DEVICE)
        for group in self._optimizer.param_groups:
            if DEVICE == "cuda":
                group["lr"], group["capturable"] = self._lr, True
        for parameter in self._named.values():
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), device=DEVICE),
                **{key: torch.zeros_like(parameter) for key in MOMENTS},
            }
        self._step = 0
        self._graph: Any = None  # of a step on the batch `_static` with `_labels`; what comes out is in `_out`
        self._static: Any = None

    def _pairs(self) -> Iterator[tuple[str, nn.Parameter, BlockSparseLinear | None]]:
        """Each parameter here, with the name of the twin's and, where that is a sparse one's values, its layer."""
        for name, parameter in self._named.items():
            layer = self.layers.get(name[: -len(".weight")])
            yield (name if layer is None else f"{name[: -len('.weight')]}.values"), parameter, layer

    @torch.no_grad()
    def _pull(self) -> dict[str, dict[str, Tensor]]:
        twins = dict(self.twin.named_parameters())
        moments: dict[str, dict[str, Tensor]] = {key: {} for key in MOMENTS}
        for name, parameter, layer in self._pairs():
            dense = parameter.detach().cpu()
            twins[name].copy_(dense if layer is None else gathered(layer, dense))
            for key in MOMENTS:
                moment = self._optimizer.state[parameter][key].to("cpu", copy=True)
                moments[key][name] = moment if layer is None else gathered(layer, moment)
        return moments

    @torch.no_grad()
    def _push(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        twins = dict(self.twin.named_parameters())
        for name, parameter, layer in self._pairs():
            mine = twins[name].detach()
            parameter.copy_(mine if layer is None else scattered(layer, mine))
            if layer is not None:
                self.masked[name[: -len(".values")]].mask.copy_(scattered(layer, torch.ones_like(mine)))
            for key in MOMENTS:
                moment = moments[key][name]
                self._optimizer.state[parameter][key].copy_(moment if layer is None else scattered(layer, moment))

    @contextmanager
    def host_state(self) -> Iterator[HostState]:
        moments = self._pull()
        yield HostState(self.layers, {n: [moments[key][f"{n}.values"] for key in MOMENTS] for n in self.layers})
        self._push(moments)

    def state(self) -> Any:
        moments = self._pull()
        return {
            "model": {name: tensor.detach() for name, tensor in self.twin.state_dict().items()},
            "optimizer": {f"{key}.{name}": moments[key][name] for key in MOMENTS for name in moments[key]},
            "random": {"torch": torch.Generator().manual_seed(0).get_state()},
        }

    def load_state(self, groups: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        self.twin.load_state_dict(groups["model"])
        self._push({key: {n: groups["optimizer"][f"{key}.{n}"] for n, _, _ in self._pairs()} for key in MOMENTS})
        self._count(step)
        self._step = step

    def _count(self, steps: int) -> None:
        """So many steps have been made, which AdamW corrects its bias by."""
        for state in self._optimizer.state.values():
            state["step"].fill_(steps)

    def digests(self) -> dict[str, str]:
        return {}

    def compile(self, batch: Batch) -> None:
        pass

    def _work(self, batch: Batch, labels: Tensor, sequences: int) -> Tensor:
        """One step: the mean losses and the gradient's norm."""
        losses = self.model(
            batch.input_ids,
            batch.token_type_ids,
            batch.attention_mask,
            batch.masked_positions,
            labels=(batch.masked_labels, batch.next_sentence_labels),
        )
        mlm, nsp = losses.mlm_sum / labels, losses.nsp_sum / sequences
        (mlm + nsp).backward()
        gradients = [p.grad for p in self._named.values() if p.grad is not None]
        masks = [linear.mask for linear in self.masked.values()]
        if masks:
            torch._foreach_mul_([linear.weight.grad for linear in self.masked.values()], masks)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        factor = ((self._optimization.clip_norm or math.inf) / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
        self._optimizer.step()
        return torch.stack([mlm.detach(), nsp.detach(), norm])

    def _capture(self) -> None:
        """The step as a CUDA graph; weights and moments are as before afterwards."""
        moments = self._pull()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._optimizer.zero_grad(set_to_none=True)
                self._work(self._static, self._labels, self._static.input_ids.shape[0])
        torch.cuda.current_stream().wait_stream(stream)
        self._optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = self._work(self._static, self._labels, self._static.input_ids.shape[0])
        self._push(moments)
        self._count(self._step - 1)

    def train_step(self, batch: Batch, gradient_counts: Any = None) -> StepResult:
        assert gradient_counts is None
        self._step += 1
        self.model.train()
        lr = self._optimization.lr * self._optimization.schedule(self._step - 1)
        labels = max(1, int((batch.masked_labels != IGNORED_LABEL).sum()))
        if DEVICE == "cpu":
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.zero_grad()
            out = self._work(batch, torch.tensor(float(labels)), batch.input_ids.shape[0])
        else:
            if self._static is None:
                self._static = Batch(*(getattr(batch, f).to(DEVICE) for f in batch.__dataclass_fields__))
                self._labels = torch.zeros((), device=DEVICE)
                self._labels.fill_(labels)
                self._capture()
                self._read = torch.empty_like(self._out, device="cpu", pin_memory=True)
                # Waits asleep: more runs than cores, each of them waiting awake, would take the cores from each other.
                self._done = torch.cuda.Event(blocking=True)
            for field in batch.__dataclass_fields__:
                getattr(self._static, field).copy_(getattr(batch, field))
            self._labels.fill_(labels)
            self._lr.fill_(lr)
            self._graph.replay()
            self._read.copy_(self._out, non_blocking=True)
            self._done.record()
            self._done.synchronize()
            out = self._read
        mlm, nsp, norm = out.tolist()
        if not math.isfinite(mlm + nsp + norm):
            raise NonFiniteError(f"loss became {mlm + nsp}, gradient norm {norm}", weights_kept=False)
        return StepResult(mlm, nsp, norm, lr)

    @torch.no_grad()
    def eval_step(self, batch: Batch) -> EvalResult:
        self.model.eval()
        mine = Batch(*(getattr(batch, f).to(DEVICE) for f in batch.__dataclass_fields__))
        mlm_logits, nsp_logits = self.model(
            mine.input_ids, mine.token_type_ids, mine.attention_mask, mine.masked_positions
        )
        losses = pretraining_losses(mlm_logits, nsp_logits, mine.masked_labels, mine.next_sentence_labels)
        sums = [
            losses.mlm_sum,
            losses.mlm_count,
            (mlm_logits.argmax(-1) == mine.masked_labels).sum(),
            losses.nsp_sum,
            torch.tensor(float(batch.next_sentence_labels.numel()), device=DEVICE),
            (nsp_logits.argmax(-1) == mine.next_sentence_labels).sum(),
        ]
        return EvalResult.of_sums(torch.stack([s.double() for s in sums]).tolist())


def make_engine(config: Any, vocab_size: int, timer: Any, ranks: Any = None) -> MaskedEngine:
    """In the place of assemble.make_engine. Raises ValueError for what is not here."""
    for name, expected in ONLY.items():
        section, _, key = name.partition(".")
        found = getattr(getattr(config, section), key)
        if found != expected:
            raise ValueError(f"{name}: expected {expected}, as masked_on_gpu.py has nothing else, found {found}")
    assemble.use_threads(config)
    return MaskedEngine(assemble.make_model(config, vocab_size), assemble.optimization(config))


def main(argv: list[str]) -> int:
    """One run, or a study of runs, each of which is this file again."""
    mode, *rest = argv or [""]
    if mode == "study":
        run.PROGRAM = (str(Path(sys.argv[0]).resolve()), "run")
        return study.main(rest)
    if mode != "run":
        print(f"masked_on_gpu.py: expected run or study, found {mode!r}", file=sys.stderr)
        return 2
    torch.set_float32_matmul_precision("high")
    assemble.make_engine = make_engine
    assemble.compile_kernels = assemble.choose_variants = lambda config, ranks: None
    assemble.train_batches = lambda config, stream, engine: BatchAhead(stream, 0, 1)
    if DEVICE == "cuda":
        processor = f"{torch.cuda.get_device_name()}, masks on dense weights"
        summary.processor = lambda: processor
    return cli.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
