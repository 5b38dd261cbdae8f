"""How long a run will take, from a few real steps: what `--dry-run --measure` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ipu_bert.config import Config
from ipu_bert.ranks import ALONE, Ranks
from ipu_bert.record.console import format_duration
from ipu_bert.trial import Trial

MEASURED_STEPS = 2  # after one to warm up


@dataclass(frozen=True)
class RunTimes:
    """Seconds of one step, one pattern update and one evaluation, and how many of each are to be made.

    batches: "text" or "random ids", which all but fill their sequences and have a label at every place for one.
    """

    steps: int
    step_seconds: float
    updates: int
    update_seconds: float
    evaluations: int
    evaluation_seconds: float
    batches: str

    @property
    def total_seconds(self) -> float:
        """Of all of them; saving and preparing text are left out."""
        return (
            self.steps * self.step_seconds
            + self.updates * self.update_seconds
            + self.evaluations * self.evaluation_seconds
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "total_seconds": self.total_seconds, "total_hours": self.total_seconds / 3600}

    def render(self) -> str:
        """For a reader."""
        steps = f"{self.step_seconds:.3g} s a step: "
        updates = f"{self.updates:,} pattern updates of {self.update_seconds:.3g} s add "
        evaluations = f"{self.evaluations:,} evaluations of {self.evaluation_seconds:.3g} s add "
        lines = [
            steps + f"{format_duration(self.steps * self.step_seconds)} for {self.steps:,} steps",
            updates + format_duration(self.updates * self.update_seconds) if self.updates else "no pattern updates",
            evaluations + format_duration(self.evaluations * self.evaluation_seconds),
            f"{self.total_seconds / 3600:.2f} h in all; mean of {MEASURED_STEPS} steps on {self.batches} after a first "
            "one; saving and preparing text left out",
        ]
        if self.batches != "text":
            lines.append(
                "the text is not prepared yet: random ids have as many words as were asked for, and a label at every "
                "place for one, so the run may take less"
            )
        return "time        " + "\n            ".join(lines)


def measure(config: Config, ranks: Ranks = ALONE, done: int = 0) -> RunTimes:
    """Build the run's model and time its steps, an update and an evaluation; nothing is written.

    done: steps that the run has made before it goes on; what came with them is not counted. Raises ValueError or
    ArithmeticError as the run would.
    """
    trial, last = Trial(config, ranks), config.train.last_step
    trial.step()
    step_seconds = trial.steps(MEASURED_STEPS).whole
    update = trial.update(step_seconds, done)
    return RunTimes(
        steps=last - done,
        step_seconds=step_seconds,
        updates=update.number if update else 0,
        update_seconds=update.seconds if update else 0.0,
        evaluations=_evaluations(config.eval.every, last, done),
        evaluation_seconds=trial.evaluation(),
        batches=trial.batches,
    )


def _evaluations(every: int, last: int, done: int) -> int:
    """Before the first step, at each multiple of `every`, and after the last step; those after `done` steps."""
    between = max(0, (last - 1) // every - done // every) if every else 0
    return (done == 0) + between + (last > done)
