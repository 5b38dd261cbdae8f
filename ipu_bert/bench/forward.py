"""Forward passes without gradients, as a trained model runs: the sparse Base beside the dense models, all in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import nn

from ipu_bert.bench import models
from ipu_bert.bench.equal_loss import LENGTH, equal_loss
from ipu_bert.bench.models import DENSE_FLOAT32, SPARSE, SPARSE_SIZE
from sparse_ops.bench.sampling import Summary, alternate, summarize

BATCHES = (1, 32)  # sequences


@dataclass(frozen=True)
class Forward:
    """Encoder and pooler on `batch` whole sequences. summaries: by size and implementation."""

    batch: int
    summaries: Mapping[tuple[str, str], Summary]

    @property
    def at_equal_loss(self) -> dict[tuple[str, str], float]:
        """By sparse model, its seconds over those of the dense model of equal loss."""
        seconds = {step: found.seconds for step, found in self.summaries.items()}
        found = equal_loss(SPARSE_SIZE, *models.sparse_and_dense(seconds))
        return {(SPARSE_SIZE, SPARSE[one.block]): one.ratio for one in found}

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "batch": self.batch,
            "passes": [
                {"size": size, "implementation": name, **vars(found), "ratio": self.at_equal_loss.get((size, name))}
                for (size, name), found in self.summaries.items()
            ],
        }


def measure(built: Mapping[tuple[str, str], nn.Module], repeats: int) -> list[Forward]:
    """Time the models, which are left in evaluation mode, with each of BATCHES; the smaller the more rounds."""
    found = []
    for batch in BATCHES:
        ids = torch.randint(1, models.VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(0))
        runs = {" ".join(step): _pass(model, ids) for step, model in built.items()}
        samples = alternate(runs, repeats * max(BATCHES) // batch)
        found.append(Forward(batch, {step: summarize(samples[" ".join(step)]) for step in built}))
    return found


def _pass(model: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    bert = model.eval().get_submodule("bert")
    types, seen = torch.zeros_like(ids), torch.ones_like(ids)

    def run() -> None:
        with torch.inference_mode():
            bert(input_ids=ids, token_type_ids=types, attention_mask=seen)

    return run


def render(passes: Sequence[Forward]) -> str:
    """For a reader, a line for each model: milliseconds, times faster than dense Base, over dense at equal loss."""
    head = [f"{f'{one.batch} x {LENGTH}, ms':>13} {'x dense':>7} {'at equal loss':>13}" for one in passes]
    lines = [f"{'forward without gradients':<25} {' '.join(head)}"]
    for step in passes[0].summaries:
        texts = []
        for one in passes:
            seconds, dense = one.summaries[step].seconds, one.summaries[SPARSE_SIZE, DENSE_FLOAT32].seconds
            ratio = one.at_equal_loss.get(step)
            texts.append(f"{1e3 * seconds:>13.1f} {dense / seconds:>7.2f} {f'{ratio:.2f}' if ratio else '-':>13}")
        lines.append(f"{' '.join(step):<25} {' '.join(texts)}")
    return "\n".join(lines)
