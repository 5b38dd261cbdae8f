"""What a run shows while it runs: a progress bar on a terminal, plain lines anywhere else.

Text is plain ASCII: a log file or a minimal locale must not stop a training run.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, Mapping, TextIO

from tqdm import tqdm

from ipu_bert.record.context import LEAST_SHARE, kept_most
from sparse_ops.saying import Heedless


def _number(value: Any, form: str) -> str:
    return "n/a" if value is None else format(float(value), form)


def _percent(value: Any) -> str:
    return "n/a" if value is None else f"{100 * float(value):.1f} %"


def format_duration(seconds: float) -> str:
    """12 s, 4 min 05 s, 3 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ConsoleSink:
    """Progress of a run of `total_steps` on `stream` (standard error by default), as long as somebody reads it.

    On a terminal: a bar with step, losses, learning rate, speed and time left. Otherwise (a pipe, CI) the same as a
    plain line for the first record, the last step, and at most every `interval` seconds between. Either way a line for
    each evaluation and each pattern update.
    """

    def __init__(
        self,
        total_steps: int,
        stream: TextIO | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self._stream = Heedless(sys.stderr if stream is None else stream)
        self._interval = interval
        self._clock = clock
        self._tty = bool(getattr(self._stream, "isatty", lambda: False)())
        self._bar: Any | None = None
        self._first_step = 0
        self._started = clock()
        self._printed: float | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Show one record; start and resume set where the run begins, and say what became of the text."""
        kind = record["kind"]
        if kind == "train":
            self._train(record)
        elif kind == "eval":
            self._line(self._eval_text(record))
        elif kind == "update":
            self._line(self._update_text(record))
        elif kind == "skip":
            self._line(self._skip_text(record))
        elif kind in ("start", "resume"):
            self._first_step, self._started = int(record["step"]), self._clock()
            self._text(record.get("text") or {})

    def sync(self) -> None:
        """Nothing: lines are flushed as they are written."""

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _train_text(self, record: Mapping[str, Any]) -> str:
        mlm, nsp = _number(record.get("mlm_loss"), ".3f"), _number(record.get("nsp_loss"), ".3f")
        rate = _number(record.get("sequences_per_second"), ".0f")
        return f"mlm {mlm}  nsp {nsp}  lr {_number(record.get('lr'), '.2e')}  {rate} seq/s"

    def _train(self, record: Mapping[str, Any]) -> None:
        step = int(record["step"])
        if self._tty:
            if self._bar is None:
                self._bar = tqdm(
                    total=self.total_steps, initial=self._first_step, file=self._stream, dynamic_ncols=True,
                    bar_format="step {n_fmt}/{total_fmt} {bar} {desc}  {remaining} left", mininterval=0.2,
                )  # fmt: skip
            self._bar.set_description_str(self._train_text(record), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = self._clock()
        due = self._printed is None or now - self._printed >= self._interval
        if due or step >= self.total_steps:
            self._printed = now
            left = self._time_left(step, now)
            self._line(f"step {step}/{self.total_steps}  {self._train_text(record)}  {left}")

    def _text(self, text: Mapping[str, Any]) -> None:
        for line in text.get("told", ()):
            self._line(f"text: {line}")
        for warning in text.get("warnings", ()):
            self._line(f"text: warning: {warning}".encode("ascii", "backslashreplace").decode())

    def _time_left(self, step: int, now: float) -> str:
        done = step - self._first_step
        if done <= 0 or step >= self.total_steps:
            return f"{format_duration(now - self._started)} used"
        return f"{format_duration((now - self._started) / done * (self.total_steps - step))} left"

    def _eval_text(self, record: Mapping[str, Any]) -> str:
        other = record.get("other_words_loss")
        share = record.get("other_words_share")
        kept = f"; {kept_most(share)}" if share is not None and share < LEAST_SHARE else ""
        beside = "" if other is None else f" (other words around: {other:.3f}{kept})"
        return (
            f"step {record['step']}  held-out mlm {_number(record.get('mlm_loss'), '.3f')}{beside}, "
            f"{_percent(record.get('mlm_accuracy'))} right;  nsp {_number(record.get('nsp_loss'), '.3f')}, "
            f"{_percent(record.get('nsp_accuracy'))} right"
        )

    @staticmethod
    def _update_text(record: Mapping[str, Any]) -> str:
        blocks = record.get("blocks")
        moved = f"{record.get('moved')}" if blocks is None else f"{record.get('moved')} of {blocks}"
        returned = record.get("returned")
        emptied = "" if returned is None else f", {returned} of them to places just emptied"
        return (
            f"step {record['step']}  pattern update {record.get('update')}: moved {moved} blocks{emptied} "
            f"(ratio {_number(record.get('ratio'), '.3f')}), "
            f"DOF explored {_percent(record.get('explored_dof'))}, "
            f"removed-new ratio {_percent(record.get('removed_new'))}"
        )

    @staticmethod
    def _skip_text(record: Mapping[str, Any]) -> str:
        left_out = ", and with it a pattern update" if record.get("update_left_out") else ""
        return (
            f"step {record['step']}  skipped{left_out}: {record.get('reason')}; {record.get('in_a_row')} in a row, "
            f"at most {record.get('limit')}"
        )

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)  # above the bar
        else:
            self._stream.write(text + "\n")
            self._stream.flush()
