"""Every way in which a run under torchrun can lose a rank, made to happen: `tests/attack/ranks.py FOLDER [WAY ...]`.

In each a run of two ranks is started in FOLDER, hurt once it has saved step 20, and waited for; what it said and its
newest checkpoint are printed, and the checkpoint is verified. `restart`: torchrun starts the ranks again, and the run
goes on from that checkpoint to its end. `refused`: rank 1 alone has a config that cannot be. `disk`: rank 0 alone finds
its disk full when it saves.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from ipu_bert import checkpoint  # noqa: E402

STEPS, HURT_AT, LIMIT = 200, 20, 600.0
SIZES = ("model.layers=1", "model.hidden_size=64", "model.heads=2", "sparsity.block_size=8", "sparsity.updates=4")
SETTINGS = (
    *("data.source=sotu", "data.vocab_size=1000", "data.sequence_length=32", "data.max_predictions=5"),
    *("train.batch_size=4", "train.micro_batch_size=1", f"train.steps={STEPS}", "optim.warmup_steps=5"),
    *("checkpoint.every=10", "checkpoint.keep=3", "eval.every=0", "eval.batches=1", "engine.patience=10"),
)
SIGNALS = {"killed": (1, signal.SIGKILL), "first killed": (0, signal.SIGKILL), "hangs": (1, signal.SIGSTOP)}
STOPS = {"one is told to stop": signal.SIGTERM, "torchrun is told to stop": signal.SIGTERM}
WAYS = (*SIGNALS, *STOPS, "restart", "refused", "disk")


def main() -> None:
    """The command line."""
    if "RANK" in os.environ:
        _as_rank(sys.argv[1], sys.argv[2:])
    for way in sys.argv[2:] or WAYS:
        happen(way, Path(sys.argv[1]))


def happen(way: str, folder: Path) -> None:
    """One run that is hurt, and what is left of it."""
    run = folder / way.replace(" ", "_")
    shutil.rmtree(run, ignore_errors=True)
    restarts = ("--max-restarts", "1") if way == "restart" else ()
    config = ("--config", "quickstart", "--resume", "auto", f"run.dir={run}", f"data.dir={folder / 'data'}")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *restarts)
    log = folder / f"{run.name}.log"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        started = subprocess.Popen([*torchrun, __file__, way, *config, *SIZES, *SETTINGS], stdout=out, stderr=out)
        hurt = _hurt(way, started.pid, run, started)
        status = started.wait(LIMIT)
    took = time.monotonic() - hurt
    lines = [x for x in log.read_text().splitlines() if x.startswith(("error:", "stopped", "report:"))]
    print(f"{way}: torchrun ended with {status}, {took:.1f} s after it", *lines, sep="\n  ")
    saved = checkpoint.complete(run / "checkpoints")
    for _, path in saved:
        checkpoint.verify(path)
    print(f"  newest whole checkpoint: {saved[-1][0] if saved else 'none'}", flush=True)


def _hurt(way: str, torchrun: int, run: Path, started: subprocess.Popen[bytes]) -> float:
    """Wait for the checkpoint, and hurt the run; returns when."""
    end = time.monotonic() + LIMIT
    while way not in ("refused", "disk") and not (run / "checkpoints" / f"step_{HURT_AT:08d}").exists():
        if time.monotonic() > end or started.poll() is not None:
            raise SystemExit(f"{way}: no checkpoint of step {HURT_AT} in {LIMIT:.0f} s")
        time.sleep(0.1)
    found = subprocess.run(["pgrep", "-P", str(torchrun)], stdout=subprocess.PIPE, text=True, check=False)
    ranks = sorted(int(pid) for pid in found.stdout.split())
    if way in SIGNALS:
        rank, number = SIGNALS[way]
        os.kill(ranks[rank], number)
    elif way in STOPS:
        os.kill(torchrun if way.startswith("torchrun") else ranks[1], STOPS[way])
    elif way == "restart":
        os.kill(ranks[0], signal.SIGKILL)
    return time.monotonic()


def _as_rank(way: str, arguments: list[str]) -> None:
    """The program, in what is wrong with this rank."""
    from ipu_bert.cli import main as program

    if way == "refused" and os.environ["RANK"] == "1":
        arguments = [*arguments, "model.layers=0"]
    if way == "disk" and os.environ["RANK"] == "0":
        write = checkpoint.save

        def save(*given: object) -> Path:
            if given[1] == HURT_AT:  # no file may grow beyond what the metrics have
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, resource.RLIM_INFINITY))
            return write(*given)  # type: ignore[arg-type]

        checkpoint.save = save  # type: ignore[assignment]
    sys.exit(program(arguments))


if __name__ == "__main__":
    main()
