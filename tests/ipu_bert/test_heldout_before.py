"""A run that begins with another one and holds out what that one was, or may have been, trained on says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipu_bert import assemble, cli, sealed_json
from ipu_bert.checkpoint_info import TRAINED_BEFORE, problem
from ipu_bert.config import load_config
from ipu_bert.evaluate import evaluate
from ipu_bert.export_run import export
from ipu_bert.heldout_before import trained_before
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")
TOLD = "was trained on documents that are held out here"
MAY = "may have been trained on documents that are held out here"


def documents(files: Any, split: str) -> set[bytes]:
    """The ids of each document."""
    part = files.split(split)
    ends = part.sentences[part.documents]
    return {part.tokens[start:end].tobytes() for start, end in zip(ends, ends[1:])}


def of_run(folder: Path) -> Any:
    files = assemble.find_data(load_config(str(folder / "config.yaml"), []))[1]
    assert files is not None
    return files


@pytest.mark.parametrize(("more", "known"), [(0.4, True), (0.0, False), (-0.05, False)])
def test_a_warning_where_the_start_held_out_less(tiny, finished, tmp_path, capsys, more: float, known: bool) -> None:
    before = yaml.safe_load((finished / "config.yaml").read_text())["data"]["heldout_fraction"]
    folder = tmp_path / "run"
    run = [f"run.dir={folder}", "train.stop_at=1", f"data.heldout_fraction={before + more}"]
    config = tiny(*run, f"model.init={finished}")
    planned = assemble.plan(config)["data"]["said"]  # of a text that is not prepared yet
    assert sum(TOLD in line for line in planned) == known
    Trainer(config).run()
    files, first = assemble.find_data(config)[1], of_run(finished)
    assert bool(documents(files, "heldout") & documents(first, "train")) == known
    assert not documents(files, "heldout") & documents(files, "train")
    assert "".join(capsys.readouterr()).count(TOLD) == known
    page = (folder / "report.md").read_text()
    assert page.count(TOLD) == known
    assert MAY not in page
    assert "Held-out documents are never trained on by this run." in page
    assert "Held-out documents are never trained on. " in (finished / "report.md").read_text()


def begun(tiny: Any, start: Path, folder: Path, *overrides: str) -> list[str]:
    """What a run that begins with another one keeps of that."""
    run = Trainer(tiny(f"run.dir={folder}", f"model.init={start}", "train.stop_at=1", *overrides)).run()
    return list(load_model(run).info[TRAINED_BEFORE])


def test_two_documents_at_least_are_held_out(tiny, corpus: Path, tmp_path) -> None:
    """Of a share that would hold out none: which are held out does not follow from the share alone."""
    few = ["data.heldout_fraction=0.001", "train.batch_size=1", "train.micro_batch_size=1", "eval.batches=1"]
    files = of_run(Trainer(tiny(f"run.dir={tmp_path / 'few'}", "train.stop_at=1", *few)).run())
    assert files.manifest["splits"]["heldout"]["documents"] == 2
    wanted = int(0.001 * (1 << 64))
    assert int(files.held_out["below"], 16) > wanted  # by the share alone nothing would be held out
    exact, by_share = files.held_out, {**files.held_out, "below": f"{wanted:016x}"}
    info = load_model(tmp_path / "few").info
    assert info["held_out"] == exact
    assert trained_before(str(tmp_path / "few"), exact, None) == []
    assert trained_before(str(tmp_path / "few"), by_share, None) == []
    (line,) = trained_before(str(tmp_path / "few"), {**exact, "below": f"{int(exact['below'], 16) + 1:016x}"}, None)
    assert TOLD in line


def test_whether_another_text_was_trained_on_is_not_known_and_said(tiny, finished, corpus: Path, tmp_path) -> None:
    """A part of it, and the same files cut into other documents: silent, as fraction and path said nothing else."""
    parts = sorted(corpus.iterdir()) if corpus.is_dir() else [corpus]
    other = tmp_path / "other"
    other.mkdir()
    text = "\n".join(part.read_text() for part in parts)
    (other / "part.txt").write_text(text[len(text) // 2 :])
    for number, overrides in enumerate(([f"data.path={other}"], ["data.line_is_sentence=true"])):
        (line,) = begun(tiny, finished, tmp_path / f"run{number}", *overrides)
        assert line.startswith(f"{finished}, where weights began, {MAY}")
        assert "another text, or the same one as other documents" in line
        page = (tmp_path / f"run{number}" / "report.md").read_text()
        assert page.count(MAY) == 1


@pytest.mark.parametrize("write", ["copy", "glob", "relative"])
def test_the_same_text_is_known_however_its_path_is_written(
    tiny, finished, corpus: Path, tmp_path, monkeypatch, write: str
) -> None:
    path = {
        "copy": lambda: shutil.copytree(corpus, tmp_path / corpus.name),
        "glob": lambda: f"{corpus.parent}/[{corpus.name[0]}]{corpus.name[1:]}/*",
        "relative": lambda: f"./{corpus.name}",
    }[write]()
    monkeypatch.chdir(corpus.parent)
    (line,) = begun(tiny, finished, tmp_path / "run", f"data.path={path}", "data.heldout_fraction=0.5")
    assert TOLD in line
    assert begun(tiny, finished, tmp_path / "equal", f"data.path={path}") == []


def test_what_the_start_itself_began_with_counts(tiny, finished, tmp_path) -> None:
    """A second phase of a second phase: the middle one held out as much as this one."""
    middle = tmp_path / "middle"
    (line,) = begun(tiny, finished, middle, "data.heldout_fraction=0.5")
    assert line.startswith(f"{finished}, where weights began, held out less of the same text")
    assert begun(tiny, middle, tmp_path / "last", "data.heldout_fraction=0.5") == [line]


def as_older_versions_wrote(run: Path, *without: str) -> None:
    for state in run.glob("checkpoints/*/state.json"):
        info = json.loads(state.read_text())
        state.write_text(sealed_json.sealed({key: value for key, value in info.items() if key not in without}))


def test_what_cannot_be_found_is_not_known(tiny, finished, tmp_path) -> None:
    """A start of the start that is gone, of an older version; a run of one on another text; an export."""
    gone = shutil.copytree(finished, tmp_path / "gone")
    middle = tmp_path / "middle"
    assert begun(tiny, gone, middle) == []
    shutil.rmtree(gone)
    assert begun(tiny, middle, tmp_path / "last") == []  # the middle one knows
    as_older_versions_wrote(middle, "trained_before")
    (line,) = begun(tiny, middle, tmp_path / "another")
    assert line == f"{gone}, where weights began, {MAY}, on which losses are lower than on new text: " + (
        "what its text was is not known here"
    )
    older = shutil.copytree(finished, tmp_path / "older")
    as_older_versions_wrote(older, "held_out", "trained_before")
    files = of_run(finished)
    assert trained_before(str(older), files.held_out, files.identity["text"]) == []
    assert MAY in trained_before(str(older), files.held_out, "another")[0]
    export(load_model(finished), tmp_path / "exported", sparse=False)
    assert MAY in trained_before(str(tmp_path / "exported"), files.held_out, files.identity["text"])[0]


def test_it_is_said_wherever_the_losses_are(tiny, finished, tmp_path, capsys) -> None:
    """By a run that goes on, an evaluation of its checkpoint and its card, also once the start is gone."""
    start = shutil.copytree(finished, tmp_path / "start")
    run = tmp_path / "run"
    (line,) = begun(tiny, start, run, "data.heldout_fraction=0.5")
    config = tiny(f"run.dir={run}", f"model.init={start}", "data.heldout_fraction=0.5", "train.stop_at=2")
    shutil.rmtree(start / "checkpoints")
    capsys.readouterr()
    settings = [f"run.dir={run}", f"model.init={start}", "data.heldout_fraction=0.5"]
    assert cli.main(["--config", str(tmp_path / "tiny.yaml"), "--resume", "auto", "--dry-run", *settings]) == 0
    planned = "".join(capsys.readouterr())
    assert (planned.count(line), planned.count(MAY)) == (1, 0)
    Trainer(config, resume=load_model(run).checkpoint).run()
    assert (run / "report.md").read_text().count(TOLD) == 1
    assert line in evaluate(load_model(run), [], 1).notes
    text = tmp_path / "own.txt"
    text.write_text("one two three. four five six.\n\nseven eight nine. ten one two.\n" * 20)
    assert line not in evaluate(load_model(run), [str(text)], 1).notes
    export(load_model(run), tmp_path / "exported", sparse=False)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert card.count(f"The model where weights began held out less of the same text: it {TOLD}") == 1
    assert str(tmp_path) not in card


@pytest.mark.parametrize("value", ["a line", [1], ["two\nlines"], {}, [None]])
def test_a_state_that_somebody_changed_is_named(finished, value: Any) -> None:
    state = json.loads((load_model(finished).checkpoint / "state.json").read_text())
    assert problem(state) == ""
    assert "trained_before" in problem({**state, "trained_before": value})
    assert "held_out" in problem({**state, "held_out": {"documents": [value], "below": "0"}})
