"""Records: strict JSON, torn lines, the cut of a resumed run, every sink."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import needs_full_disk
from metric_records import EVAL, UPDATE, train

from ipu_bert.engines.base import TransferRecord
from ipu_bert.record import metrics
from ipu_bert.record.context import Context
from ipu_bert.record.metrics import (
    JsonlSink,
    Metrics,
    TensorBoardSink,
    WandbSink,
    dumps,
    read_metrics,
    scalars,
    to_plain,
)
from ipu_bert.record.outcome import HeldoutMeans

# ------------------------------------------------------------------ JSON Lines


def test_non_finite_numbers_become_null_everywhere() -> None:
    record = {
        "a": math.nan,
        "b": [math.inf, {"c": -math.inf}],
        "d": np.float32("nan"),
        "e": torch.tensor(1.5),
    }
    text = dumps({**record, "f": np.int64(3), "g": True, "h": Path("x/y")})
    assert json.loads(text) == {
        "a": None,
        "b": [None, {"c": None}],
        "d": None,
        "e": 1.5,
        "f": 3,
        "g": True,
        "h": "x/y",
    }
    assert "NaN" not in text
    assert "Infinity" not in text


def test_values_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(TypeError, match="found set"):
        to_plain({"a": {1, 2}})
    with pytest.raises((ValueError, RuntimeError)):
        to_plain({"a": torch.zeros(2)})


def test_each_record_is_one_complete_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path)
    records = [train(1), train(2, mlm_loss=math.nan), UPDATE, EVAL]
    for count, record in enumerate(records, start=1):
        sink.write(record)
        text = path.read_text()
        assert text.endswith("\n")
        assert text.count("\n") == count  # readable while the run goes on
    sink.close()
    assert read_metrics(path) == [train(1), train(2, mlm_loss=None), UPDATE, EVAL]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = (dumps(train(1)) + "\n").encode()
    path.write_bytes(whole + whole[:cut])
    assert read_metrics(path) == [train(1)]
    path.write_bytes(whole + b"\x00\xff\x00")
    assert read_metrics(path) == [train(1)]


@pytest.mark.parametrize("bad", [b'{"kind": "tr', b'{"kind": "train", "step": 2, "mlm_loss": NaN}', b"[1]"])
def test_a_bad_line_inside_is_named(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = dumps(train(1)).encode()
    path.write_bytes(whole + b"\n" + bad + b"\n" + whole + b"\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected one JSON object"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({key: value for key, value in EVAL.items() if key != "nsp_accuracy"}, "of an evaluation"),
        ({**EVAL, "f1": 0.5}, "of an evaluation"),
        ({**EVAL, "batches": -1}, "batches of 0 or more of an evaluation"),
        ({**EVAL, "batches": 0.5}, "batches of 0 or more of an evaluation"),
        ({**EVAL, "mlm_labels": -1}, "mlm_labels of 0 or more of an evaluation"),
        ({**EVAL, "other_words_loss": "x"}, "a number as other_words_loss"),
        ({**EVAL, "mlm_loss": 10**400}, "a number as mlm_loss"),
        (train(1, elapsed=-(10**400)), "a number as elapsed"),
        (train(1, seconds={"forward": "x"}), "numbers by name as seconds"),
        (train(1, seconds=3.0), "numbers by name as seconds"),
        ({**UPDATE, "layers": {"a": 1}}, "numbers by name of each layer as layers"),
        ({**UPDATE, "layers": {"a": None}}, "numbers by name of each layer as layers"),
        ({**UPDATE, "layers": {"a": {"moved": {}}}}, "numbers by name of each layer as layers"),
        ({**UPDATE, "transfers": {"bytes_down": "x"}}, "numbers by name as transfers"),
        ({**UPDATE, "transfers": {"bytes_down": 1}}, "bytes_down, bytes_up, compilations of 0 or more as transfers"),
        ({**UPDATE, "moved": "many"}, "a number as moved"),
    ],
)
def test_a_record_that_no_run_wrote_is_named(tmp_path: Path, record: dict[str, Any], expected: str) -> None:
    """It was a traceback when a report was made of it."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(train(1))}\n{json.dumps(record)}\n{json.dumps(train(2))}\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2: .*\(expected .*{expected}\)"):
        read_metrics(path)


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_beyond_all_is_named(tmp_path: Path, number: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind": "update", "step": 1, "moved": {number}}}\n{json.dumps(train(2))}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: .*\(expected a number as moved\)"):
        read_metrics(path)


def test_what_a_record_needs_is_what_reports_take() -> None:
    transfers = vars(TransferRecord())
    assert metrics._parse_line(dumps({**EVAL, "batches": 16}).encode())["batches"] == 16
    assert metrics._parse_line(dumps(EVAL).encode()) == EVAL  # of a version that did not record it
    context = Context(6.5, 0.05, 6.75, 9700)
    record = metrics._parse_line(dumps({**EVAL, **context.as_record()}).encode())
    assert Context.of_record(record) == context
    means = {field.name for field in dataclasses.fields(HeldoutMeans)}
    assert set(metrics.MEANS) == means == EVAL.keys() - {"kind", "step"}
    assert transfers.keys() == metrics._TRANSFERS
    assert metrics._parse_line(dumps({**UPDATE, "transfers": transfers}).encode())


def test_resume_cuts_later_records_and_the_torn_line(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path, last, step = tmp_path / "metrics.jsonl", rng.randrange(20, 60), rng.randrange(1, 20)
    with Metrics([JsonlSink(path)]) as metrics:
        metrics.write({"kind": "start", "step": 0})
        for k in range(1, last + 1):
            metrics.write(train(k, mlm_loss=rng.random()))
            if k % 5 == 0:
                metrics.write({**EVAL, "step": k})
    before = read_metrics(path)
    with open(path, "ab") as file:
        file.write(b'{"kind": "train", "st')
    with Metrics([JsonlSink(path, resume_step=step)]) as metrics:
        metrics.write({"kind": "resume", "step": step})
        for k in range(step + 1, last + 1):
            metrics.write(train(k))
    after = read_metrics(path)
    kept = [record for record in before if record["step"] <= step]
    assert after[: len(kept)] == kept
    assert after[len(kept)] == {"kind": "resume", "step": step}
    assert [r["step"] for r in after if r["kind"] == "train"] == list(range(1, last + 1))
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_fresh_run_never_writes_into_another_runs_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics([JsonlSink(path)]) as metrics:
        metrics.write(train(1))
    with pytest.raises(ValueError, match="already holds the metrics of a run"):
        JsonlSink(path)
    assert read_metrics(path) == [train(1)]
    JsonlSink(tmp_path / "other.jsonl", resume_step=7).close()  # a run that had logged nothing yet


@pytest.mark.parametrize("record", [{"kind": "train"}, {"step": 1}, {"kind": "train", "step": 1.0}])
def test_a_record_without_kind_or_step_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a record needs a 'kind' and an integer 'step'"):
        Metrics([]).write(record)


def test_metrics_fan_out_and_close_all_even_if_one_fails() -> None:
    class Listener:
        def __init__(self, fails: bool = False) -> None:
            self.got: list[Any] = []
            self.closed, self.fails = 0, fails

        def write(self, record: Any) -> None:
            self.got.append(record)

        def close(self) -> None:
            self.closed += 1
            if self.fails:
                raise OSError("disk full")

    a, b = Listener(fails=True), Listener()
    metrics = Metrics([a, b])
    metrics.write(train(1))
    with pytest.raises(OSError, match="disk full"):
        metrics.close()
    metrics.close()
    assert a.got == b.got == [train(1)]
    assert (a.closed, b.closed) == (1, 1)


# ------------------------------------------------------------------ TensorBoard and W&B


def test_scalars_flatten_and_skip_text_and_null() -> None:
    assert dict(scalars({**EVAL, "batches": 16, **Context(6.5, 0.05, 6.75, 9700).as_record()})) == {
        "heldout/mlm_loss": 6.1234,
        "heldout/nsp_loss": 0.6931,
        "heldout/mlm_accuracy": 0.125,
        "heldout/nsp_accuracy": 0.5,
        "heldout/other_words_loss": 6.5,
    }
    flat = dict(scalars({**UPDATE, "removed_new": None, "note": "x"}))
    assert flat["pattern/layers/bert.encoder.layer.0.output.dense/explored_dof"] == 0.151
    assert "pattern/removed_new" not in flat
    assert "pattern/note" not in flat
    assert "pattern/step" not in flat
    assert dict(scalars({"kind": "start", "step": 0, "seconds": 1.0})) == {}


def test_tensorboard_events_and_purge_on_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Metrics([TensorBoardSink(tmp_path)]) as metrics:
        for step in range(1, 6):
            metrics.write(train(step, mlm_loss=float(step), seconds={"forward": 0.5 * step}))
    with Metrics([TensorBoardSink(tmp_path, resume_step=3)]) as metrics:
        metrics.write(train(4, mlm_loss=40.0))
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/mlm_loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert events.Scalars("train/seconds/forward")[-1].value == 1.5


def test_asking_for_wandb_without_it_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="'wandb' is not installed; install it"):
        WandbSink("project", "run", tmp_path, {}, "run")


def test_wandb_gets_the_same_numbers_and_can_continue_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, float]] = []
    calls: dict[str, Any] = {}

    class Run:
        def define_metric(self, *args: str, **kwargs: str) -> None: ...

        def log(self, values: dict[str, float]) -> None:
            logged.append(values)

        def finish(self) -> None:
            calls["finished"] = True

    fake = types.ModuleType("wandb")
    fake.init = lambda **kwargs: calls.update(kwargs) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Metrics([WandbSink("p", "n", tmp_path, config={"lr": math.nan}, run_id="abc")]) as metrics:
        metrics.write({"kind": "start", "step": 0})
        metrics.write(EVAL)
    assert logged == [{**dict(scalars(EVAL)), "step": 40}]
    assert calls["id"] == "abc"
    assert calls["resume"] == "allow"
    assert calls["config"] == {"lr": None}
    assert calls["finished"]


def test_importing_metrics_imports_neither_wandb_nor_tensorboard() -> None:
    import subprocess

    heavy = "('wandb', 'tensorboard')"
    code = f"import sys, ipu_bert.record.metrics; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ("{}", "expected a kind and a step"),
        ('{"kind": "train", "step": "x"}', "expected a kind and a step"),
        ('{"kind": ["train"], "step": 3}', "expected a kind and a step"),
        ('{"kind": "train", "step": -1}', "expected a kind and a step"),
        ('{"kind": "eval", "step": 4, "mlm_loss": "low"}', "expected a number as mlm_loss"),
        ('{"kind": "update", "step": 4, "moved": [1]}', "expected a number as moved"),
        ('{"kind": "eval", "step": 4, "mlm_loss": {}}', "expected a number as mlm_loss"),
        ('{"kind": "train", "step": 4, "seconds": 5}', "expected numbers by name as seconds"),
    ],
)
def test_a_record_that_no_run_writes_is_named(line, message, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind": "start", "step": 0}}\n{line}\n{{"kind": "end", "step": 9}}\n')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2: .*{message}") as caught:
        read_metrics(path)
    assert len(str(caught.value).splitlines()) == 1


@needs_full_disk
def test_a_full_disk_is_named():
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        JsonlSink("/dev/full", None).write({"kind": "start", "step": 0})
