"""What a script hands over of a variable that is not set is refused: '' is no path, no column and no encoding."""

from __future__ import annotations

import pytest

from ipu_bert.finetune.__main__ import main

GIVEN = ["--train", "--validation", "--test", "--text", "--pair", "--label", "--encoding"]


@pytest.mark.parametrize("name", ["start", *GIVEN])
def test_nothing_is_no_name(name, finished, tmp_path, monkeypatch, capsys):
    """A start of '' was the run that is worked in, and a column of '' the one that a table's first column may be."""
    monkeypatch.chdir(finished)
    (tmp_path / "a.csv").write_text(",text,label\n" + "".join(f"{i % 3},war {i},{i % 2}\n" for i in range(20)))
    options = [] if name == "start" else [name, ""]
    start = "" if name == "start" else str(finished)
    with pytest.raises(SystemExit, match="2"):
        main([start, str(tmp_path / "out"), "--train", str(tmp_path / "a.csv"), "--epochs", "1", *options])
    assert f"argument {name}: expected a path or a name, found ''\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
