"""What `--throughput` prints: samples and tokens a second by replica and by IPU, and what a step and an update cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ipu_bert.config import Config
from ipu_bert.ranks import ALONE, Ranks
from ipu_bert.trial import StepTimes, Trial, UpdateTimes


@dataclass(frozen=True)
class Throughput:
    """Means over `steps` steps, each on a batch made for it on the host and handed to the engine.

    samples, tokens: of one step over all ranks and replicas; padding counts. ipus: of all replicas, None on another
    engine. batches: "text" or "random ids". compile_seconds and warm_up_seconds, of the first step, are in no other
    figure.
    """

    engine: str
    ranks: int
    steps: int
    samples: int
    tokens: int
    replicas: int
    ipus: int | None
    batches: str
    compile_seconds: float
    warm_up_seconds: float
    step: StepTimes
    update: UpdateTimes | None

    def rates(self) -> dict[str, dict[str, float]]:
        """Per second, of everything, of a replica and, on IPUs, of an IPU."""
        shares = {"all": 1, "replica": self.replicas, **({"ipu": self.ipus} if self.ipus else {})}
        return {
            kind: {name: count / self.step.whole / share for name, share in shares.items()}
            for kind, count in (("samples_per_second", self.samples), ("tokens_per_second", self.tokens))
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), **self.rates()}

    def render(self) -> str:
        """For a reader."""
        samples, tokens = self.rates().values()
        each = [f"{samples[name]:,.4g} samples/s, {tokens[name]:,.4g} tokens/s" for name in samples]
        names = ("", f" by replica, of {self.replicas}", f" by IPU, of {self.ipus}")
        lines = [
            "throughput  " + "\n            ".join(text + name for text, name in zip(each, names)),
            f"step        {self.step.whole:.3g} s for {self.samples:,} samples ({self.tokens:,} tokens, padding "
            f"counted), mean of {self.steps} steps; host {self.step.host:.3g} s of it, making the batch from "
            f"{self.batches} {self.step.data:.3g} s",
            f"before      {self.compile_seconds:.3g} s to compile, {self.warm_up_seconds:.3g} s for the first step",
            f"update      {_update(self.update)}",
        ]
        if self.ranks > 1:
            lines.insert(2, f"exchange    {self.step.exchange:.3g} s of a step waiting for other ranks")
        return f"engine      {self.engine}\n" + "\n".join(lines)


def throughput(config: Config, steps: int, ranks: Ranks = ALONE) -> Throughput:
    """Compile, leave one step out, time `steps` steps and a pattern update; nothing is written.

    Raises ValueError or ArithmeticError as the run would.
    """
    train, on_ipus = config.train, config.engine.name == "ipu"
    if on_ipus and config.engine.device == "offline":
        raise ValueError("engine.device: expected a device that runs steps, found offline, which only compiles")
    trial = Trial(config, ranks)
    compile_seconds, warm_up_seconds = trial.compile(), trial.step()
    step = trial.steps(steps)
    replicas = config.ipu.replicas if on_ipus else 1
    return Throughput(
        engine=(f"ipu, device {config.engine.device}" if on_ipus else config.engine.name) + _of(ranks),
        ranks=ranks.count,
        steps=steps,
        samples=train.batch_size,
        tokens=train.batch_size * config.data.sequence_length,
        replicas=replicas,
        ipus=replicas * len(config.ipu.layers_per_ipu) if on_ipus else None,
        batches=trial.batches,
        compile_seconds=compile_seconds,
        warm_up_seconds=warm_up_seconds,
        step=step,
        update=trial.update(step.whole),
    )


def _of(ranks: Ranks) -> str:
    return f", {ranks.count} ranks" if ranks.count > 1 else ""


def _update(update: UpdateTimes | None) -> str:
    if update is None:
        return "none: patterns stay as they are"
    if update.transfers is None:
        return f"{update.seconds:.3g} s, in place: nothing is transferred; {update.number:,} in the run"
    moved = f"{update.transfers.bytes_down:,} bytes down, {update.transfers.bytes_up:,} bytes up"
    return f"{update.seconds:.3g} s, {moved}; {update.number:,} in the run"
