"""The direction of imports: sparse_ops knows nothing of ipu_bert, and in ipu_bert data flows one way."""

from __future__ import annotations

import ast
from pathlib import Path

from graphlib import TopologicalSorter

ROOT = Path(__file__).resolve().parent.parent

# From what is built on to what builds on it; a room (a folder or a file of ipu_bert) imports only rooms before it.
ORDER = [
    "stopwatch",
    "signals",
    "ranks",
    "precision",
    "lr_schedules",
    "settings",
    "json_file",
    "sealed_json",
    "hub_files",
    "data",
    "sizes",
    "run_layout",
    "config",
    "machine",
    "record",
    "model",
    "optim",
    "hub",
    "moving",
    "checkpoint_info",
    "checkpoint",
    "heldout_before",
    "same_run",
    "run_place",
    "run_folder",
    "engines",
    "judging",
    "assemble",
    "summary",
    "trained",
    "starting",
    "trainer",
    "export_run",
    "evaluate",
    "finetune",
    "bench",
    "gradient_range",
    "trial",
    "study",
    "pareto",
    "measure",
    "throughput",
    "bench_step",
    "cli",
    "command",
    "__main__",
]
POPTORCH_FILES = {"sparse_ops/ipu/layer.py", "ipu_bert/engines/ipu/engine.py"}


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
        assert room in ORDER, f"{path}: put the new room into ORDER"
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "ipu_bert" and len(parts) > 1 and parts[1] != room:
                assert ORDER.index(parts[1]) < ORDER.index(room), f"{path.name} imports {name}"


def test_no_file_imports_itself_by_way_of_others():
    """Within a room, too: the imports of all files together have no circle."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).replace(".__init__", ""): path
        for package in ("sparse_ops", "ipu_bert")
        for path in (ROOT / package).rglob("*.py")
    }
    graph = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imports(path)} & modules.keys()
        for module, path in modules.items()
    }
    # `from package import module` names the package too, which is no arrow to what the package itself imports.
    tuple(TopologicalSorter({module: uses - {module} for module, uses in graph.items()}).static_order())


def test_the_layer_knows_nothing_of_the_algorithm_that_moves_its_blocks():
    for path in (ROOT / "sparse_ops").glob("*.py"):
        assert not {name for name in imports(path) if name.startswith("sparse_ops.dynsparse")}, path


def test_poptorch_is_known_to_two_files():
    knowing = {
        str(path.relative_to(ROOT))
        for package in ("sparse_ops", "ipu_bert")
        for path in (ROOT / package).rglob("*.py")
        if any(name.split(".")[0] == "poptorch" for name in imports(path))
    }
    assert knowing <= POPTORCH_FILES


def test_the_program_is_only_a_command_line():
    for path in (ROOT / "run_pretraining.py", ROOT / "ipu_bert" / "cli.py"):
        found = {name for name in imports(path) if name.startswith("sparse_ops")}
        # How arguments are read, how an error is worded, and what is said.
        words = "arguments.Parser arguments.named ends.out_of files.in_words saying.answer saying.printable saying.say"
        assert found <= {f"sparse_ops.{word}" for word in words.split()}, path
