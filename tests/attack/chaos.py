"""Kill training, preparing and compiling at every file operation and at random moments: the end must be the same.

PYTHONPATH=. python tests/attack/chaos.py 500              500 kills; the seed is printed
PYTHONPATH=. python tests/attack/chaos.py 50 --seed 7 --jobs train

A chain begins in an empty folder with one interruption, goes on by the same command, perhaps interrupted again, and
runs to its end. Then every byte of weights, moments and positions, every metric but times, and the names of all files
are those of the run that nothing interrupted. After every kill the newest step that was saved is there and intact.
Beside kills: SIGTERM and its like, a disk that is full or read-only from some operation on, one operation that fails,
and two processes in one folder. Ends with status 1 when anything else came out, and leaves its folder then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import small_run
import victim


def attack(options: argparse.Namespace, root: Path) -> bool:
    """Chains of all jobs until there were so many kills; prints what came out and returns whether all is well."""
    from chaos_chains import Chaos, attack_all, summary  # imports torch: only where victims are made
    from chaos_jobs import make_jobs

    start, seed = time.monotonic(), secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {seed}, in {root}", flush=True)
    jobs = make_jobs(small_run.write(root), root)
    chaos = [Chaos(jobs[name], root, random.Random(f"{seed} {name}")) for name in options.jobs]
    for number in (signal.SIGINT, signal.SIGTERM):  # what came out so far
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        attack_all(chaos, options.kills, random.Random(seed))
    for one in chaos:
        print(summary(one.job.name, one.tally))
    print(f"{time.monotonic() - start:.0f} s")
    return not any(one.tally.broken for one in chaos)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=500, help="kills to come to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeats an attack (default: a new one)")
    names = ["train", "prepare", "compile"]
    parser.add_argument("--jobs", nargs="+", choices=names, default=names, help="what to kill (default: all)")
    options = parser.parse_args()
    if not victim.watched():
        return victim.start_watched()
    memory = "/dev/shm"  # a kill leaves there what it leaves on a disk, and nothing waits for one
    root = Path(tempfile.mkdtemp(prefix="chaos-", dir=memory if os.access(memory, os.W_OK) else None))
    well = attack(options, root)
    if well:
        shutil.rmtree(root)
    return int(not well)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
