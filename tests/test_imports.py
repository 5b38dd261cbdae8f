"""The direction of imports: sparse_ops knows nothing of ipu_bert, and in ipu_bert data flows one way."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# From what is built on to what builds on it; a module imports only modules before its own line.
LAYERS = [
    {"shape", "settings", "precision", "metrics", "dynsparse"},
    {"data", "distribution", "console", "plots", "config"},
    {"flops", "footprint", "report_page", "model"},
    {"optim", "export", "report", "placement_sizes", "placement"},
    {"checkpoint", "engines"},
    {"assemble", "run_folder"},
    {"summary", "dry_run", "export_run"},
    {"trainer"},
    {"bench_models", "bench_memory", "bench_step"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
POPTORCH_FILES = {"sparse_ops/ipu.py", "ipu_bert/engines/ipu_engine.py"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, as an absolute dotted name."""
    package = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: -node.level]) + "." if node.level else ""
            module = (start + (node.module or "")).strip(".")
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def test_sparse_ops_imports_nothing_of_the_application():
    for path in (ROOT / "sparse_ops").rglob("*.py"):
        assert not {name for name in imports(path) if name.startswith("ipu_bert")}, path


def test_rooms_import_only_what_lies_below_them():
    for path in (ROOT / "ipu_bert").rglob("*.py"):
        room = path.relative_to(ROOT / "ipu_bert").with_suffix("").parts[0]
        if room == "__init__":
            continue
        assert room in LEVEL, f"{path}: put the new room into LAYERS"
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "ipu_bert" and len(parts) > 1 and parts[1] != room:
                assert LEVEL[parts[1]] <= LEVEL[room], f"{path.name} imports {name}"


def test_dynsparse_sees_plain_values_only():
    for path in (ROOT / "ipu_bert" / "dynsparse").glob("*.py"):
        mine = {name for name in imports(path) if name.startswith("ipu_bert")}
        assert all(name.startswith("ipu_bert.dynsparse") for name in mine), path


def test_poptorch_is_known_to_two_files():
    knowing = {
        str(path.relative_to(ROOT))
        for package in ("sparse_ops", "ipu_bert")
        for path in (ROOT / package).rglob("*.py")
        if any(name.split(".")[0] == "poptorch" for name in imports(path))
    }
    assert knowing <= POPTORCH_FILES


def test_the_program_is_only_a_command_line():
    assert {n for n in imports(ROOT / "run_pretraining.py") if n.startswith("sparse_ops")} == set()
