"""What chaos.py interrupts: training, preparing text, compiling; each can be begun again by the same command."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping

import small_run

import run_pretraining
from ipu_bert import checkpoint
from ipu_bert.data import prepare
from ipu_bert.data.cost import COST
from ipu_bert.record.metrics import read_metrics
from sparse_ops import build

TIMES = {"seconds", "elapsed", "sequences_per_second", "tokens_per_second"}


@dataclass(frozen=True)
class Job:
    """Something to interrupt.

    act: do it in a folder; the exit status. refused: status when it could not, and what its one line of error matches.
    result: what is in the folder at the end and must not depend on interruptions. lost: what should be there after an
    interruption, going by the operations that were done, and is not. saved_before_last: matches those names in a result
    that depend on when a signal asked for a checkpoint.
    """

    name: str
    act: Callable[[Path], int]
    refused: tuple[int, str]
    result: Callable[[Path], Mapping[str, object]]
    lost: Callable[[Path, tuple[str, ...]], list[str]]
    saved_before_last: re.Pattern[str] | None = None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _listing(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def training(config: Path) -> Job:
    """A whole run with `--resume auto`: one job's command line, as a scheduler repeats it."""

    def act(folder: Path) -> int:
        return run_pretraining.main(["--config", str(config), f"run.dir={folder / 'run'}", "--resume", "auto"])

    older = re.compile(rf"checkpoints/step_(?!{small_run.STEPS:08d}/)")
    return Job("train", act, (2, "^error: .*"), lambda folder: _run_result(folder / "run"), _lost_steps, older)


def _run_result(folder: Path) -> dict[str, object]:
    """Tensors by their files' digests, metrics without times and resumes; other files by name alone."""
    found: dict[str, object] = {str(path.relative_to(folder)): None for path in _listing(folder)}
    for path in folder.rglob("*.safetensors"):
        found[str(path.relative_to(folder))] = _digest(path)
    found["metrics.jsonl"] = [_timeless(r) for r in read_metrics(folder / "metrics.jsonl") if r["kind"] != "resume"]
    return found


def _timeless(record: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in record.items() if key not in TIMES}


def _lost_steps(folder: Path, operations: tuple[str, ...]) -> list[str]:
    """Steps newer than the newest intact one whose rename was finished, or that a line said was saved."""
    saved = re.findall(r"^rename 0 \S*/run/checkpoints/step_(\d+)$", "\n".join(operations), re.MULTILINE)
    intact = [0]
    for step, path in checkpoint.complete(folder / "run" / "checkpoints"):
        checkpoint.load(path)
        intact.append(step)
    return [f"step {step} had been saved, the newest is {max(intact)}" for step in saved if int(step) > max(intact)]


def preparing(text: Path) -> Job:
    """Text to token files."""

    def act(folder: Path) -> int:
        arguments = ["--source", "files", "--paths", str(text), "--vocab-size", "200", "--workers", "1", "--quiet"]
        prepare.main([*arguments, "--heldout-fraction", "0.2", "--out", str(folder / "data")])
        return 0

    return Job("prepare", act, (1, "^error: .*|^stopped; .*"), _all_files, lambda folder, operations: [])


def compiling(compiler: Path) -> Job:
    """The native kernels; `compiler` is a command that compiles."""

    def act(folder: Path) -> int:
        os.environ["SPARSE_OPS_CACHE"], os.environ["CXX"] = str(folder / "cache"), str(compiler)
        return build.main([])

    def result(folder: Path) -> dict[str, object]:
        """As it is after a day and another call: until then it could be somebody's who is compiling."""
        for path in (folder / "cache").iterdir():
            os.utime(path, (0, 0))
        with contextlib.redirect_stdout(io.StringIO()):
            act(folder)
        return _all_files(folder)

    return Job("compile", act, (1, "^sparse_ops: (?!compil).*"), result, lambda folder, operations: [])


def _all_files(folder: Path) -> dict[str, object]:
    """By their digests; what says how long it took, by its name alone."""
    return {str(path.relative_to(folder)): path.name == COST or _digest(path) for path in _listing(folder)}


def remembering_compiler(folder: Path) -> Path:
    """A compiler's command that compiles each thing once and copies it from then on: compiling takes ten seconds."""
    path, kept = folder / "compiler", folder / "compiled"
    kept.mkdir()
    real, keep = shlex.join(build.find_compiler()), shlex.quote(str(kept))
    path.write_text(
        f"""#!/bin/sh
[ "$1" = --version ] && exec {real} --version
previous=
for word; do [ "$previous" = -o ] && out=$word; previous=$word; done
case $out in *.o) kept={keep}/${{out##*/}};; *) kept={keep}/library;; esac
[ -e "$kept" ] || {{ {real} "$@" && cp "$out" "$kept.$$" && mv "$kept.$$" "$kept"; }}
cp "$kept" "$out"
"""
    )
    path.chmod(0o755)
    return path


def make_jobs(config: Path, root: Path) -> dict[str, Job]:
    """All three by name; `config` and what they share lie in `root`."""
    small_run.blank_pictures(setattr)
    jobs = (training(config), preparing(root / "text"), compiling(remembering_compiler(root)))
    return {job.name: job for job in jobs}


def clear(folder: Path) -> None:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def describe(
    expected: Mapping[str, object], found: Mapping[str, object], leave_out: re.Pattern[str] | None = None
) -> list[str]:
    """Where two results differ, a line for each thing; names that `leave_out` matches may."""
    if leave_out:
        expected, found = ({k: v for k, v in x.items() if not leave_out.match(k)} for x in (expected, found))
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: left over" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            lines.append(f"{name}: {_first_difference(expected[name], found[name])}")
    return lines


def _first_difference(expected: object, found: object) -> str:
    if not isinstance(expected, list) or not isinstance(found, list):
        return "differs"
    pairs = [*zip(expected, found), (len(expected), len(found))]
    a, b = next(pair for pair in pairs if pair[0] != pair[1])
    return f"expected {json.dumps(a)[:200]}, found {json.dumps(b)[:200]}"
