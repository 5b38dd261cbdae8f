"""What export_run does not do ends in one line and status 2, before anything is written."""

from __future__ import annotations

import pytest

from ipu_bert import export_run
from ipu_bert.trainer import Trainer


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("settings", [["sparsity.method=dense"], ["sparsity.sparsity=0"]])
def test_a_dense_run_has_no_sparse_form(settings, tiny, tmp_path, capsys):
    """Its card spoke of blocks, of which there was none, and transformers alone did not load it."""
    run = Trainer(tiny("train.stop_at=1", *settings)).run()
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert export_run.main([str(run), str(tmp_path / "exported"), "--sparse"]) == 2
    said = "error: --sparse: expected a run with block-sparse weights; found dense ones\n"
    assert capsys.readouterr().err == said
    assert sorted(tmp_path.iterdir()) == before
    assert export_run.main([str(run), str(tmp_path / "exported")]) == 0


@pytest.mark.parametrize(
    "name", ["", " ", "model", "me/", "/model", "me/my model", "a/b/c", "../model", "me/model.git"]
)
def test_a_name_that_no_repository_can_have_is_refused_before_the_export(name, finished, tmp_path, capsys):
    """With "", as of a variable that is not set, nothing was pushed, and it ended with 0."""
    with pytest.raises(SystemExit, match="2"):
        export_run.main([str(finished), str(tmp_path / "exported"), "--push-to", name])
    said = f"argument --push-to: expected a name on the hub as USER/MODEL, found {name!r}\n"
    assert capsys.readouterr().err.endswith(said)
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_name_is_not_the_folder_that_is_worked_in(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    with pytest.raises(SystemExit, match="2"):
        export_run.main(["", str(tmp_path / "exported")])
    assert capsys.readouterr().err.endswith("argument run: expected a path or a name, found ''\n")
    assert not list(tmp_path.iterdir())
