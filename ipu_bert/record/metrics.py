"""What a run says about itself: one record (a dict) goes to every sink that listens.

A record has "kind" ("start", "train", "skip", "eval", "update", "resume" or "end") and "step"; the rest are numbers,
dicts of numbers, or the reason of a skip. Sinks do not know each other. JSON Lines are the truth that the report is
made from; TensorBoard, W&B and the console (console.py) are views of it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Iterator, Mapping, Protocol, Sequence, Union

from ipu_bert.json_file import is_count
from ipu_bert.record.context import RECORDED
from sparse_ops import files

PathLike = Union[str, Path]
Record = Dict[str, Any]

METRICS_FILE = "metrics.jsonl"  # in the run's folder
# What every record has; of an evaluation, by what it was judged and beside what, where that is recorded.
_BOOKKEEPING = {"kind", "step", "batches", *RECORDED, "no_context_loss", "no_context_margin"}  # the last of older ones


# ---------------------------------------------------------------- plain values and files


def to_plain(value: Any) -> Any:
    """`value` as strict JSON can hold it: NaN and infinities become None, array scalars Python numbers.

    Raises TypeError that names a value which is none of dict, list, tuple, str, bool, number, path or None.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):
        return to_plain(value.item())  # raises for an array of more than one element
    raise TypeError(f"a record holds numbers, text, lists and dicts; found {type(value).__name__}: {value!r}")


def dumps(value: Any, indent: int | None = None) -> str:
    """Strict JSON text of `value` (see `to_plain`); never a bare NaN."""
    return json.dumps(to_plain(value), allow_nan=False, indent=indent)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# Kinds of records in which all else is a number, and how deep those of their values are that are numbers by name.
_NUMBERS: Mapping[str, Mapping[str, int]] = {
    "train": {"seconds": 1},
    "eval": {},
    "update": {"layers": 2, "transfers": 1},
}
# What reports need all of.
MEANS = ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy")
_TRANSFERS = {"bytes_down", "bytes_up", "compilations"}


def _parse_line(line: bytes) -> Record:
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError("expected a JSON object")
    if not isinstance(record.get("kind"), str) or not is_count(record.get("step")):
        raise ValueError("expected a kind and a step of 0 or more")
    depths = _NUMBERS.get(record["kind"])
    for name, value in record.items() if depths is not None else ():
        if name != "kind" and not _are_numbers(value, (depths or {}).get(name, 0)):
            words = ("a number", "numbers by name", "numbers by name of each layer")
            raise ValueError(f"expected {words[(depths or {}).get(name, 0)]} as {name}")
    if record["kind"] == "eval" and record.keys() - _BOOKKEEPING != set(MEANS):
        raise ValueError(f"expected {', '.join(sorted(MEANS))} of an evaluation")
    for name in ("batches", "mlm_labels"):
        if record["kind"] == "eval" and not is_count(record.get(name, 0)):
            raise ValueError(f"expected {name} of 0 or more of an evaluation")
    moved = record.get("transfers") if record["kind"] == "update" else None
    if moved and (moved.keys() != _TRANSFERS or not all(map(is_count, moved.values()))):
        raise ValueError(f"expected {', '.join(sorted(_TRANSFERS))} of 0 or more as transfers")
    return record


def _are_numbers(value: Any, depth: int) -> bool:
    """Whether a value is None or a finite number in 64 bits; with `depth` such by name, or those by name."""
    if depth and isinstance(value, dict):
        return all(_are_numbers(item, depth - 1) and (item is not None or depth == 1) for item in value.values())
    if value is None or depth:
        return value is None
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, int) and abs(value) < 1 << 63


def read_metrics(path: PathLike) -> list[Record]:
    """The records of a metrics.jsonl, in order.

    A last line torn by a killed process is dropped. Raises ValueError that names the line for any other that is not a
    strict JSON object with a kind and a step.
    """
    lines = Path(files.plain(path)).read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(_parse_line(line))
        except ValueError as error:
            if number == len(lines):
                break
            found = f"{line[:60]!r} ({error})"
            advice = "a run goes on without this line, too: delete it"
            raise ValueError(f"{path}, line {number}: expected one JSON object, found {found}; {advice}") from error
    return records


def split_at(records: Sequence[Record], step: int) -> tuple[list[Record], list[Record]]:
    """What a run that goes on after `step` keeps, and what comes later, to which an end at `step` belongs."""

    def is_later(record: Record) -> bool:
        return bool(record.get("step", 0) >= step + (record.get("kind") != "end"))

    return [r for r in records if not is_later(r)], [r for r in records if is_later(r)]


def write_metrics(path: PathLike, records: Sequence[Record]) -> None:
    """A metrics.jsonl of these records, in the place of one that is there."""
    files.write(path, as_lines(records))


def as_lines(records: Sequence[Record]) -> str:
    """The text of a metrics.jsonl of these records."""
    return "".join(dumps(record) + "\n" for record in records)


# ---------------------------------------------------------------- sinks


class Sink(Protocol):
    """Something that takes records."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record; it is complete when this returns."""

    def sync(self) -> None:
        """What was written survives a power cut from now on, as far as this sink is about that."""

    def close(self) -> None:
        """Flush and release; called once."""


class Metrics:
    """Fans each record out to the sinks; a context manager that closes them, also when the run fails."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def write(self, record: Mapping[str, Any]) -> None:
        """Send one record; raises ValueError when "kind" (text) or "step" (integer) is missing."""
        step = record.get("step")
        if not isinstance(record.get("kind"), str) or not isinstance(step, int) or isinstance(step, bool):
            raise ValueError(f"a record needs a 'kind' and an integer 'step'; found {dict(record)!r}")
        for sink in self.sinks:
            sink.write(record)

    def sync(self) -> None:
        """Put what was written where a power cut cannot take it: a checkpoint's past is on disk before it is."""
        for sink in self.sinks:
            sink.sync()

    def close(self) -> None:
        """Close every sink, even if one of them fails; raises the first failure at the end."""
        failure: BaseException | None = None
        while self.sinks:
            try:
                self.sinks.pop(0).close()
            except Exception as error:  # the other sinks must still flush what they hold
                failure = failure or error
        if failure is not None:
            raise failure

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class JsonlSink:
    """Appends each record as one strict JSON line, on disk for any reader as soon as `write` returns.

    `resume_step=k` first cuts away what comes later than step k (`split_at`) and a torn last line, so that the resumed
    run's records follow on without duplicates; the file is rewritten aside and renamed. Without it, raises ValueError
    for a file that holds anything: a run never writes into another one's metrics.
    """

    def __init__(self, path: PathLike, resume_step: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            kept = read_metrics(self.path) if self.path.exists() else []
            write_metrics(self.path, split_at(kept, resume_step)[0])
        elif self.path.exists() and self.path.stat().st_size > 0:
            raise ValueError(
                f"{self.path} already holds the metrics of a run; expected a new run directory. "
                "Resume that run, or choose another run.dir"
            )
        self._file = open(self.path, "ab")  # noqa: SIM115 - lives as long as the sink

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        with files.naming(self.path):
            self._file.write((dumps(record) + "\n").encode("utf-8"))
            self._file.flush()

    def sync(self) -> None:
        """Flush to the disk itself."""
        with files.naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush to the disk itself and close."""
        self.sync()
        self._file.close()


_GROUPS = {"train": "train", "eval": "heldout", "update": "pattern"}


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of every finite number in a train, eval or update record, nested dicts with "/" between.

    For instance train/mlm_loss, train/seconds/forward, heldout/mlm_loss, pattern/layers/NAME/explored_dof.
    """
    group = _GROUPS.get(record["kind"])
    if group is None:
        return
    left_out = _BOOKKEEPING - {"other_words_loss"}
    stack: list[tuple[str, Any]] = [(group, {k: v for k, v in record.items() if k not in left_out})]
    while stack:
        tag, value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend((f"{tag}/{key}", value[key]) for key in reversed(list(value)))
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield tag, float(value)


def check_packages(tensorboard: bool, wandb: bool) -> None:
    """Raises ValueError where these sinks need a package that is not installed."""
    if tensorboard:
        _summary_writer()
    if wandb:
        _wandb()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "TensorBoard logging is on and the package 'tensorboard' is not installed; "
            "install it (pip install tensorboard) or switch it off in the config's log section"
        ) from error
    return SummaryWriter


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "W&B logging was asked for and the package 'wandb' is not installed; "
            "install it (pip install wandb) or switch it off in the config's log section"
        ) from error
    return wandb


class TensorBoardSink:
    """Scalars for TensorBoard; `resume_step=k` hides what an earlier process logged after step k.

    Raises ValueError where the package is not installed.
    """

    def __init__(self, directory: PathLike, resume_step: int | None = None) -> None:
        # TensorBoard drops events at or after purge_step: step k itself stays.
        purge = None if resume_step is None else resume_step + 1
        self._writer: Any = _summary_writer()(str(directory), purge_step=purge)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the record's numbers at its step."""
        for tag, value in scalars(to_plain(record)):
            self._writer.add_scalar(tag, value, record["step"])

    def sync(self) -> None:
        """Hand over what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbSink:
    """Scalars for Weights & Biases, which is imported only where it is asked for.

    `run_id` lets a resumed run continue its own page; charts use the record's step as their axis, so a resumed run may
    go back behind what was logged before. Raises ValueError where the package is not installed.
    """

    def __init__(self, project: str, name: str, directory: PathLike, config: Mapping[str, Any], run_id: str) -> None:
        self._run: Any = _wandb().init(
            project=project, name=name, dir=str(directory), config=to_plain(config), id=run_id, resume="allow"
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the record's numbers."""
        values = dict(scalars(to_plain(record)))
        if values:
            self._run.log({**values, "step": record["step"]})

    def sync(self) -> None:
        """Nothing: W&B keeps its own files."""

    def close(self) -> None:
        """Finish the W&B run."""
        self._run.finish()
