"""What a user wrote and what does nothing beside the other settings: a table of settings and of when they are idle.

Periods longer than the run, and what a dry run, a compilation or a resumed run does not come to, do what they say and
are not in it; nor is what only the text, another model's weights or the number of processes decides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Callable, Collection

from ipu_bert.config.plain import as_dict
from ipu_bert.config.written import cut
from ipu_bert.data.local_files import COLUMNS, kinds
from ipu_bert.settings import Config, SparsitySettings
from ipu_bert.sizes.distribution import match_weights
from ipu_bert.sizes.weights import encoder_weights


@dataclass(frozen=True)
class Idle:
    """`settings` (as `section.key`, or `section.*`) do nothing in a checked config where `when` holds.

    since: why; {section.key} in it stands for that value.
    """

    settings: tuple[str, ...]
    when: Callable[[Config], bool]
    since: str


def no_effect(config: Config, users: Collection[str]) -> list[str]:
    """`section.key=value, since ...` for each of the user's keys that does nothing in a checked config."""
    lines = []
    for section, values in as_dict(config).items():
        for name, value in values.items():
            key = f"{section}.{name}"
            since = _idle_since(config, key) if key in users else None
            if since is not None:
                lines.append(f"{key}={text_of(value)}, since {since}")
    return lines


def _idle_since(config: Config, key: str) -> str | None:
    """Why a setting does nothing, by the first rule that says so; None where it acts."""
    for rule in TABLE:
        if any(fnmatchcase(key, pattern) for pattern in rule.settings) and rule.when(config):
            return rule.since.format(**vars(config))
    return None


def text_of(value: Any) -> str:
    """A setting's value in words of one line, cut where it is long."""
    if value is None:
        return "none"
    return cut(value if isinstance(value, str) and value.isprintable() else json.dumps(value), 120)


def _kinds(config: Config) -> set[str | None]:
    """Of the files that `data.path` names."""
    path = config.data.path
    return kinds([path] if isinstance(path, str) else path)


def _one_shape(config: Config) -> bool:
    """Whether all weights that are sparse have the same shape, so that no distribution can tell them apart."""
    weights = encoder_weights(config.model, SparsitySettings(method="dense"))
    return len({weight.segment_shape for weight in match_weights(weights, config.sparsity.layers)}) == 1


_OF_SPARSE_WEIGHTS = (
    *(f"sparsity.{name}" for name in vars(SparsitySettings()) if name not in ("method", "sparsity")),
    "optim.group_lasso",
    "ipu.sparse_available_memory",
    "ipu.sparse_oversize",
)
_HOW_TO_MOVE = ("sparsity.schedule", "sparsity.norm", "sparsity.growth", "sparsity.allow_removed")
_WHEN_TO_MOVE = ("sparsity.start", "sparsity.stop")
_OF_A_NUMBER = ("l1", "l2", "linf")  # its magnitude
_MORE_THAN_ONE = "sparsity.updates is 1, and patterns change once less"

# The first that fits gives the reason.
TABLE = (
    Idle(("ipu.*", "engine.device"), lambda c: c.engine.name != "ipu", "engine.name is {engine.name}"),
    Idle(("engine.kernel", "engine.patience"), lambda c: c.engine.name == "ipu", "engine.name is ipu"),
    Idle(
        (*_OF_SPARSE_WEIGHTS, "sparsity.sparsity"), lambda c: c.sparsity.method == "dense", "sparsity.method is dense"
    ),
    Idle(
        (*_OF_SPARSE_WEIGHTS, "sparsity.method"),
        lambda c: c.sparsity.method != "dense" and c.sparsity.sparsity == 0.0,
        "sparsity.sparsity is 0",
    ),
    Idle(("sparsity.init_pattern",), lambda c: not c.model.init, "model.init is empty"),
    Idle(("sparsity.distribution",), _one_shape, "all weights that are sparse have one shape"),
    Idle(
        ("sparsity.updates", "sparsity.pruning_ratio", *_HOW_TO_MOVE, *_WHEN_TO_MOVE),
        lambda c: c.sparsity.method == "static",
        "sparsity.method is static",
    ),
    Idle(
        ("sparsity.norm",),
        lambda c: c.sparsity.block_size == 1 and c.sparsity.norm in _OF_A_NUMBER,
        "sparsity.block_size is 1, and of one number all norms are its magnitude",
    ),
    Idle(("sparsity.pruning_ratio", *_HOW_TO_MOVE, *_WHEN_TO_MOVE), lambda c: c.sparsity.updates == 1, _MORE_THAN_ONE),
    Idle(
        ("sparsity.updates", *_HOW_TO_MOVE, *_WHEN_TO_MOVE),
        lambda c: c.sparsity.pruning_ratio == 0.0,
        "sparsity.pruning_ratio is 0",
    ),
    Idle(("optim.dense_lr",), lambda c: c.optim.lr != "auto", "optim.lr is {optim.lr}"),
    Idle(
        ("optim.schedule",),
        lambda c: (c.optim.warmup_steps or 0) >= c.train.steps - 1,
        "the learning rate warms up to the end: optim.warmup_steps is {optim.warmup_steps}, train.steps {train.steps}",
    ),
    Idle(
        ("data.path", "data.column", "data.encoding"),
        lambda c: c.data.source != "files",
        "data.source is {data.source}",
    ),
    Idle(("data.column",), lambda c: not _kinds(c) & {None, *COLUMNS}, "files of this kind have no columns"),
    Idle(
        ("data.encoding",),
        lambda c: _kinds(c) <= {".parquet", ".xml"},
        "files of this kind say their encoding themselves",
    ),
    Idle(("data.language",), lambda c: c.data.line_is_sentence, "data.line_is_sentence is true"),
    Idle(
        ("data.vocab_size",), lambda c: bool(c.data.tokenizer) and not c.chosen, "data.tokenizer has its own vocabulary"
    ),
    Idle(
        ("ipu.half_partials", "ipu.stochastic_rounding"),
        lambda c: not c.precision.half,
        "precision.compute is {precision.compute}",
    ),
    Idle(("ipu.optimizer_sharded",), lambda c: c.ipu.replicas == 1, "ipu.replicas is 1"),
    Idle(
        ("ipu.executable_cache", "ipu.profile_dir"),
        lambda c: c.engine.device == "simulated",
        "engine.device is simulated",
    ),
)
