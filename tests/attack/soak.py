"""A small run for an hour, with updates, evaluations, checkpoints and restarts all the time: does anything grow?

PYTHONPATH=. python tests/attack/soak.py 60                  an hour
PYTHONPATH=. python tests/attack/soak.py 3 --leak memory     must end with status 1

Every second: memory (RSS) and open files of the process, and bytes in the run's folder without metrics.jsonl, which has
a line for each record; and processor time per step, which others on the machine disturb less than speed. Processes are
stopped by SIGTERM and go on with `--resume auto`; the first third of each is left out, since memory is claimed in it.
Ends with status 1 when something grows.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import psutil
import small_run
from trends import Trend, trend

STEPS_PER_MINUTE = 60_000  # more than any machine takes, so that the run does not end by itself
OVERRIDES = ("log.every=20", "eval.every=50", "checkpoint.every=100", "engine.threads=1")
LEAKS = ("none", "memory", "files", "disk", "time")


@dataclass
class Samples:
    """What was seen each second of one process, warm-up left out: seconds since its start, and a value of each kind."""

    times: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # bytes
    files: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)  # bytes
    cost: list[float] = field(default_factory=list)  # seconds of processor time per step, since the sample before


def train(leak: str, arguments: list[str]) -> int:
    """The run itself, with something planted that grows by the step."""
    import run_pretraining
    from ipu_bert.trainer import Trainer

    kept: list[Any] = []
    folder = Path(next(text for text in arguments if text.startswith("run.dir=")).partition("=")[2])
    plants: dict[str, Callable[[int], object]] = {
        "none": lambda step: None,
        "memory": lambda step: kept.append(os.urandom(20_000)),
        "files": lambda step: kept.append(open(os.devnull)) if step % 20 == 0 else None,  # noqa: SIM115
        "disk": lambda step: (folder / f"left_{step}").write_bytes(bytes(500)) if step % 20 == 0 else None,
        "time": lambda step: sum(range(1000 * step)),
    }
    step_before: Callable[..., Any] = Trainer._train_step

    def step(trainer: Trainer, *rest: Any) -> Any:
        plants[leak](trainer.step)
        return step_before(trainer, *rest)

    Trainer._train_step = step  # type: ignore[method-assign]
    return run_pretraining.main(arguments)


def watch(command: list[str], seconds: float, folder: Path) -> Samples:
    """Samples of a process that is stopped after so many seconds; raises when it ends in another way than it should."""
    found, log, metrics = Samples(), folder.parent / "log", folder / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    with open(log, "ab") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > before):
            time.sleep(0.1)  # until it trains
        seen, start = psutil.Process(process.pid), time.monotonic()
        used, step = 0.0, 0
        while time.monotonic() < start + seconds and process.poll() is None:
            time.sleep(1.0)
            if process.poll() is not None or last_step(metrics) == step:
                continue
            before, steps, step = used, last_step(metrics) - step, last_step(metrics)
            used = sum(seen.cpu_times()[:2])
            if time.monotonic() > start + seconds / 3:
                found.cost.append((used - before) / steps)
                found.times.append(time.monotonic() - start)
                found.memory.append(seen.memory_info().rss)
                found.files.append(seen.num_fds())
                found.disk.append(size_of(folder))
        process.send_signal(signal.SIGTERM)
        status = process.wait()
    if status != 75:
        raise SystemExit(f"status {status}, expected 75: {log.read_text()[-2000:]}")
    return found


def size_of(folder: Path) -> int:
    """Bytes in a folder but for metrics.jsonl; files may come and go meanwhile."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            if name != "metrics.jsonl":
                try:
                    total += os.stat(os.path.join(where, name)).st_size
                except FileNotFoundError:
                    continue
    return total


def last_step(metrics: Path) -> int:
    """The step of the last whole line."""
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 20_000))
        found = re.findall(rb'"step": (\d+).*\n', file.read())
    return int(found[-1]) if found else 0


def judge(processes: list[Samples]) -> dict[str, Trend]:
    """The trend of each kind.

    Memory and files within processes: the one in the middle by growth. Disk and cost over all of the time.
    """
    found: dict[str, Trend] = {}
    for kind, unit, share in (("memory", 1e6, 0.02), ("files", 1.0, 0.0)):
        values = [[value / unit for value in getattr(one, kind)] for one in processes]
        trends = [trend(one.times, v, share * statistics.median(v)) for one, v in zip(processes, values)]
        found[kind] = sorted(trends, key=lambda one: one.growth)[len(trends) // 2]
    starts = [sum(one.times[-1] for one in processes[:number]) for number in range(len(processes))]
    times = [start + at for start, one in zip(starts, processes) for at in one.times]
    for kind, unit, share in (("disk", 1e6, 0.02), ("cost", 1e-3, 0.1)):
        values = [value / unit for one in processes for value in getattr(one, kind)]
        found[kind] = trend(times, values, share * statistics.median(values))
    return found


UNITS = {"memory": "MB", "files": "open files", "disk": "MB", "cost": "ms per step"}


def soak(minutes: float, restarts: int, leak: str) -> bool:
    """Run, print what came out, and return whether all is flat."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        root = Path(name)
        config, steps = small_run.write(root), int(minutes * STEPS_PER_MINUTE)
        settings = [*OVERRIDES, f"train.steps={steps}", f"sparsity.updates={steps // 25}", f"run.dir={root / 'run'}"]
        command = [sys.executable, __file__, "--be", leak, "--config", str(config), *settings, "--resume", "auto"]
        period = minutes * 60 / (restarts + 1)
        found = judge([watch(command, period, root / "run") for _ in range(restarts + 1)])
    for kind, one in found.items():
        verdict = "flat" if one.flat else "GROWS"
        between = f"99 %: {one.low:+.2f} to {one.high:+.2f}; counts from {one.allowed:.2f}"
        print(f"{kind:7s} {verdict:5s} {one.level:10.1f} {UNITS[kind]}, grew by {one.growth:+.2f} ({between})")
    return all(one.flat for one in found.values())


def main() -> int:
    """The command line."""
    if sys.argv[1:2] == ["--be"]:
        return train(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("minutes", type=float, nargs="?", default=60.0, help="how long (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=5, help="how often it is stopped (default: %(default)s)")
    parser.add_argument("--leak", choices=LEAKS, default="none", help="plant one, to see that it is found")
    options = parser.parse_args()
    return int(not soak(options.minutes, options.restarts, options.leak))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
