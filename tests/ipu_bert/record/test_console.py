"""What a run prints: lines without a terminal, a bar on one."""

from __future__ import annotations

import errno
import io

import pytest
from metric_records import EVAL, UPDATE, Clock, train

from ipu_bert.record.console import ConsoleSink, format_duration
from ipu_bert.record.context import Context


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_plain_lines_at_sane_intervals() -> None:
    clock, out = Clock(), io.StringIO()
    sink = ConsoleSink(100, stream=out, interval=10.0, clock=clock)
    sink.write({"kind": "start", "step": 0})
    for step in range(1, 101):
        clock.now = 0.5 * step
        sink.write(train(step))
        if step == 40:
            sink.write(UPDATE)
            sink.write({**EVAL, **Context(6.45, 0.05, 6.5, 9700).as_record()})
            sink.write({**EVAL, **Context(6.45, 0.05, 6.5, 9700, 0.375).as_record()})
            sink.write(EVAL)
    sink.close()
    lines = out.getvalue().splitlines()
    steps = [line.split()[1] for line in lines if line.split()[1].endswith("/100")]
    assert steps == ["1/100", "21/100", "41/100", "61/100", "81/100", "100/100"]
    assert lines[1] == "step 21/100  mlm 6.500  nsp 0.690  lr 1.00e-04  100 seq/s  40 s left"  # 79 steps at 0.5 s
    assert lines[-1].endswith("50 s used")
    assert (
        "step 40  pattern update 2: moved 24 of 624 blocks (ratio 0.480), DOF explored 15.1 %, removed-new ratio 25.0 %"
    ) in lines
    assert ("step 40  held-out mlm 6.123 (other words around: 6.450), 12.5 % right;  nsp 0.693, 50.0 % right") in lines
    assert "(other words around: 6.450; only 37.5 % of the tokens around are others), 12.5 % right" in out.getvalue()
    assert "step 40  held-out mlm 6.123, 12.5 % right;  nsp 0.693, 50.0 % right" in lines  # of an older version
    assert "\r" not in out.getvalue()
    assert out.getvalue().isascii()


def test_on_a_terminal_a_bar_and_lines_above_it() -> None:
    out = Terminal()
    sink = ConsoleSink(50, stream=out)
    sink.write({"kind": "resume", "step": 10})
    for step in range(11, 51):
        sink.write(train(step, mlm_loss=6.0 + step / 1000))
    sink.write(UPDATE)
    sink.close()
    text = out.getvalue()
    assert "\r" in text
    assert "step 50/50" in text
    assert "mlm 6.050" in text
    assert "left" in text
    assert "pattern update 2: moved 24 of 624 blocks (ratio" in text
    sink.write({**UPDATE, "returned": 3})
    assert "pattern update 2: moved 24 of 624 blocks, 3 of them to places just emptied (ratio" in out.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_reader_that_has_gone_does_not_end_the_run(kind: type[io.StringIO]) -> None:
    """The pipe of a program that ended; tqdm itself knows terminals that were closed, and pipes only in part."""

    class Gone(kind):  # type: ignore[misc, valid-type]
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    sink = ConsoleSink(3, stream=Gone(), interval=0.0)
    for record in ({"kind": "start", "step": 0}, train(1), EVAL, UPDATE, train(3)):
        sink.write(record)
    sink.close()


def test_missing_numbers_are_shown_as_such() -> None:
    out = io.StringIO()
    sink = ConsoleSink(10, stream=out)
    sink.write({"kind": "train", "step": 1, "mlm_loss": None})
    sink.write({**UPDATE, "removed_new": None})
    assert "mlm n/a" in out.getvalue()
    assert "removed-new ratio n/a" in out.getvalue()


def test_durations() -> None:
    assert [format_duration(s) for s in (0.4, 59.4, 245, 11220)] == [
        "0 s",
        "59 s",
        "4 min 05 s",
        "3 h 07 min",
    ]
