"""How ranks end: all of them, within seconds, with the message of the one that failed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from many_ranks import start, statuses

from ipu_bert.ranks import RankError, join

PATIENCE = 2.0  # seconds in which a hanging rank is found
WAYS = ("killed", "hangs", "disk", "everywhere")


def _end(index: int, how: str, folder: str) -> None:
    """The second of two ranks fails in one way or another while the first waits for it."""
    ranks = join()
    try:
        with ranks.together():
            ranks.connect(PATIENCE)
            ranks.sum([1.0])
            if index == 1 and how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if index == 1 and how == "hangs":
                time.sleep(600)
            if index == 1 and how == "disk":
                raise OSError(28, "No space left on device", "run/metrics.jsonl")
            if how == "everywhere":
                raise ValueError("the same on all")
            started = time.monotonic()
            ranks.sum([1.0])
    except (RankError, OSError, ValueError) as error:
        took = time.monotonic() - started if index == 0 and how != "everywhere" else 0.0
        Path(folder, f"{how}{index}").write_text(json.dumps([took, type(error).__name__, str(error)]))
        os._exit(2)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Per way the exit statuses, and what each rank has heard: seconds, kind of error, message."""
    folder = tmp_path_factory.mktemp("ended")
    started = {how: start(_end, 2, how, str(folder)) for how in WAYS}
    found = {how: statuses(ranks, 300.0, hanging={1} if how == "hangs" else ()) for how, ranks in started.items()}
    heard = {how: [json.loads(path.read_text()) for path in sorted(folder.glob(f"{how}*"))] for how in WAYS}
    return {how: [found[how], *heard[how]] for how in WAYS}


@pytest.mark.parametrize(
    ("how", "status", "words", "most"),
    [("killed", -9, "Connection", 20.0), ("hangs", None, "Timed out waiting 2000ms", PATIENCE + 20.0)],
)
def test_a_rank_that_does_not_answer_is_named(
    ended: dict[str, list[Any]], how: str, status: int | None, words: str, most: float
) -> None:
    found, (took, kind, message) = ended[how]
    assert found == [2, status]
    assert kind == "RankError"
    assert message.startswith("rank 1 does not answer: it was killed, hangs, or its network is gone (")
    assert words in message
    assert took < most


def test_a_rank_that_fails_says_why_on_all(ended: dict[str, list[Any]]) -> None:
    found, (took, *first), (_, *second) = ended["disk"]
    assert found == [2, 2]
    assert first == ["RankError", "rank 1: run/metrics.jsonl: No space left on device"]
    assert second == ["OSError", "[Errno 28] No space left on device: 'run/metrics.jsonl'"]
    assert took < 20.0


def test_what_is_wrong_everywhere_is_said_once(ended: dict[str, list[Any]]) -> None:
    found, (_, *first), (_, *second) = ended["everywhere"]
    assert found == [2, 2]
    assert (first, second) == (["ValueError", "the same on all"], ["RankError", ""])


@pytest.mark.parametrize(("rank", "sent"), [("0", signal.SIGTERM), ("1", signal.SIGKILL)])
def test_who_waits_for_ranks_that_nobody_started_says_so(rank: str, sent: int) -> None:
    """As where RANK and WORLD_SIZE are left over in the environment: hours of silence. Signals end it as before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    code = "from ipu_bert import ranks; ranks.SILENT_SECONDS = 0.5; ranks.join()"
    environment = {**os.environ, **meeting}
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment) as waiting:
        assert waiting.stderr is not None
        late = threading.Timer(120.0, waiting.kill)
        late.start()
        try:
            line = next((line for line in waiting.stderr if line.startswith("rank ")), "nothing")  # torch warns, too
        finally:
            late.cancel()
            waiting.send_signal(sent)
        assert waiting.wait(60.0) == -sent
    expected = f"rank {rank}: waiting for the other rank at 127.0.0.1:{port}, as RANK and WORLD_SIZE=2 are set\n"
    assert line == expected
