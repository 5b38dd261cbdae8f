"""Somebody else's BERT: the weights of a folder, or of a name on the hub, by our names. No pickle is ever loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from ipu_bert.data.errors import one_line
from ipu_bert.hub.weights import NOT_WEIGHTS, QKV_PARTS, TIED
from ipu_bert.hub_files import find_file
from ipu_bert.json_file import read_object

_WEIGHTS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}  # of LayerNorm, in the oldest checkpoints


def read_bert(where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Weights in float32 by our names, query, key and value as one, and the names of those that no BERT of ours has.

    Takes what transformers' BertModel, BertForMaskedLM, BertForPreTraining and others with a `bert.` write, in one file
    or several. Raises ValueError, one line, where there are no safetensors, they cannot be read, are no
    finite floats, or the decoder is not tied to the word embedding.
    """
    state = {_modern(name): tensor for name, tensor in _read(where).items() if name not in NOT_WEIGHTS}
    if not any(name.startswith("bert.") for name in state):
        state = {f"bert.{name}": tensor for name, tensor in state.items() if f"bert.{name}" not in NOT_WEIGHTS}
    for tied, name in TIED.items():
        decoder = state.pop(tied, None)
        if decoder is not None and name in state and not torch.equal(decoder, state[name]):
            raise ValueError(f"{where}: expected {tied} to be tied to {name}, found another tensor")
        if decoder is not None and name not in state and name.endswith("bias"):
            state[name] = decoder
    ours = {name: numbers(name, t) for name, t in state.items() if name.startswith(("bert.", "cls."))}
    return _fused(ours), sorted(set(state) - set(ours))


def _modern(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name.endswith("LayerNorm" + old):
            return name[: -len(old)] + new
    return name


def _read(where: str) -> dict[str, Tensor]:
    """All tensors under the names that the files have."""
    files = weight_files(where)
    if files:
        return load_files(files)
    if find_file(where, _PICKLE) is not None:
        convert = f"from transformers import BertForPreTraining as B; B.from_pretrained('{where}')"
        raise ValueError(
            f"{where}: expected {_WEIGHTS}, found {_PICKLE}, a pickle, which can run any code and is never loaded; if "
            f"you trust it, convert it to a folder NEW: python -c \"{convert}.save_pretrained('NEW')\""
        )
    raise ValueError(f"{where}: expected {_WEIGHTS}, found none")


def weight_files(where: str, **hub: Any) -> list[Path]:
    """The safetensors files of a model's weights, none where there are none; `where` and `hub` as in `find_file`.

    One file counts before parts, as for transformers, which leaves the index of earlier parts beside it. Raises
    ValueError, one line, for an index that is none or names files that are not there.
    """
    file = find_file(where, _WEIGHTS, **hub)
    if file is not None:
        return [file]
    index = find_file(where, _INDEX, **hub)
    return [] if index is None else _parts_of(where, index, hub)


def _parts_of(where: str, index: Path, hub: Mapping[str, Any]) -> list[Path]:
    """The files that an index of parts names."""
    parts = read_object(index).get("weight_map")
    if not isinstance(parts, dict):
        raise ValueError(f"{index}: expected the file of each weight as weight_map, found {parts!r:.80}")
    return [_part(where, name, hub) for name in sorted({str(part) for part in parts.values()})]


def load_files(files: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of some safetensors files. Raises ValueError, one line, for a file that is none."""
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            state.update(load_file(str(path)))
        except Exception as error:  # safetensors raises many kinds for a file that is none
            raise ValueError(f"{path}: cannot be read as safetensors: {one_line(error)}") from None
    return state


def _part(where: str, name: str, hub: Mapping[str, Any]) -> Path:
    file = find_file(where, name, **hub) if name == Path(name).name and name.endswith(".safetensors") else None
    if file is None:
        raise ValueError(f"{where}: expected the part {name:.80} of the weights, a safetensors file in it, found none")
    return file


def numbers(name: str, tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """In a floating dtype. Quantized weights mean something only with their scales, and would be taken for the numbers.

    Raises ValueError for these, and for what the dtype does not hold as a finite number.
    """
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, _DTYPES))}, found {tensor.dtype}")
    found = tensor.to(dtype)
    wide = found if dtype == torch.float64 else found.float()  # float8 has no isfinite
    if not bool(torch.isfinite(wide).all()):
        held = str(dtype).replace("torch.", "")
        raise ValueError(f"{name}: expected numbers that {held} holds, found NaN, inf or larger ones")
    return found


def _fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value of a layer as one, where all three are there."""
    fused = dict(state)
    for name in state:
        before, dot, kind = name.rpartition(f".{QKV_PARTS[0]}.")
        parts = [f"{before}.{part}.{kind}" for part in QKV_PARTS]
        if dot and all(part in state for part in parts):
            shapes = [list(state[part].shape) for part in parts]
            if shapes[1:] != shapes[:-1] or not shapes[0]:
                raise ValueError(f"{before}: expected query, key and value {kind} of one shape, found {shapes}")
            fused[f"{before}.qkv.{kind}"] = torch.cat([fused.pop(part) for part in parts])
    return fused
