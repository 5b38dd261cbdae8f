"""Steps of two ranks on two machines that this one plays, for docs/scaling.md: `python tests/attack/two_machines.py`.

Each machine is a network namespace with one core; the wire between them has the rate that tc gives it, both ways at
once. Needs root, `ip` and `tc`; touches no other network. Beside them: one process with two threads, and two ranks over
loopback. Prints a line for each, from `run_pretraining.py --throughput --json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = str(ROOT / "run_pretraining.py")
NAMES = ("machine0", "machine1")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--nnodes", "2")


def shell(command: str) -> None:
    """Run a command of the system; an error ends the program."""
    subprocess.run(command.split(), check=True)


@contextlib.contextmanager
def wire(rate: str) -> Iterator[None]:
    """Two namespaces, and a wire between them of this rate, as tc has it: 1gbit."""
    pid = os.getpid()
    try:
        for name in NAMES:
            shell(f"ip netns add {name}")
            shell(f"ip -n {name} link set lo up")
        shell(f"ip link add a{pid} netns {NAMES[0]} type veth peer name b{pid} netns {NAMES[1]}")
        for name, link, address in zip(NAMES, (f"a{pid}", f"b{pid}"), ADDRESSES):
            shell(f"ip -n {name} address add {address}/24 dev {link}")
            shell(f"ip -n {name} link set {link} up")
            shell(f"tc -n {name} qdisc add dev {link} root tbf rate {rate} burst 512kb latency 200ms")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], check=False)


def on_two_machines(rate: str, arguments: Sequence[str]) -> str:
    """What the first machine prints."""
    with wire(rate):
        running = [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, "taskset", "-c", str(number), *TORCHRUN, "--node-rank", str(number)),
                    *("--master-addr", ADDRESSES[0], "--master-port", "29500", PROGRAM, *arguments),
                ],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"{'ab'[number]}{os.getpid()}"},
            )
            for number, name in enumerate(NAMES)
        ]
        printed = [process.communicate()[0] for process in running]
        return printed[0]


def here(command: Sequence[str], arguments: Sequence[str], threads: int) -> str:
    """What the command prints on this machine, over loopback."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([*command, PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout


def row(name: str, printed: str) -> str:
    """One line of the table."""
    found: dict[str, Any] = json.loads(printed)
    step = found["step"]
    return (
        f"{name:<28} {step['whole']:8.3f} s a step  {step['exchange']:8.3f} s waiting  "
        f"{found['samples_per_second']['all']:8.2f} sequences/s"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time steps of two ranks over wires of several rates.")
    parser.add_argument("--rates", nargs="*", default=["10gbit", "1gbit"], help="of the wire, as tc has them")
    parser.add_argument("--steps", default="3", help="to time, after a first one")
    parser.add_argument("--config", default="bert_base_dynsparse")
    parser.add_argument("overrides", nargs="*", help="of the config, after --")
    options = parser.parse_args()
    arguments = ["--config", options.config, "--throughput", "--json", "--steps", options.steps, *options.overrides]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    print(row("1 process, 2 threads", here([sys.executable], arguments, threads=2)), flush=True)
    print(row("2 ranks, loopback", here(two, arguments, threads=1)), flush=True)
    for rate in options.rates:
        print(row(f"2 machines, {rate}", on_two_machines(rate, arguments)), flush=True)


if __name__ == "__main__":
    main()
