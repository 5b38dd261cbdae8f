"""A run that begins with another one and holds out what that one was trained on says so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipu_bert import assemble
from ipu_bert.config import Config, load_config
from ipu_bert.heldout_before import _share_text, trained_before
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")
TOLD = "was trained on documents that are held out here"


def documents(files: Any, split: str) -> set[bytes]:
    """The ids of each document."""
    part = files.split(split)
    ends = part.sentences[part.documents]
    return {part.tokens[start:end].tobytes() for start, end in zip(ends, ends[1:])}


@pytest.mark.parametrize(("more", "known"), [(0.4, True), (0.0, False), (-0.05, False)])
def test_a_warning_where_the_start_held_out_less(tiny, finished, tmp_path, capsys, more: float, known: bool) -> None:
    before = yaml.safe_load((finished / "config.yaml").read_text())["data"]["heldout_fraction"]
    folder = tmp_path / "run"
    run = [f"run.dir={folder}", "train.stop_at=1", f"data.heldout_fraction={before + more}"]
    config = tiny(*run, f"model.init={finished}")
    planned = assemble.plan(config)["data"]["said"]  # of a text that is not prepared yet
    assert sum(TOLD in line for line in planned) == known
    Trainer(config).run()
    files = assemble.find_data(config)[1]
    first = assemble.find_data(load_config(str(finished / "config.yaml"), []))[1]
    assert bool(documents(files, "heldout") & documents(first, "train")) == known
    assert not documents(files, "heldout") & documents(files, "train")
    assert "".join(capsys.readouterr()).count(TOLD) == known
    page = (folder / "report.md").read_text()
    assert page.count(TOLD) == known
    assert "Held-out documents are never trained on by this run." in page
    assert "Held-out documents are never trained on. " in (finished / "report.md").read_text()


def test_what_the_start_itself_began_with_counts(tiny, finished, tmp_path) -> None:
    """A second phase of a second phase: the middle one held out as much as this one."""
    middle = Trainer(tiny(f"model.init={finished}", "data.heldout_fraction=0.5", "train.stop_at=1")).run()
    config = tiny(f"run.dir={tmp_path / 'last'}", f"model.init={middle}", "data.heldout_fraction=0.5")
    (line,) = trained_before(config)
    assert line.startswith(f"{finished}, where weights began, had data.heldout_fraction ")
    assert trained_before(tiny("data.heldout_fraction=0.5")) == []


def test_another_text_is_another_text(tiny, finished, corpus: Path, tmp_path) -> None:
    init = (f"model.init={finished}", "data.heldout_fraction=0.5")
    assert trained_before(tiny(f"data.path={corpus}/../{corpus.name}", *init)) != []
    other = shutil.copytree(corpus, tmp_path / "other")
    assert trained_before(tiny(f"data.path={other}", *init)) == []
    config = tiny(*init)
    config.data.source = "sotu"
    assert trained_before(config) == []


def test_files_named_otherwise_are_the_same_files(tiny, tmp_path) -> None:
    """By a list in another order, a file of it, or their folder; `mix` has all that `sotu` has."""
    config = tiny()
    for number, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        for file in ("a.txt", "b.txt"):
            (tmp_path / folder / file).write_text(f"{number}")
    a, b, c = (str(tmp_path / path) for path in ("one/a.txt", "one/b.txt", "two/a.txt"))
    first = _reading(config, "files", [a, b])
    for known, paths in ((True, [b, a]), (True, a), (True, str(tmp_path / "one")), (True, [c, b]), (False, c)):
        assert _share_text(first, _reading(config, "files", paths)) == known
    assert not _share_text(first, _reading(config, "files", str(tmp_path / "o")))  # whose name one begins with
    assert _share_text(_reading(config, "mix", ""), _reading(config, "sotu", ""))
    assert not _share_text(_reading(config, "mix", ""), first)


def _reading(config: Config, source: str, path: Any) -> Config:
    return replace(config, data=replace(config.data, source=source, path=path))
