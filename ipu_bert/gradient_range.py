"""Which gradients float16 can hold, by tensor, for real text: python -m ipu_bert.gradient_range --config NAME

The first micro-batches of the config's first batch, in float32, with the loss and the scale that an IPU is given, from
the starting weights or from those of a run (--run). A share is of the elements that are not 0: `lost` are below 2^-25,
where float16 rounds to 0; `coarse` from there to 2^-14, where it has less than its 11 bits; `over` from 2^16.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn

from ipu_bert import assemble, checkpoint, starting
from ipu_bert.config import Config, load_config, not_as_written
from ipu_bert.data.batches import Batch
from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.engines.checked_state import check_model
from ipu_bert.model import BertForPreTraining, pretraining_losses
from ipu_bert.record.metrics import dumps
from ipu_bert.signals import delayed
from sparse_ops.arguments import Parser, named_path, whole_number
from sparse_ops.ends import with_one_line
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.process import make_ready
from sparse_ops.saying import answer, say

LOWEST, HIGHEST = -100, 100  # exponents that are told apart
SMALLEST, NORMAL, ABOVE = -25, -14, 16  # of float16
WATCHED = (nn.Linear, BlockSparseLinear, nn.LayerNorm, nn.Embedding)
WORST = 12  # tensors that are printed


@dataclass(frozen=True)
class Magnitudes:
    """Elements of a tensor that are not 0, by exponent: counts[i] of them in [2^(LOWEST + i), 2^(LOWEST + i + 1))."""

    counts: Tensor

    def __add__(self, other: Magnitudes) -> Magnitudes:
        return Magnitudes(self.counts + other.counts)

    def share(self, low: int, high: int) -> float:
        """Of elements in [2^low, 2^high)."""
        return float(self.counts[low - LOWEST : high - LOWEST].sum()) / max(1, int(self.counts.sum()))

    def median(self) -> float:
        """The power of two at or below the median."""
        total = int(self.counts.sum())
        return 2.0 ** (LOWEST + int((self.counts.cumsum(0) * 2 < total).sum())) if total else 0.0

    def to_dict(self, shift: int = 0) -> dict[str, float]:
        """Shares, and the median, with the loss scale times 2^shift."""
        return {
            "lost": self.share(LOWEST, SMALLEST - shift),
            "coarse": self.share(SMALLEST - shift, NORMAL - shift),
            "over": self.share(ABOVE - shift, HIGHEST + 1),
            "median": self.median() * 2.0**shift,
        }


def magnitudes(tensor: Tensor) -> Magnitudes:
    """Of a float32 tensor; what is not finite counts as too large."""
    found = tensor.detach().abs().flatten()
    exponents = found[found > 0].log2().floor().nan_to_num(HIGHEST, HIGHEST).clamp(LOWEST, HIGHEST).long()
    return Magnitudes((exponents - LOWEST).bincount(minlength=HIGHEST - LOWEST + 1))


def gradient_magnitudes(config: Config, model: BertForPreTraining, batch: Batch, count: int) -> dict[str, Magnitudes]:
    """By tensor, over `count` micro-batches of a batch: gradients of parameters, and of modules' outputs as `NAME ->`.

    The loss is the IPU engine's: the mean of its micro-batches is the whole batch's mean.
    """
    found: dict[str, Magnitudes] = {}

    def note(name: str, gradient: Tensor) -> None:
        added = magnitudes(gradient)
        found[name] = found[name] + added if name in found else added

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.register_hook(lambda gradient: note(name, gradient))

        return hook

    watched = [(name, module) for name, module in model.named_modules() if isinstance(module, WATCHED)]
    hooks = [module.register_forward_hook(watch(f"{name} ->")) for name, module in watched]
    size, micro_batches = config.train.micro_batch_size, _in_a_batch(config)
    assert size is not None
    labels = max(1, int((batch.masked_labels != IGNORED_LABEL).sum()))
    model.train()
    for parts in list(zip(*(x.split(size) for x in vars(batch).values())))[:count]:
        micro = Batch(*parts)
        mlm, nsp = model(micro.input_ids, micro.token_type_ids, micro.attention_mask, micro.masked_positions)
        losses = pretraining_losses(mlm, nsp, micro.masked_labels, micro.next_sentence_labels)
        loss = losses.mlm_sum * (micro_batches / labels) + losses.nsp_sum / size
        model.zero_grad()
        (loss * config.precision.loss_scale).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                note(name, parameter.grad)
    for hook in hooks:
        hook.remove()
    return found


def _in_a_batch(config: Config) -> int:
    """Micro-batches of a batch: the most that can be measured."""
    size = config.train.micro_batch_size
    assert size is not None
    return config.train.batch_size // size


def render(config: Config, found: dict[str, Magnitudes], count: int) -> str:
    """For a reader: the worst tensors, and all together for other scales. count: measured micro-batches."""
    rows = {name: each.to_dict() for name, each in found.items()}
    worst = sorted(rows, key=lambda name: -max(rows[name]["lost"], rows[name]["over"]))[:WORST]
    width = max(len(name) for name in worst)
    measured = f"{count} of the batch's {_in_a_batch(config)} micro-batches"
    lines = [f"loss scale {config.precision.loss_scale:g}, {measured}, {len(rows)} tensors; the {len(worst)} worst:"]
    lines.append(f"{'tensor (NAME ->: of its output)':{width}}     lost   coarse     over   median")
    for name in worst:
        lines.append(f"{name:{width}} {_shares(rows[name])} {rows[name]['median']:8.1e}")
    together = _together(found)
    lines += ["", f"{'all together, with the scale':{width}}     lost   coarse     over"]
    for shift in range(-12, 9, 2):
        scale = f"{config.precision.loss_scale * 2.0**shift:>14,g}"
        lines.append(f"{scale:{width}} {_shares(together.to_dict(shift))}")
    return "\n".join(lines)


def _together(found: dict[str, Magnitudes]) -> Magnitudes:
    return Magnitudes(torch.stack([each.counts for each in found.values()]).sum(0))


def _shares(row: dict[str, float]) -> str:
    return " ".join(f"{100 * row[key]:7.3f}%" for key in ("lost", "coarse", "over"))


def measure(config: Config, run: Path | None, count: int) -> dict[str, Magnitudes]:
    """Of a config's model at its start (`model.init`, too), or with the weights of a run's newest checkpoint.

    Raises ValueError where they are another model's, or where `model.init` cannot be taken.
    """
    make_ready()
    assemble.use_threads(config)
    files = assemble.open_data(config, progress=True)
    model = assemble.make_model(config, files.vocab_size)
    if run is not None:
        _, groups, info = checkpoint.load_newest(run)
        check_model(model, groups)
        if info["identity"].get("tokenizer") != files.identity["tokenizer"]:
            raise ValueError(f"{run}: expected a run on text in the words of {files.directory}, found other ones")
        model.load_state_dict(groups["model"])
    elif config.model.init:
        model.load_state_dict(starting.start(config, files).state)
    torch.manual_seed(config.run.seed)  # dropout
    return gradient_magnitudes(config, model, assemble.make_stream(config, files, "train").batch(0), count)


def main(argv: Sequence[str]) -> int:
    """Print the shares; every error a user can cause ends in one line and exit status 2."""
    about, _, _ = (__doc__ or "").partition(":")
    parser = Parser(prog="python -m ipu_bert.gradient_range", description=about)
    parser.add_argument("--config", required=True, metavar="NAME_or_FILE", help="as for run_pretraining.py")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the config's")
    parser.add_argument("--run", type=named_path, metavar="RUN", help="weights of this run's newest checkpoint")
    number = whole_number(1, 1_000_000)
    parser.add_argument(
        "--micro-batches", type=number, default=4, metavar="N", help="how many, at most a batch's; default: 4"
    )
    parser.add_argument("--json", action="store_true", help="all tensors, as one JSON object")
    with delayed():
        options = parser.parse_intermixed_args(list(argv))

    def act() -> None:
        config = load_config(options.config, options.overrides)
        for line in not_as_written(config):
            say(line, sys.stderr)
        count = min(options.micro_batches, _in_a_batch(config))
        found = measure(config, options.run, count)
        tensors: dict[str, Any] = {name: each.to_dict() for name, each in found.items()}
        scale = config.precision.loss_scale
        as_json = dumps({"loss_scale": scale, "micro_batches": count, "tensors": tensors})
        answer(as_json if options.json else render(config, found, count))

    return with_one_line(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
