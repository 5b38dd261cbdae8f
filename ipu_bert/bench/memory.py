"""What a training step keeps in memory, counted from live tensors and as the process's peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import torch

from ipu_bert.bench.models import IMPLEMENTATIONS, make_trainer, model_shape, random_batch
from ipu_bert.data.batches import Batch
from ipu_bert.engines.torch_engine import TorchEngine
from ipu_bert.model import sparse_layers
from ipu_bert.stopwatch import Stopwatch
from sparse_ops import openmp
from sparse_ops.host_memory import peak_memory_bytes
from sparse_ops.pattern import BlockIndex

ENCODER = "bert.encoder."


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the storages that belong to a part of the model. index: positions and kernel index of sparse weights."""

    weights: int
    gradients: int
    moments: int
    index: int

    @property
    def trained(self) -> int:
        """Weights, gradients and moments."""
        return self.weights + self.gradients + self.moments


def state_bytes(engine: TorchEngine, batch: Batch, prefix: str = ENCODER) -> StateBytes:
    """Run one training step and count the tensors of the parameters whose name starts with `prefix`.

    Gradients are counted as the backward pass hands them over, one per parameter; the sum is their peak, for all of
    them are there when the optimizer runs. Storages are counted, so a view of something larger counts in full.
    """
    parameters = {name: p for name, p in engine.model.named_parameters() if name.startswith(prefix)}
    gradients: dict[str, int] = {}
    # From torch 2.1; nothing is measured on the IPU's torch 2.0.
    hooks = [
        parameter.register_post_accumulate_grad_hook(_recorder(gradients, name))
        for name, parameter in parameters.items()
    ]
    try:
        engine.train_step(batch)
    finally:
        for hook in hooks:
            hook.remove()
    moments = engine.state()["optimizer"]
    keys = [key for key in moments if key.split(".", 1)[1] in parameters]
    indexes = [
        getattr(layer, field)
        for name, layer in sparse_layers(engine.model)
        if name.startswith(prefix)
        for field in BlockIndex._fields
    ]
    return StateBytes(
        weights=sum(_bytes(p) for p in parameters.values()),
        gradients=sum(gradients.values()),
        moments=sum(_bytes(moments[key]) for key in keys),
        index=sum(_bytes(tensor) for tensor in indexes),
    )


def _recorder(found: dict[str, int], name: str) -> Callable[[torch.Tensor], None]:
    def after_accumulation(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        found[name] = _bytes(parameter.grad)

    return after_accumulation


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def peak_bytes(name: str, size: str, batch: int, length: int, masked: int, sparsity: float, dropout: bool) -> int:
    """Growth of a fresh process's peak resident memory over two training steps: model, optimizer, activations.

    Imports are not counted. 0 where the process fails, which the caller reports as unknown.
    """
    request = json.dumps([name, size, batch, length, masked, sparsity, dropout, torch.get_num_threads()])
    command = [sys.executable, "-m", "ipu_bert.bench.memory", request]
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    return int(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.strip() else 0


def _measure(
    name: str, size: str, batch: int, length: int, masked: int, sparsity: float, dropout: bool, threads: int
) -> int:
    openmp.use_threads(threads)
    choice, tiny = IMPLEMENTATIONS[name], replace(model_shape("tiny", dropout), vocab_size=64, max_positions=32)
    # A step of a very small model first, so that what torch and the kernels set up once is not counted.
    make_trainer(choice, tiny, sparsity, Stopwatch()).train_step(random_batch(tiny, 1, 32, 4, seed=0))
    before = peak_memory_bytes()
    shape = model_shape(size, dropout)
    trainer = make_trainer(choice, shape, sparsity, Stopwatch())
    for step in range(2):
        trainer.train_step(random_batch(shape, batch, length, masked, seed=step))
    return peak_memory_bytes() - before


if __name__ == "__main__":
    print(_measure(*json.loads(sys.argv[1])))
