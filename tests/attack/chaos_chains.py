"""Chains of interruptions of one job, compared with the job that nothing interrupted."""

from __future__ import annotations

import math
import random
import re
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

import chaos_jobs
import victim
from chaos_jobs import Job
from victim import Ended, Interruption, Victim

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)
KILLS, FAULTS = ("before", "within"), ("full", "read-only", "once")
AGAIN = 0.4  # probability that what goes on after an interruption is interrupted, too
MOST = 6  # interruptions of one chain
STOPPED = {75, 130}  # by a signal or by Ctrl-C, and saved
STATUSES = {0, *STOPPED}


@dataclass
class Tally:
    """What was done to a job and what came out."""

    operations: int  # of the uninterrupted run
    interruptions: Counter[str] = field(default_factory=Counter)
    hit: set[tuple[str, int]] = field(default_factory=set)
    chains: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(self.interruptions[how] for how in (*KILLS, signal.SIGKILL.name))


class Chaos:
    """Chains of one job in one folder, compared with the run that nothing interrupted."""

    def __init__(self, job: Job, root: Path, draw: random.Random) -> None:
        self.job, self.root, self.draw = job, root, draw
        self.folder = root / job.name
        self._start()
        ended = victim.run_and_import(lambda: job.act(self.folder), self.folder)
        if ended.status:
            raise SystemExit(f"{job.name}, not interrupted: status {ended.status}\n{ended.printed}")
        self.expected, self.seconds = job.result(self.folder), ended.seconds
        self.tally = Tally(len(ended.operations))

    def _start(self) -> None:
        chaos_jobs.clear(self.folder)

    def _run(self, what: Interruption) -> Ended:
        return victim.run(lambda: self.job.act(self.folder), self.folder, what)

    def plan(self) -> Iterator[Interruption]:
        """First interruptions of chains, for ever: every operation in each way in random order, and moments between."""
        while True:
            ways = [victim.at(how, n) for how in KILLS for n in range(1, self.tally.operations + 1)]
            faults = [victim.at(how, n) for how in FAULTS for n in range(1, self.tally.operations + 1)]
            moments = [self._moment() for _ in range(len(ways) // 4)]
            chosen = ways + self.draw.sample(faults, len(faults) // 4) + moments
            yield from self.draw.sample(chosen, len(chosen))

    def _moment(self) -> Interruption:
        number = signal.SIGKILL if self.draw.random() < 0.7 else self.draw.choice(SIGNALS)
        return victim.after(self.draw.uniform(0, self.seconds), number)

    def _any(self) -> Interruption:
        if self.draw.random() < 0.2:
            return self._moment()
        return victim.at(self.draw.choice(KILLS), self.draw.randint(1, self.tally.operations))

    def chain(self, first: Interruption) -> None:
        """Interrupt, go on, and compare; what is wrong goes to the tally."""
        self._start()
        history: list[str] = []
        done: tuple[str, ...] = ()
        asked = False  # to stop, and saved just then: another step is the last but one
        for what in self._interruptions(first):
            ended = self._run(what)
            self._count(what, ended)
            done += ended.operations
            asked = asked or ended.status in STOPPED
            if ended.status == 0 and what == victim.NOTHING:
                self.seconds = min(self.seconds, ended.seconds)  # the first one had to import
            history.append(f"{what} -> {ended.status}")
            wrong = _wrong(self.job, self.folder, ended, what) + self._lost(done)
            if wrong:
                return self._note(history, wrong, ended)
        if ended.status != 0:
            return self._note(history, [f"does not come to its end: status {ended.status}"], ended)
        self.tally.chains += 1
        leave_out = self.job.saved_before_last if asked else None
        wrong = chaos_jobs.describe(self.expected, self.job.result(self.folder), leave_out)
        if wrong:
            self._note(history, wrong, ended)
        return None

    def _interruptions(self, first: Interruption) -> Iterator[Interruption]:
        yield first
        for _ in range(MOST - 1):
            if self.draw.random() > AGAIN:
                break
            yield self._any()
        yield victim.NOTHING

    def _count(self, what: Interruption, ended: Ended) -> None:
        if what.signal:
            if ended.status != 0:
                self.tally.interruptions[signal.Signals(what.signal).name] += 1
        elif what.at and (ended.killed or len(ended.operations) >= what.at):
            self.tally.interruptions[what.how] += 1
            self.tally.hit.add((what.how, what.at))

    def _lost(self, operations: tuple[str, ...]) -> list[str]:
        try:
            return self.job.lost(self.folder, operations)
        except (ValueError, OSError) as error:
            return [f"not intact: {error}"]

    def _note(self, history: list[str], wrong: list[str], ended: Ended) -> None:
        tail = "\n      ".join(ended.printed.splitlines()[-4:])
        self.tally.broken.append(f"{'; '.join(history)}\n    {'; '.join(wrong)[:1500]}\n      {tail}")
        print(f"  {self.job.name}: {self.tally.broken[-1]}", flush=True)

    def together(self) -> None:
        """Two processes begin at once in one folder: one does it all, the other one waits or is told in one line."""
        self._start()
        both = [Victim(lambda: self.job.act(self.folder), self.folder, victim.NOTHING) for _ in range(2)]
        ended = [one.wait() for one in both]
        self.tally.interruptions["two at once"] += 1
        wrong = [text for one in ended for text in _wrong(self.job, self.folder, one, victim.NOTHING)]
        if all(one.status for one in ended):
            wrong.append("neither came to its end")
        wrong += chaos_jobs.describe(self.expected, self.job.result(self.folder))
        if wrong:
            self._note(["two at once"], wrong, ended[-1])


def _wrong(job: Job, folder: Path, ended: Ended, what: Interruption) -> list[str]:
    """What no end may be: a traceback, an unknown status, an error of several lines or of none."""
    if ended.status == -(what.signal or signal.SIGKILL):
        return []  # killed, or a signal before anything was there to save
    refused, pattern = job.refused
    wrong = [f"status {ended.status}"] if ended.status not in {*STATUSES, refused} else []
    if "Traceback (most recent call last)" in ended.printed:
        wrong.append("a traceback")
    errors = re.findall(pattern, ended.printed, re.MULTILINE)
    if ended.status == refused and len(errors) != 1:
        wrong.append(f"{len(errors)} lines of error")
    if any(str(folder) not in line for line in errors if not line.startswith("stopped")):
        wrong.append("no name of a file or folder")
    return wrong


def attack_all(chaos: list[Chaos], kills: int, draw: random.Random) -> None:
    """Two processes at once, then chains of all jobs, to so many kills; a job of few operations gets its share, too."""
    plans, shares = [one.plan() for one in chaos], [math.sqrt(one.tally.operations) for one in chaos]
    for one in chaos:
        one.together()
    while sum(one.tally.kills for one in chaos) < kills:
        print(f"{sum(one.tally.kills for one in chaos)} kills", end="\r", flush=True)
        number = draw.choices(range(len(chaos)), shares)[0]
        chaos[number].chain(next(plans[number]))


def summary(job: str, tally: Tally) -> str:
    """What was done to a job and what came out, in a few lines."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.interruptions.items()))
    reached = len({number for how, number in tally.hit if how in KILLS})
    return (
        f"{job}: {tally.kills} kills, at {reached} of {tally.operations} operations; {kinds}\n"
        f"  {tally.chains} chains came to their end, {len(tally.broken)} findings"
    )
