"""libxsmm 1.17 as a peer of the benchmark: its batch-reduce GEMM over blocks, where the library is found.

That is the one LIBXSMM names, or the one the system's loader finds; later versions have another interface. A call of
libxsmm multiplies a row of blocks by a panel of tokens, on activations as they lie in memory. The loops around it (rows
in a panel, panels over threads) are this file's, compiled at the first use in a fraction of a second: in Python they
would take longer than the arithmetic.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import math
import os
import subprocess
import tempfile
from typing import Callable

import torch
from torch import Tensor

from sparse_ops.build import BuildError, find_compiler
from sparse_ops.pattern import BlockIndex

PANEL, GRADIENT_PANEL = 32, 16  # tokens of a call (or the largest common divisor): the best of 8 to 256 on one machine
TRANSPOSED_B = 2  # libxsmm's flag
DRIVER = r"""
#include <omp.h>
typedef unsigned long long u64;
typedef void (*Kernel)(const float* a, const float* b, float* c, const u64* count, const u64* a_at, const u64* b_at);

// Row r has the blocks ptr[r] to ptr[r + 1]; a_at and b_at are bytes from values and from a panel's start.
extern "C" void product(Kernel kernel, const float* values, const float* source, float* target, int panels,
                        int source_step, int target_step, int rows, int block, const u64* ptr, const u64* a_at,
                        const u64* b_at, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long p = 0; p < panels; ++p)
    for (int r = 0; r < rows; ++r) {
      const u64 count = ptr[r + 1] - ptr[r];
      float* const c = target + p * target_step + r * block;
      if (count) kernel(values, source + p * source_step, c, &count, a_at + ptr[r], b_at + ptr[r]);
    }
}

// Adds to sums [threads, nnz, b, b]; slots says which block is visited when.
extern "C" void gradient(Kernel kernel, const float* x, const float* dy, float* sums, int panels, int x_step,
                         int dy_step, int nnz, int block, const u64* slots, const u64* a_at, const u64* b_at,
                         int threads) {
  const u64 one = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long p = 0; p < panels; ++p)
    for (int k = 0; k < nnz; ++k) {
      float* const c = sums + (u64(omp_get_thread_num()) * nnz + slots[k]) * block * block;
      kernel(x + p * x_step, dy + p * dy_step, c, &one, a_at + k, b_at + k);
    }
}
"""


@functools.lru_cache(maxsize=None)
def available() -> bool:
    """Whether libxsmm with the interface of 1.17 is here, and a compiler with OpenMP for the driver."""
    try:
        return hasattr(_libxsmm(), "libxsmm_smmdispatch_reducebatch_offs") and _driver() is not None
    except (BuildError, OSError):
        return False


def prepare(product: str, x: Tensor, dy: Tensor, values: Tensor, index: BlockIndex) -> Callable[[], Tensor] | None:
    """One of the three products of sparse_ops.reference as a function to time; None where libxsmm cannot be used."""
    block = values.shape[1]
    if block == 1 or not available():
        return None
    if product == "grad_values":
        return _grad_values(x, dy, index, block)
    if product == "grad_input":
        return _product(dy, values, False, index.col_ptr, index.col_slots, index.rows)
    return _product(x, values, True, index.row_ptr, index.row_slots, index.cols)


def _product(
    source: Tensor, values: Tensor, transpose: bool, ptr: Tensor, slots: Tensor, sources: Tensor
) -> Callable[[], Tensor] | None:
    """Activations [T, n] times the blocks; libxsmm is column-major, so the forward product wants each transposed."""
    (tokens, width), block, rows = source.shape, values.shape[1], ptr.numel() - 1
    panel = math.gcd(tokens, PANEL)
    kernel = _kernel(block, panel, block, block, width, rows * block, 0.0, 0)
    ptr, order = ptr.long(), slots.long()
    a_at, b_at = order * block * block * 4, sources.long()[order] * block * 4
    new = torch.zeros if bool((ptr.diff() == 0).any()) else torch.empty  # no call writes a row without blocks

    def run() -> Tensor:
        blocks = values.transpose(1, 2).contiguous() if transpose else values
        target = new(tokens, rows * block)
        _driver().product(
            kernel, _at(blocks), _at(source), _at(target), tokens // panel, panel * width, panel * rows * block,
            rows, block, _at(ptr), _at(a_at), _at(b_at), torch.get_num_threads(),
        )  # fmt: skip
        return target

    return run if kernel else None


def _grad_values(x: Tensor, dy: Tensor, index: BlockIndex, block: int) -> Callable[[], Tensor] | None:
    (tokens, inp), out, nnz = x.shape, dy.shape[1], index.rows.numel()
    panel, threads = math.gcd(tokens, GRADIENT_PANEL), torch.get_num_threads()
    kernel = _kernel(block, block, panel, inp, out, block, 1.0, TRANSPOSED_B)
    order = index.row_slots.long()
    a_at, b_at = index.cols.long()[order] * block * 4, index.rows.long()[order] * block * 4

    def run() -> Tensor:
        sums = torch.zeros(threads, nnz, block, block)
        _driver().gradient(
            kernel, _at(x), _at(dy), _at(sums), tokens // panel, panel * inp, panel * out, nnz, block,
            _at(order), _at(a_at), _at(b_at), threads,
        )  # fmt: skip
        return sums.sum(0)

    return run if kernel else None


def _kernel(m: int, n: int, k: int, lda: int, ldb: int, ldc: int, beta: float, flags: int) -> ctypes.c_void_p | None:
    """libxsmm's code for C = sum of A B + beta C, column-major, the factors at offsets; None where it makes none."""
    dispatch = _libxsmm().libxsmm_smmdispatch_reducebatch_offs
    dispatch.restype = ctypes.c_void_p
    leading = [ctypes.byref(ctypes.c_int(v)) for v in (lda, ldb, ldc)]
    factors = [ctypes.byref(ctypes.c_float(v)) for v in (1.0, beta)]
    no_prefetch = ctypes.byref(ctypes.c_int(0))
    address = dispatch(m, n, k, *leading, *factors, ctypes.byref(ctypes.c_int(flags)), no_prefetch)
    return ctypes.c_void_p(address) if address else None


@functools.lru_cache(maxsize=None)
def _libxsmm() -> ctypes.CDLL:
    name = os.environ.get("LIBXSMM") or ctypes.util.find_library("xsmm")
    if not name:
        raise OSError("libxsmm: no library found")
    return ctypes.CDLL(name)


@functools.lru_cache(maxsize=None)
def _driver() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="sparse_ops-") as folder:  # a loaded library needs no file
        library = os.path.join(folder, "driver.so")
        command = [*find_compiler(), "-O2", "-fopenmp", "-fPIC", "-shared", "-x", "c++", "-", "-o", library]
        built = subprocess.run(command, input=DRIVER, capture_output=True, text=True, check=False)
        if built.returncode:
            raise BuildError(f"libxsmm's driver: {built.stderr.strip()}")
        return ctypes.CDLL(library)


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
