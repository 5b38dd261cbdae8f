"""What gives way: a value that the user did not write, where it does not fit one that they did write.

Each rule below is for one key and says what should stand there instead, where that is obvious. It is asked only when
the key's value is a default or from a file in configs/, and changes only what would be refused, or would keep from its
effect what the user wrote. That stays; where both values are the user's, or nothing obvious follows, the checks refuse.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import accumulate
from typing import Any, Callable, Iterator, Mapping, Sequence

from ipu_bert.config.resolve import (
    PAPER_WARMUP,
    default_heads,
    default_warmup,
    in_steps,
    longest_warmup,
    most_predictions,
    steps_to_update,
    wanted_predictions,
)
from ipu_bert.config.values import in_range
from ipu_bert.config.written import Written
from ipu_bert.settings import Config, PrecisionSettings
from ipu_bert.sizes.stages import minimum_accumulation


@dataclasses.dataclass(frozen=True)
class Change:
    """A value that does not fit, the one in its place, and why; the reason goes on from "since the default 32 ..."."""

    found: Any
    value: Any
    reason: str


def give_way(config: Config, written: Written) -> list[str]:
    """Change what gives way in a config that is not resolved yet; returns a line of text for each such key."""
    lines, users = [], written.users
    for key, rule in _RULES.items():
        change = rule(config) if key not in users else None
        section, _, name = key.partition(".")
        settings = getattr(config, section)
        if change is not None and in_range(change.value, _limits(settings, name)):
            setattr(settings, name, change.value)
            owner = f"{written.shipped[key]}'s" if key in written.shipped else "the default"
            lines.append(f"{key}: {change.value}, since {owner} {change.found} {change.reason}")
    return lines


def too_few_predictions(config: Config) -> list[str]:
    """A line where `data.max_predictions` as it was written keeps the data from reaching `data.mask_probability`."""
    data = config.data
    if data.max_predictions >= wanted_predictions(config):
        return []
    share = f"{100 * data.max_predictions / data.sequence_length:.1f} % of {data.sequence_length} tokens"
    asked = f"data.mask_probability {data.mask_probability}, which gives way"
    return [f"data.max_predictions: {data.max_predictions} as written: at most {share}, less than {asked}"]


def _limits(settings: Any, name: str) -> Mapping[str, Any]:
    return next(f.metadata for f in dataclasses.fields(settings) if f.name == name)


def _divisors_down(size: int, largest: int) -> Iterator[int]:
    """The divisors of `size` that are at most `largest`, from the largest to 1."""
    return (divisor for divisor in range(min(size, largest), 0, -1) if size % divisor == 0)


def _heads(config: Config) -> Change | None:
    size, default = config.model.hidden_size, default_heads(config)
    if config.model.heads or size % default == 0:
        return None
    return Change(default, next(_divisors_down(size, default)), f"does not divide model.hidden_size {size}")


def _max_positions(config: Config) -> Change | None:
    found, length = config.model.max_positions, config.data.sequence_length
    return Change(found, length, f"is less than data.sequence_length {length}") if found < length else None


def _sequence_length(config: Config) -> Change | None:
    found, positions = config.data.sequence_length, config.model.max_positions
    return Change(found, positions, f"is more than model.max_positions {positions}") if found > positions else None


def _max_predictions(config: Config) -> Change | None:
    data, most = config.data, most_predictions(config)
    found, length = data.max_predictions, data.sequence_length
    if wanted_predictions(config) <= found <= most:
        return None
    share = f"data.mask_probability {data.mask_probability} of data.sequence_length {length}"
    value = min(max(1, math.ceil(round(data.mask_probability * length, 6))), most)
    return Change(
        found, value, f"is less than {share}" if found < value else f"does not fit data.sequence_length {length}"
    )


def _source(config: Config) -> Change | None:
    """A path is one of files."""
    found = config.data.source
    return Change(found, "files", "reads no data.path") if config.data.path and found != "files" else None


def _compute(config: Config) -> Change | None:
    """float16 is for IPUs; the default is for both engines."""
    found, engine = config.precision.compute, config.engine.name
    if engine == "ipu" or found != "float16":
        return None
    return Change(found, PrecisionSettings().compute, f"is not for the {engine} engine")


def _layers_per_ipu(config: Config) -> Change | None:
    """The same proportions in whole layers; what does not divide goes to later IPUs, since heads are on the first."""
    found, layers = config.ipu.layers_per_ipu, config.model.layers
    if config.engine.name != "ipu" or isinstance(found, str) or sum(found) in (0, layers):
        return None
    total = sum(found)
    ends = [end * layers // total for end in accumulate(found)]
    value = [end - start for start, end in zip([0, *ends], ends)]
    return Change(found, value, f"does not add up to model.layers {layers}")


def _available_memory(config: Config) -> Change | None:
    found, layers = config.ipu.available_memory, config.ipu.layers_per_ipu or [config.model.layers]
    if config.engine.name != "ipu" or isinstance(layers, str) or len(found) in (1, len(layers)):
        return None
    return Change(found, shares(found, len(layers)), f"is not a share for each of {len(layers)} IPU(s)")


def shares(found: Sequence[float], ipus: int) -> list[float]:
    """Shares of memory for another number of IPUs: as far as there are any, then the last one's."""
    return [*found, *[found[-1]] * ipus][:ipus]


def _micro_batch_size(config: Config) -> Change | None:
    """The largest that cuts the batch evenly; on IPUs a replica's part of it, into enough to fill the pipeline.

    Where the number of micro-batches was written there is only one size, which may be larger, too.
    """
    ipu, batch = config.ipu, config.train.batch_size
    replicas, many, least = 1, 0, 1
    if config.engine.name == "ipu":
        if isinstance(ipu.layers_per_ipu, str):
            return None
        replicas, many = ipu.replicas, ipu.gradient_accumulation
        least = minimum_accumulation(ipu.layers_per_ipu or [config.model.layers])
    found = config.train.micro_batch_size or batch
    part, rest = divmod(batch, replicas)
    if many:
        sizes = [part // many] if part % many == 0 else []
    else:
        sizes = [size for size in _divisors_down(part, found) if part // size >= least]
    if rest or not sizes or sizes[0] == found:
        return None
    if config.engine.name != "ipu":
        return Change(found, sizes[0], f"does not divide train.batch_size {batch}")
    parts = f"{many}" if many else f"at least {least}"
    reason = f"does not cut train.batch_size {batch} into {parts} micro-batches for each of {replicas} replica(s)"
    return Change(found, sizes[0], reason)


def _warmup_steps(config: Config) -> Change | None:
    warmup = config.optim.warmup_steps
    found = in_steps(config, PAPER_WARMUP if warmup is None else warmup)
    if found <= longest_warmup(config):
        return None
    return Change(found, default_warmup(config), f"does not fit train.steps {config.train.steps}")


def _updates(config: Config) -> Change | None:
    found, steps = config.sparsity.updates, steps_to_update(config)
    if config.sparsity.method != "dynsparse" or found <= max(1, steps):
        return None
    return Change(found, steps, f"is more than the {steps} step(s) from start to stop")


# In this order, since one gives way to what another has become.
_RULES: dict[str, Callable[[Config], Change | None]] = {
    "model.heads": _heads,
    "model.max_positions": _max_positions,
    "data.sequence_length": _sequence_length,
    "data.max_predictions": _max_predictions,
    "data.source": _source,
    "precision.compute": _compute,
    "ipu.layers_per_ipu": _layers_per_ipu,
    "ipu.available_memory": _available_memory,
    "train.micro_batch_size": _micro_batch_size,
    "optim.warmup_steps": _warmup_steps,
    "sparsity.updates": _updates,
}
