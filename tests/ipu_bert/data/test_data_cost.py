"""What preparing took: recorded when it is done, told by whoever uses the text, and never trusted."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from data_corpora import corpus, prepared, random_documents

from ipu_bert.data import shards
from ipu_bert.data.cost import COST, Cost, read_cost, write_cost
from ipu_bert.data.errors import DataError
from ipu_bert.data.prepare import prepare, summary
from ipu_bert.data.quality import text_quality

SPENT = Cost(
    reading=10.0,
    vocabulary=1.0,
    tokenizing=2.0,
    writing=0.25,
    workers=1,
    sentences=1.25,
    pieces=0.5,
    continued=True,
    text_bytes=2_000_000,
    token_bytes=500_000,
)


def test_what_it_took_is_recorded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documents = [*random_documents(3, 30), "Ünïcode. " * 2]
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)  # several shards, whose seconds add up
    started = time.perf_counter()
    files = prepared(monkeypatch, tmp_path, documents)
    passed = time.perf_counter() - started
    cost = files.cost
    assert cost is not None
    assert 0 < cost.seconds <= passed
    assert min(cost.reading, cost.vocabulary, cost.tokenizing, cost.writing, cost.sentences, cost.pieces) > 0
    assert cost.text_bytes == sum(len(text.encode()) for text in documents)
    names = [*files.manifest["files"]]
    assert cost.token_bytes == sum(Path(files.directory, name).stat().st_size for name in names)
    again = prepare(corpus(), str(tmp_path), workers=1, progress=False)
    assert again.cost == cost
    assert cost.summary() in text_quality(again, 32).told()
    assert cost.summary() in summary(again)


def test_the_line_of_it() -> None:
    assert SPENT.summary() == (
        "prepared in 13.2 s by the process that finished it: reading 10.0 s, vocabulary 1.0 s, tokenizing 2.0 s with "
        "1 process (processor time: sentences 1.2 s, pieces 0.5 s), writing 0.2 s; 2.00 MB of text, 0.50 MB of token "
        "files"
    )


def test_where_it_was_not_recorded_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = prepared(monkeypatch, tmp_path, random_documents(3, 30))
    Path(files.directory, COST).unlink()
    again = prepare(corpus(), str(tmp_path), workers=1, progress=False)
    assert again.cost is None
    assert text_quality(again, 32).told() == [text_quality(again, 32).summary()]


@pytest.mark.parametrize(
    "changes",
    [
        {"reading": -1.0},
        {"reading": "1"},
        {"reading": 10**400},
        {"workers": 1.5},
        {"workers": True},
        {"continued": 1},
        {"more": 1},
        None,
    ],
)
def test_a_cost_that_nobody_wrote_is_refused(tmp_path: Path, changes: dict | None) -> None:
    write_cost(str(tmp_path), SPENT)
    assert read_cost(str(tmp_path)) == SPENT
    (tmp_path / COST).write_text("{" if changes is None else json.dumps({**asdict(SPENT), **changes}))
    with pytest.raises(DataError, match=r"cost\.json: .*; it may be deleted$") as caught:
        read_cost(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_digit_that_changed_is_refused_and_a_cost_of_an_older_version_is_read(tmp_path: Path) -> None:
    """It was told as what preparing had taken."""
    write_cost(str(tmp_path), SPENT)
    text = (tmp_path / COST).read_text()
    (tmp_path / COST).write_text(text.replace('"reading": ', '"reading": 1', 1))
    with pytest.raises(DataError, match=r"cost\.json: its checksum is not that .*; it may be deleted$"):
        read_cost(str(tmp_path))
    (tmp_path / COST).write_text(json.dumps(asdict(SPENT)))
    assert read_cost(str(tmp_path)) == SPENT


@pytest.mark.parametrize("data", [b"", b"{", b'{"reading": 1}', b"\xff\x00"])
def test_a_damaged_cost_is_passed_over_with_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes
) -> None:
    """Nothing follows from it; it ended every run with the text."""
    files = prepared(monkeypatch, tmp_path, random_documents(3, 30))
    path = Path(files.directory, COST)
    path.write_bytes(data)
    again = prepare(corpus(), str(tmp_path), workers=1, progress=False)
    quality = text_quality(again, 32)
    (line,) = quality.warnings()
    assert line.startswith(f"what preparing took is not told: {path}: ")
    assert line.endswith("; it may be deleted")
    assert (again.cost, quality.cost, "\n" in line) == (None, None, False)
    assert path.read_bytes() == data
    assert again.identity == files.identity
