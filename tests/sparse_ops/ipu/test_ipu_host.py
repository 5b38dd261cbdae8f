"""The ctypes binding of the IPU library against a stand-in compiled from host.h; what its build says without an SDK."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sparse_ops import build
from sparse_ops.ipu import build as build_ipu
from sparse_ops.ipu.host import PopsparseEncoder
from sparse_ops.ipu.layer import import_poptorch
from sparse_ops.ipu.layout import ABI_VERSION, LayerPlan, bits_from_half, half_from_bits, to_slots
from sparse_ops.pattern import BlockPattern

HERE = Path(__file__).parent
PLAN = LayerPlan("encoder.0.qkv", 64, 192, 8, 20, 256, "0.35", "0.1", "half", "half")


def compile_fake(folder: Path, abi: int = ABI_VERSION) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = folder / f"fake{abi}.so"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", f"-DFAKE_ABI={abi}", f"-I{build_ipu.SOURCE}"]
    subprocess.run([*command, str(HERE / "fake_host.c"), "-o", str(path)], check=True)
    return path


def fake_sdk(folder: Path) -> None:
    """The files that a build looks for."""
    for header in ("poplar/Graph.hpp", "popsparse/FullyConnected.hpp", "popart/op.hpp"):
        (folder / header).parent.mkdir()
        (folder / header).touch()
    for name in ("poplar", "popsparse", "poputil", "popart"):
        (folder / f"lib{name}.so").touch()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PopsparseEncoder:
    return PopsparseEncoder(compile_fake(tmp_path_factory.mktemp("fake")), tiles_per_ipu=4)


def test_round_trip_through_the_c_interface(encoder: PopsparseEncoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pattern = BlockPattern.random((192, 64), 8, 1 - 20 / 192, generator)
    arrays = [torch.randn(20, 8, 8, generator=generator) for _ in range(3)]
    assert encoder.sizes(PLAN) == (42, 21 * 64)
    encoded = encoder.encode(PLAN, pattern.rows, pattern.cols, arrays)
    assert torch.equal(encoded.arrays[1][:64], arrays[1][19].flatten())
    assert encoded.meta_info.tolist()[:2] == [pattern.rows[19], pattern.cols[19]]
    assert encoded.meta_info.tolist()[-2:] == [-1, -1], "uint16 codes travel as int16 bits"
    carried = bits_from_half(half_from_bits(encoded.meta_info).clone())
    decoded = encoder.decode(PLAN, carried, encoded.arrays)
    for found, expected in zip(to_slots(PLAN, decoded, pattern.rows, pattern.cols), arrays):
        assert torch.equal(found, expected)
    assert encoder.decode(PLAN, carried, []).arrays == []


def test_errors_carry_every_field_of_the_plan(encoder: PopsparseEncoder) -> None:
    plan = LayerPlan("some.layer", 32, 96, 4, 5, 128, "0.5", "0.25", "float", "half")
    message = "sparse layer 'some.layer': cannot be planned [96, 32] b4 batch 128 0.5 0.25 float half ipu2 4"
    with pytest.raises(ValueError, match=re.escape(message)):
        encoder.sizes(plan)


def test_wrong_shapes_are_refused_before_they_reach_c(encoder: PopsparseEncoder) -> None:
    rows = torch.zeros(20, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"'encoder.0.qkv': rows: expected torch.int32 \[20\] .* found torch.int64"):
        encoder.encode(PLAN, rows.long(), rows, [])
    with pytest.raises(ValueError, match=r"array: expected torch.float32 \[20, 8, 8\]"):
        encoder.encode(PLAN, rows, rows, [torch.zeros(20, 64)])
    with pytest.raises(ValueError, match=r"metaInfo: expected torch.int16"):
        encoder.decode(PLAN, torch.zeros(42, dtype=torch.int32), [])
    with pytest.raises(ValueError, match="wrong metaInfo"):
        encoder.decode(PLAN, torch.zeros(42, dtype=torch.int16), [torch.zeros(21 * 64)])


def test_a_library_that_is_missing_broken_or_old(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not built: run `python -m sparse_ops\.build ipu`"):
        PopsparseEncoder(tmp_path / "none.so")
    (tmp_path / "broken.so").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.so: cannot be loaded"):
        PopsparseEncoder(tmp_path / "broken.so")
    with pytest.raises(ValueError, match=rf"expected version {ABI_VERSION} .* found {ABI_VERSION + 1}"):
        PopsparseEncoder(compile_fake(tmp_path, ABI_VERSION + 1))


def test_python_and_native_code_agree_on_the_version() -> None:
    header = (build_ipu.SOURCE / "layer_spec.hpp").read_text()
    assert re.search(r"kAbiVersion = (\d+)", header).group(1) == str(ABI_VERSION)  # type: ignore[union-attr]


def test_build_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacking = build_ipu.missing({"PATH": str(tmp_path)})
    text = "\n".join(lacking)
    for part in ("poplar/Graph.hpp", "popsparse/FullyConnected.hpp", "popart/op.hpp", "libpopart.so", "command make"):
        assert part in text
    fake_sdk(tmp_path)
    found = build_ipu.missing({"CPATH": str(tmp_path), "LIBRARY_PATH": str(tmp_path), "PATH": str(tmp_path)})
    assert all(line.startswith("command") for line in found)
    if build.main(["ipu"]):
        assert "needs an enabled Poplar SDK" in capsys.readouterr().err


def test_a_build_that_fails_leaves_the_library_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for an SDK, and for its compiler one that writes "library", or a part of it and then fails."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nuntil [ "$1" = -o ]; do shift; done\nprintf "$WRITES" > "$2"; exit $STATUS\n')
    compiler.chmod(0o755)
    fake_sdk(tmp_path)
    folders = {"CPATH": str(tmp_path), "LIBRARY_PATH": str(tmp_path), "SPARSE_OPS_BUILD_DIR": str(tmp_path / "build")}
    for name, value in {**folders, "CXX": str(compiler), "WRITES": "library", "STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    left = build_ipu.library_path().with_name(f".{build_ipu.LIBRARY}.{os.getpid()}.tmp")
    left.parent.mkdir(parents=True)
    left.write_text("what a killed build of the same number left")
    built = build_ipu.build()
    assert built.read_text() == "library"
    monkeypatch.setenv("WRITES", "a part")
    monkeypatch.setenv("STATUS", "3")
    with pytest.raises(RuntimeError, match=r"did not compile:(?s:.)* 3"):
        build_ipu.build()
    assert built.read_text() == "library"
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_poptorch_that_is_not_there() -> None:
    try:
        import poptorch  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"poptorch cannot be imported .* engine\.device: simulated"):
            import_poptorch()
