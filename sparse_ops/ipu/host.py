"""The native library's host functions (csrc/ipu/host.h) through ctypes: popsparse's own encoding of patterns."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from sparse_ops.ipu.layout import ABI_VERSION, Decoded, Encoded, LayerPlan

_ERROR_SIZE = 4096
_Floats = ctypes.POINTER(ctypes.c_float)


class _Layer(ctypes.Structure):
    """`block_linear_layer` of host.h, field for field."""

    _fields_ = (
        ("layer", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in ("in_features", "out_features", "block_size", "blocks", "batch")),
        ("available_memory_proportion", ctypes.c_char_p),
        ("meta_info_bucket_oversize_proportion", ctypes.c_char_p),
        *((name, ctypes.c_char_p) for name in ("partials_type", "data_type", "system")),
        ("tiles_per_ipu", ctypes.c_int64),
    )


class PopsparseEncoder:
    """Encoder of the native library at `library`.

    system: poplar's name of the system the executable is compiled for. tiles_per_ipu: 0, unless the IPU model runs with
    fewer; host and device must plan for the same number. Raises ValueError as `load_library` does.
    """

    def __init__(self, library: Path, system: str = "ipu2", tiles_per_ipu: int = 0) -> None:
        self._library = load_library(library)
        self._system, self._tiles = system.encode("ascii"), tiles_per_ipu

    def sizes(self, plan: LayerPlan) -> tuple[int, int]:
        """See Encoder."""
        meta_info, nz = ctypes.c_int64(), ctypes.c_int64()
        self._call("block_linear_sizes", plan, ctypes.byref(meta_info), ctypes.byref(nz))
        return meta_info.value, nz.value

    def encode(self, plan: LayerPlan, rows: Tensor, cols: Tensor, arrays: Sequence[Tensor]) -> Encoded:
        """See Encoder."""
        b = plan.block_size
        for name, position in (("rows", rows), ("cols", cols)):
            _require(plan, name, position, (plan.blocks,), torch.int32)
        slots = _floats(plan, "array", arrays, (plan.blocks, b, b))
        meta_size, nz_size = self.sizes(plan)
        meta_info = torch.empty(meta_size, dtype=torch.int16)
        encoded = [torch.empty(nz_size) for _ in slots]
        rows, cols = rows.contiguous(), cols.contiguous()
        self._call(
            "block_linear_encode",
            plan,
            _pointer(rows, ctypes.c_int32),
            _pointer(cols, ctypes.c_int32),
            ctypes.c_int64(len(slots)),
            _pointers(slots),
            _pointer(meta_info, ctypes.c_uint16),
            ctypes.c_int64(meta_size),
            _pointers(encoded),
            ctypes.c_int64(nz_size),
        )
        return Encoded(meta_info, encoded)

    def decode(self, plan: LayerPlan, meta_info: Tensor, arrays: Sequence[Tensor]) -> Decoded:
        """See Encoder."""
        b = plan.block_size
        meta_info = meta_info.detach().contiguous()
        _require(plan, "metaInfo", meta_info, (meta_info.numel(),), torch.int16)
        nz_size = arrays[0].numel() if arrays else self.sizes(plan)[1]
        encoded = _floats(plan, "nz", arrays, (nz_size,))
        rows, cols = torch.empty(plan.blocks, dtype=torch.int32), torch.empty(plan.blocks, dtype=torch.int32)
        slots = [torch.empty(plan.blocks, b, b) for _ in encoded]
        self._call(
            "block_linear_decode",
            plan,
            _pointer(meta_info, ctypes.c_uint16),
            ctypes.c_int64(meta_info.numel()),
            ctypes.c_int64(len(encoded)),
            _pointers(encoded),
            ctypes.c_int64(nz_size),
            _pointer(rows, ctypes.c_int32),
            _pointer(cols, ctypes.c_int32),
            _pointers(slots),
        )
        return Decoded(rows, cols, slots)

    def _call(self, name: str, plan: LayerPlan, *arguments: Any) -> None:
        layer = _Layer(
            layer=plan.layer.encode("utf-8"),
            in_features=plan.in_features,
            out_features=plan.out_features,
            block_size=plan.block_size,
            blocks=plan.blocks,
            batch=plan.batch,
            available_memory_proportion=plan.available_memory_proportion.encode("ascii"),
            meta_info_bucket_oversize_proportion=plan.meta_info_bucket_oversize_proportion.encode("ascii"),
            partials_type=plan.partials.encode("ascii"),
            data_type=plan.data_type.encode("ascii"),
            system=self._system,
            tiles_per_ipu=self._tiles,
        )
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        function = getattr(self._library, name)
        if function(ctypes.byref(layer), *arguments, error, ctypes.c_int64(_ERROR_SIZE)) != 0:
            raise ValueError(error.value.decode("utf-8", errors="replace"))


def load_library(path: Path) -> ctypes.CDLL:
    """Load the native library; loading also registers the operation with PopART, so do it before compiling.

    Raises ValueError when it is missing, cannot be loaded, or is of another version.
    """
    if not path.is_file():
        raise ValueError(f"{path}: not built: run `python -m sparse_ops.build ipu` where a Poplar SDK is enabled")
    try:
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ValueError(f"{path}: cannot be loaded ({error}): enable the Poplar SDK it was built with") from None
    library.block_linear_abi.restype = ctypes.c_int64
    version = library.block_linear_abi()
    if version != ABI_VERSION:
        raise ValueError(
            f"{path}: expected version {ABI_VERSION} of the sparse operation, found {version}: build it again with "
            "`python -m sparse_ops.build ipu`"
        )
    return library


def _require(plan: LayerPlan, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(
            f"sparse layer {plan.layer!r}: {name}: expected {dtype} {list(shape)} on the CPU, found {tensor.dtype} "
            f"{list(tensor.shape)} on {tensor.device.type}"
        )


def _floats(plan: LayerPlan, name: str, arrays: Sequence[Tensor], shape: tuple[int, ...]) -> list[Tensor]:
    """The arrays as float32 that C can read, each of this shape."""
    made = [array.detach().to(torch.float32).contiguous() for array in arrays]
    for array in made:
        _require(plan, name, array, shape, torch.float32)
    return made


def _pointer(tensor: Tensor, kind: Any) -> Any:
    return ctypes.cast(tensor.data_ptr(), ctypes.POINTER(kind))


def _pointers(tensors: list[Tensor]) -> Any | None:
    if not tensors:
        return None
    return (_Floats * len(tensors))(*(_pointer(tensor, ctypes.c_float) for tensor in tensors))
