"""make_ready asks for both; what each of them does is in test_host_memory.py and test_openmp.py."""

from __future__ import annotations

import pytest

from sparse_ops import process


def test_both_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("keep_freed_memory", "give_way"):
        monkeypatch.setattr(process, name, lambda name=name: asked.append(name))
    process.make_ready()
    assert asked == ["keep_freed_memory", "give_way"]
