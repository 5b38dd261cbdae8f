"""Builds the native library of the IPU path where a Poplar SDK is enabled; says what is missing where none is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Mapping

from sparse_ops.files import replacing

SOURCE = Path(__file__).resolve().parents[1] / "csrc" / "ipu"
LIBRARY = "libblock_linear_ipu.so"


def library_path() -> Path:
    """Where the built library lies: `build/ipu` beside the package, or under $SPARSE_OPS_BUILD_DIR."""
    root = os.environ.get("SPARSE_OPS_BUILD_DIR")
    base = Path(root) if root else SOURCE.parents[2] / "build"
    return base / "ipu" / LIBRARY


def missing(environment: Mapping[str, str]) -> list[str]:
    """What a build needs and this environment lacks, one line each."""
    lacking = []
    includes = _folders(environment, "CPLUS_INCLUDE_PATH", "CPATH")
    libraries = _folders(environment, "LIBRARY_PATH", "LD_LIBRARY_PATH")
    for header, package in (
        ("poplar/Graph.hpp", "Poplar"),
        ("popsparse/FullyConnected.hpp", "Poplar (poplibs)"),
        ("popart/op.hpp", "PopART"),
    ):
        if not any((folder / header).is_file() for folder in includes):
            lacking.append(f"header {header} of {package}, looked for in CPLUS_INCLUDE_PATH and CPATH")
    for name, package in (("poplar", "Poplar"), ("popsparse", "Poplar"), ("poputil", "Poplar"), ("popart", "PopART")):
        if not any((folder / f"lib{name}.so").is_file() for folder in libraries):
            lacking.append(f"library lib{name}.so of {package}, looked for in LIBRARY_PATH and LD_LIBRARY_PATH")
    for tool in (environment.get("CXX", "g++"), "make"):
        if shutil.which(tool, path=environment.get("PATH")) is None:
            lacking.append(f"command {tool}")
    return lacking


def build() -> Path:
    """Compile the library; returns its path. Raises RuntimeError with what is missing or what the compiler said."""
    lacking = missing(os.environ)
    if lacking:
        raise RuntimeError(
            "the IPU library needs an enabled Poplar SDK (source its poplar and popart enable.sh first); missing:\n"
            + "\n".join(f"  - {line}" for line in lacking)
        )
    target = library_path()
    with replacing(target) as aside:
        done = subprocess.run(
            # Always all: what stands at `aside` can only be a part that a killed build left behind.
            ["make", "--no-print-directory", "--always-make", "-f", str(SOURCE / "Makefile"), f"OUT={aside}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the IPU library did not compile:\n{done.stdout}")
    return target


def _folders(environment: Mapping[str, str], *names: str) -> list[Path]:
    return [Path(part) for name in names for part in environment.get(name, "").split(os.pathsep) if part]
