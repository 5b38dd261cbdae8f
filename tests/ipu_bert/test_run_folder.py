"""A run's folder belongs to one process at a time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ipu_bert.config import as_dict
from ipu_bert.run_folder import Origin, RunFolder


@pytest.mark.parametrize("resumed", [False, True])
def test_a_second_process_is_refused_until_the_first_lets_go(tiny, resumed):
    config = tiny()
    mine = Origin(Path(config.run.dir) / "checkpoints" / "step_00000000", step=0)
    with RunFolder(config, None, unigram_entropy=6.5) as folder:
        folder.metrics.write({"kind": "start", "step": 0})
        before = (folder.path / "metrics.jsonl").read_bytes()
        message = f"run.dir {config.run.dir}: another process is training there; choose another run.dir"
        with pytest.raises(ValueError, match=re.escape(message)):
            RunFolder(config, mine if resumed else None, unigram_entropy=6.5)
        assert (folder.path / "metrics.jsonl").read_bytes() == before
        assert [path.name for path in Path(config.run.dir).parent.iterdir() if path.is_dir()] == ["run"]
    with RunFolder(config, mine, unigram_entropy=6.5) as folder:
        assert yaml.safe_load((folder.path / "config.yaml").read_text()) == as_dict(config)
