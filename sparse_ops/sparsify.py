"""sparsify: put block-sparse layers in the place of a model's linear layers."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparse_ops.dense import DenseLinear
from sparse_ops.linear import PATTERNS, BlockSparseLinear
from sparse_ops.pattern import block_count

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def hooked(module: nn.Module) -> bool:
    """Whether something is to be told when this module runs, or all modules."""
    everywhere = getattr(torch.nn.modules.module, "_has_any_global_hook", None)
    return _has_hooks(module) or (everywhere is not None and bool(everywhere()))


def _has_hooks(module: nn.Module) -> bool:
    """Hooks, or a `forward` of the module's own in the place of its class's, which is how accelerate hooks."""
    return any(getattr(module, kind) for kind in _HOOKS) or "forward" in vars(module)


def _would_lose(linear: nn.Linear) -> str:
    """What of a layer its sparse form would not have; empty where there is nothing."""
    of_tensors = ("_backward_hooks", "_post_accumulate_grad_hooks")
    if (
        _has_hooks(linear)
        or any(getattr(linear, kind, None) for kind in _STATE_HOOKS)
        or any(getattr(tensor, kind, None) for tensor in linear.parameters() for kind in of_tensors)
    ):
        return "hooks"
    if any(True for _ in linear.buffers()) or any(True for _ in linear.children()):
        return "buffers or children"
    return ""


def sparsify(
    model: nn.Module,
    block_size: int,
    sparsity: float,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    pattern: str = "random",
    generator: torch.Generator | None = None,
) -> dict[str, BlockSparseLinear]:
    """Replace in place the nn.Linear layers whose names match a shell pattern of `include` and none of `exclude`.

    Each becomes `BlockSparseLinear.from_linear` of itself; a layer that stands in several places is replaced in all.
    Subclasses of nn.Linear but DenseLinear are left alone: what makes them so may need their dense weight. Returns
    the new layers by name, in order of definition. Raises ValueError, and replaces nothing, when no layer matches,
    when a pattern is the name of no module at all, when a layer is in several places that do not all match, when
    one does not divide into blocks or keeps none, when its weight is of no usual dtype, when weight or bias is tied
    to another module's, or when it has hooks, buffers or children, which would be lost: hooks of torch's older
    weight_norm and spectral_norm and of its pruning make the weight.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"pattern: expected one of {PATTERNS}, found {pattern!r}")
    modules = dict(model.named_modules(remove_duplicate=False))
    linears = {name: module for name, module in modules.items() if type(module) in (nn.Linear, DenseLinear)}
    include, exclude = _names("include", include, modules), _names("exclude", exclude, modules)
    _check_holders(exclude, modules, linears)
    places = {
        name: module
        for name, module in linears.items()
        if any(fnmatchcase(name, wanted) for wanted in include)
        and not any(fnmatchcase(name, unwanted) for unwanted in exclude)
    }
    if not places:
        raise ValueError(f"sparsify: expected an nn.Linear whose name matches {list(include)}, found none")
    for name, linear in places.items():
        if not name:
            raise ValueError("sparsify: expected a model that holds linear layers, found one: use from_linear")
        apart = [other for other, module in linears.items() if module is linear and other not in places]
        if apart:
            raise ValueError(f"{name}: expected all places of this layer to match, found {apart[0]}, which does not")
        _check(name, linear, model, block_size, sparsity)
    made: dict[nn.Linear, BlockSparseLinear] = {}
    for linear in places.values():
        if linear not in made:
            made[linear] = BlockSparseLinear.from_linear(linear, block_size, sparsity, pattern, generator=generator)
    for name, linear in places.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[linear])
    return {name: layer for name, layer in model.named_modules() if any(layer is new for new in made.values())}


def _names(what: str, wanted: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    if isinstance(wanted, str):
        raise ValueError(f"{what}: expected a list of names, found the text {wanted!r}")
    names = list(wanted)  # an iterator gives them once
    for name in names:
        if not any(fnmatchcase(module, name) for module in modules):
            raise ValueError(f"{what}: expected names of modules, found {name!r}, which is none's")
    return names


def _check_holders(exclude: Sequence[str], modules: Mapping[str, nn.Module], linears: Mapping[str, nn.Linear]) -> None:
    """ValueError for a name of what holds layers, and of none of them: it would exclude nothing."""
    for unwanted in exclude:
        holders = [f"{name}." for name in modules if name not in linears and fnmatchcase(name, unwanted)]
        held = [name for name in linears if name.startswith(tuple(holders))]
        if held and not any(fnmatchcase(name, unwanted) for name in linears):
            raise ValueError(f"exclude: expected names of layers, found {unwanted!r}, which holds {held[0]}: add .*")


def _check(name: str, linear: nn.Linear, model: nn.Module, block_size: int, sparsity: float) -> None:
    """ValueError where a layer cannot be replaced, or would lose something."""
    if linear.weight.dtype not in _DTYPES:
        raise ValueError(f"{name}: expected a weight of {_DTYPES}, found {linear.weight.dtype}; exclude it")
    try:
        block_count((linear.out_features, linear.in_features), block_size, sparsity)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; exclude it") from None
    more = _would_lose(linear)
    if more:
        raise ValueError(f"{name}: expected no {more}, found some, which would be lost; remove them or exclude it")
    for what, mine in linear.named_parameters():
        others = [n for n, m in model.named_modules() if m is not linear and _holds(m, mine)]
        if others:
            raise ValueError(f"{name}: expected a {what} of its own, found it tied to {others[0]}'s; exclude it")


def _holds(module: nn.Module, parameter: Tensor) -> bool:
    return any(mine is parameter for mine in module.parameters(recurse=False))
