"""The native library built against stand-ins for the SDK's headers, and a PopTorch that runs its operation."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from sparse_ops.files import lock
from sparse_ops.ipu import build

HERE = Path(__file__).parent
HEADERS = HERE / "headers"
SIZE = 4096  # of texts


def build_stand_in(folder: Path) -> Path:
    """The library as `python -m sparse_ops.build ipu` makes it, in `folder`, once for all who ask."""
    if shutil.which("g++") is None or shutil.which("make") is None:
        pytest.skip("no g++ or no make")
    sdk = folder / "sdk"
    with lock(folder / "sdk.lock", wait=True), pytest.MonkeyPatch.context() as patch:
        folders = {"CPATH": HEADERS, "LIBRARY_PATH": sdk, "SPARSE_OPS_BUILD_DIR": folder}
        for name, value in {**folders, "CXX": "g++", "CXXFLAGS": "-O0"}.items():
            patch.setenv(name, str(value))
        if build.library_path().exists():
            return build.library_path()
        sdk.mkdir()
        command = ["g++", "-std=c++17", "-O0", "-fPIC", "-shared", "-Wall", "-Werror", "-Wl,-soname,libpoplar.so"]
        sources = ["-include", str(HERE / "declarations.cpp"), str(HERE / "run_op.cpp")]
        subprocess.run([*command, *sources, "-o", str(sdk / "libpoplar.so")], check=True)
        for name in ("popart", "popsparse", "poputil"):
            (sdk / f"lib{name}.so").write_text("INPUT(-lpoplar)")
        return build.build()


class _Attribute(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("text", ctypes.c_char_p), ("number", ctypes.c_int64))


class _Tensor(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("half", "rank")),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("values", ctypes.POINTER(ctypes.c_double)),
    )


class OpRunner:
    """PopTorch's `custom_op` and `isRunningOnIpu` over the operations of the library at `path`, for `tiles` tiles.

    `keys`: what the last operation and its gradient are told apart by, a line for the executable cache and one for
    outlining each.
    """

    def __init__(self, path: Path, tiles: int) -> None:
        # By its soname the library at `path` then finds the stand-in for all of the SDK's.
        self._sdk = ctypes.CDLL(str(path.parents[1] / "sdk" / "libpoplar.so"), mode=ctypes.RTLD_GLOBAL)
        self._ops = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self._tiles = tiles
        self.keys: list[str] = []

    def isRunningOnIpu(self) -> bool:  # noqa: N802
        return True

    def custom_op(
        self,
        inputs: Sequence[Tensor],
        name: str,
        domain: str,
        domain_version: int,
        example_outputs: Sequence[Tensor],
        attributes: Mapping[str, Any],
    ) -> list[Tensor]:
        assert domain_version == 1
        (example,) = example_outputs
        return [_Call.apply(self, name, domain, example, attributes, *inputs)]  # type: ignore[no-untyped-call]

    def run(
        self, name: str, domain: str, attributes: Mapping[str, Any], inputs: Sequence[Tensor], dy: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """y, and for each input its gradient or None; ValueError with what the library threw."""
        given = (_Attribute * len(attributes))(*(self._attribute(key, value) for key, value in attributes.items()))
        # The second input carries bits, as half.
        numbers = [x.view(torch.int16) & 0xFFFF if i == 1 else x for i, x in enumerate(inputs)]
        held = [x.detach().double().contiguous() for x in (*numbers, dy)]
        structs = [_struct(x, like) for x, like in zip(held, (*inputs, dy))]
        y = torch.empty_like(held[-1])
        gradients = [torch.full_like(x, torch.nan) if i != 1 else None for i, x in enumerate(held[:-1])]
        places = [None if gradient is None else _doubles(gradient) for gradient in gradients]
        pointers = (ctypes.POINTER(ctypes.c_double) * len(inputs))(*places)
        keys, error = ctypes.create_string_buffer(SIZE), ctypes.create_string_buffer(SIZE)
        failed = self._sdk.run_op(
            domain.encode(),
            name.encode(),
            ctypes.c_int64(len(attributes)),
            given,
            ctypes.c_int64(len(inputs)),
            (_Tensor * len(inputs))(*structs[:-1]),
            ctypes.byref(structs[-1]),
            ctypes.c_int64(self._tiles),
            _doubles(y),
            pointers,
            keys,
            error,
            ctypes.c_int64(SIZE),
        )
        if failed:
            raise ValueError(error.value.decode())
        self.keys = keys.value.decode().splitlines()
        return y, gradients

    def encoded_last(self, blocks: int) -> tuple[Tensor, Tensor]:
        """Rows and columns, in elements, of the pattern that was encoded last; int64 [blocks] each."""
        rows, cols = torch.empty(blocks, dtype=torch.int64), torch.empty(blocks, dtype=torch.int64)
        pointers = [ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_int64)) for x in (rows, cols)]
        self._sdk.encoded_last.restype = ctypes.c_int64
        assert self._sdk.encoded_last(*pointers) == blocks
        return rows, cols

    @staticmethod
    def _attribute(name: str, value: int | str) -> _Attribute:
        if isinstance(value, str):
            return _Attribute(name.encode(), value.encode(), 0)
        return _Attribute(name.encode(), None, value)


class _Call(torch.autograd.Function):
    """Both passes come from the library; y is run again with dY, which only the backward pass has."""

    @staticmethod
    def forward(ctx: Any, runner: OpRunner, name: str, domain: str, example: Tensor, attributes: Any, *inputs: Tensor):
        ctx.call = (runner, name, domain, attributes, inputs)
        return runner.run(name, domain, attributes, inputs, torch.zeros_like(example))[0].to(example.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor):
        runner, name, domain, attributes, inputs = ctx.call
        found = runner.run(name, domain, attributes, inputs, dy)[1]
        return (*[None] * 5, *(g if g is None else g.to(x.dtype) for g, x in zip(found, inputs)))


def _struct(values: Tensor, like: Tensor) -> _Tensor:
    shape = (ctypes.c_int64 * like.dim())(*like.shape)
    return _Tensor(like.dtype == torch.float16, like.dim(), shape, _doubles(values))


def _doubles(tensor: Tensor) -> Any:
    return ctypes.cast(tensor.data_ptr(), ctypes.POINTER(ctypes.c_double))
