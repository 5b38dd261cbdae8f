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
