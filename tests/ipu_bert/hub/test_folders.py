"""Where a model's folder may go."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipu_bert.hub.folders import whole_folder


def test_a_folder_that_is_there_once_another_is_made_is_not_replaced(tmp_path: Path) -> None:
    """`new/../old` was taken for a new folder, and what was in `old` was removed."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thesis.txt").write_text("mine")
    message = "expected a new or empty folder .*, found thesis.txt in it"
    with pytest.raises(ValueError, match=message), whole_folder(tmp_path / "new" / ".." / "old"):
        pass
    assert (tmp_path / "old" / "thesis.txt").read_text() == "mine"
