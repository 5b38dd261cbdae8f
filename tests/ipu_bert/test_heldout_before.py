"""A run that begins with another one and holds out what that one was, or may have been, trained on says so."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipu_bert import assemble, cli, sealed_json
from ipu_bert.checkpoint_info import TEXTS_BEFORE, problem
from ipu_bert.config import load_config
from ipu_bert.data.manifest import problem as manifest_problem
from ipu_bert.evaluate import evaluate
from ipu_bert.export_run import export
from ipu_bert.heldout_before import of_checkpoint, texts_before, told
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
    planned = assemble.plan(config)["data"]["said"]
    if more:  # a text that is not prepared yet: two documents at least are held out, whatever the share is
        assert sum("is said once the text is prepared" in line for line in planned) == 1
    Trainer(config).run()
    files, first = assemble.find_data(config)[1], of_run(finished)
    planned = assemble.plan(config)["data"]["said"]
    assert sum(TOLD in line for line in planned) == known
    assert not any("once the text" in line for line in planned)
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
    before, held_out = of_checkpoint(load_model(run).info)
    assert held_out == of_run(run).held_out
    lines = told(before, held_out, str(start))
    assert told(before, held_out) == [
        line.replace(f"{start}, where weights began,", "The model where weights began") for line in lines
    ]
    page = (run / "report.md").read_text()
    assert page.count(TOLD) + page.count(MAY) == len(lines)
    assert all(line in page for line in lines)
    return lines


def test_it_goes_by_documents_not_by_the_share_asked_for(tiny, tmp_path) -> None:
    """Shares that hold out the same documents; two are held out at least, whatever the share."""
    texts = [
        f"The {word} of number {number}. It has a {word}, too." for number, word in enumerate(["house", "tree"] * 10)
    ]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    few = [f"data.path={tmp_path / 'few.jsonl'}", "train.batch_size=1", "train.micro_batch_size=1", "eval.batches=1"]

    def started(name: str, share: float, start: str = "") -> list[str]:
        settings = [*few, f"data.heldout_fraction={share}"]
        if start:
            return begun(tiny, tmp_path / start, tmp_path / name, *settings)
        Trainer(tiny(f"run.dir={tmp_path / name}", "train.stop_at=1", *settings)).run()
        return []

    digests = [hashlib.sha256(" ".join(text.lower().split()).encode()).digest() for text in texts]
    places = sorted(int.from_bytes(digest[:8], "little") / 2**64 for digest in digests)
    for count, (low, high) in {2: (0.0, places[0]), 5: places[4:6]}.items():
        started(f"first{count}", 0.7 * low + 0.3 * high)
        assert started(f"same{count}", 0.3 * low + 0.7 * high, f"first{count}") == []
        (line,) = started(f"more{count}", (places[count] + places[count + 1]) / 2, f"same{count}")
        assert TOLD in line
        assert started(f"less{count}", 0.1 * low + 0.9 * high, f"more{count}") == []
        held = [documents(of_run(tmp_path / f"{name}{count}"), "heldout") for name in ("first", "same", "more")]
        assert list(map(len, held)) == [count, count, count + 1]
        assert held[0] == held[1] < held[2]


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
    """A second phase of a second phase: the middle one held out as much as this one. What lies by now where the first
    one lay, if anything does, changes nothing."""
    first, middle = shutil.copytree(finished, tmp_path / "first"), tmp_path / "middle"
    (line,) = begun(tiny, first, middle, "data.heldout_fraction=0.5")
    assert TOLD in line
    for then in ("as it was", "another run", "gone"):
        if then == "another run":
            shutil.rmtree(first)
            Trainer(tiny(f"run.dir={first}", "train.stop_at=1", "data.heldout_fraction=0.6")).run()
        elif then == "gone":
            shutil.rmtree(first)
        last = tmp_path / then.replace(" ", "_")
        assert begun(tiny, middle, last, "data.heldout_fraction=0.5") == [line.replace(str(first), str(middle))], then
    assert begun(tiny, tmp_path / "gone", tmp_path / "end", "data.heldout_fraction=0.5") != []


def test_texts_are_handed_on(monkeypatch) -> None:
    """By hand: three texts A, B, C; of each run the largest hash that it held out, and all that it began with."""
    states: dict[str, dict[str, Any]] = {}

    def run(name: str, init: str, documents: str, last: str, text: str = "") -> list[str]:
        held_out = {"documents": documents, "last": last}
        before = texts_before(init, text or name) if init else {}
        config = {"model": {"init": init}}
        states[name] = {
            "config": config,
            "identity": {"text": text or name},
            "held_out": held_out,
            TEXTS_BEFORE: before,
        }
        return told(before, held_out)

    monkeypatch.setattr("ipu_bert.heldout_before.checkpoint.find", lambda path: path)
    monkeypatch.setattr("ipu_bert.heldout_before.checkpoint.read_info", lambda path: states[str(path)])
    was, not_known, another, how_much = TOLD, "is not known here", "another text", "how much of the same text"
    assert run("a1", "", "A", "05") == []
    assert run("a2", "a1", "A", "05") == run("a3", "a2", "A", "04") == []
    assert was in run("a4", "a3", "A", "05")[0]  # a3 trained on what a1 and a2 held out
    assert was in run("a5", "a4", "A", "05")[0]  # a4 held out as much, a3 did not
    assert run("a6", "a5", "A", "04") == []
    assert another in run("b1", "a1", "B", "09")[0]
    assert another in run("b2", "b1", "B", "09")[0]
    assert was in run("a7", "b2", "A", "06")[0]  # a1, two runs before, held out less
    assert another in run("a8", "b2", "A", "05")[0]
    states["export"] = {}
    assert not_known in run("c1", "export", "C", "05")[0]
    assert not_known in run("c2", "c1", "C", "05", text="c1")[0]
    assert (
        run("d1", "", "A", "", text="old") == run("d2", "d1", "A", "", text="old") == []
    )  # one prepared text, an old one
    assert how_much in run("d3", "d2", "A", "05")[0]
    assert how_much in run("d4", "a1", "A", "", text="old")[0]


def as_older_versions_wrote(run: Path, *without: str, **more: Any) -> None:
    for state in run.glob("checkpoints/*/state.json"):
        info = {key: value for key, value in json.loads(state.read_text()).items() if key not in without}
        state.write_text(sealed_json.sealed({**info, **more}))


def test_what_cannot_be_found_is_not_known(tiny, finished, tmp_path) -> None:
    """Runs of earlier versions on another text, or begun with something; a text that one prepared; an export."""
    unknown = f"{MAY}, on which losses are lower than on new text: what it was trained on is not known here"
    first = shutil.copytree(finished, tmp_path / "first")
    middle = tmp_path / "middle"
    assert begun(tiny, first, middle) == []
    as_older_versions_wrote(middle, TEXTS_BEFORE)
    assert begun(tiny, middle, tmp_path / "last") == [f"{middle}, where weights began, {unknown}"]
    as_older_versions_wrote(middle, trained_before=[])  # it says that nothing was to be told
    assert begun(tiny, middle, tmp_path / "silent") == []
    as_older_versions_wrote(middle, trained_before=["a line of then"])
    assert begun(tiny, middle, tmp_path / "told") == [f"{middle}, where weights began, {unknown}"]
    as_older_versions_wrote(first, "held_out", TEXTS_BEFORE)
    assert begun(tiny, first, tmp_path / "equal") == []  # the same prepared text
    for held_out in ({}, {"documents": "of then", "below": "05"}):
        as_older_versions_wrote(first, held_out=held_out)
        (line,) = begun(tiny, first, tmp_path / "other", "data.heldout_fraction=0.5")
        assert line == f"{first}, where weights began, {unknown}"
    export(load_model(finished), tmp_path / "exported", sparse=False)
    assert begun(tiny, tmp_path / "exported", tmp_path / "of_export")[0].endswith(unknown)


def test_a_text_that_an_earlier_version_prepared(tiny, finished, tmp_path) -> None:
    """Its manifest does not say how much is held out: silent beside itself alone."""
    old = of_run(finished)
    copy = shutil.copytree(old.directory, tmp_path / "data" / Path(old.directory).name)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["last_held_out"]
    (copy / "manifest.json").write_text(sealed_json.sealed(manifest))
    cached = f"data.dir={tmp_path / 'data'}"
    first = Trainer(tiny(f"run.dir={tmp_path / 'first'}", "train.stop_at=1", cached)).run()
    assert load_model(first).info["held_out"] == {**old.held_out, "last": ""}
    assert begun(tiny, first, tmp_path / "same", cached) == []
    (line,) = begun(tiny, first, tmp_path / "more", cached, "data.heldout_fraction=0.5")
    assert MAY in line
    assert "how much of the same text was held out there is not known here" in line
    (line,) = begun(tiny, tmp_path / "more", tmp_path / "back", cached)
    assert MAY in line


@pytest.mark.parametrize("value", [1, 1234567890123456, None, "", "0" * 15, "0" * 17, "0" * 15 + "G", "0" * 16 + "\n"])
def test_a_manifest_that_somebody_changed_is_named(finished, value: Any) -> None:
    files = of_run(finished)
    entries, splits = files.manifest["files"], files.manifest["splits"]
    assert manifest_problem(files.manifest, entries, "tokenizer.json", splits) == ""
    wrong = manifest_problem({**files.manifest, "last_held_out": value}, entries, "tokenizer.json", splits)
    assert wrong.startswith("expected last_held_out, a hash of 16 digits, found")


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
    assert card.count(f"The model where weights began {TOLD}") == 1
    assert str(tmp_path) not in card


@pytest.mark.parametrize("value", ["a line", [1], ["two\nlines"], {}, [None]])
def test_a_state_that_somebody_changed_is_named(finished, value: Any) -> None:
    state = json.loads((load_model(finished).checkpoint / "state.json").read_text())
    assert problem(state) == ""
    assert "texts_before" in problem({**state, "texts_before": value if isinstance(value, (str, list)) else {"": 1}})
    assert "held_out" in problem({**state, "held_out": {"documents": [value], "below": "0"}})


def test_what_an_earlier_version_had_found_is_kept(tiny, finished, tmp_path) -> None:
    """A run that it began, silent then, goes on though its start is gone; what it had told is not certain any more."""
    start, run = shutil.copytree(finished, tmp_path / "start"), tmp_path / "run"
    assert begun(tiny, start, run) == []
    shutil.rmtree(start / "checkpoints")
    settings = [f"run.dir={run}", f"model.init={start}"]
    for step, (lines, told_now) in enumerate((([], 0), (["a line of then"], 1)), start=2):
        as_older_versions_wrote(run, TEXTS_BEFORE, trained_before=lines)
        config = tiny(*settings, f"train.stop_at={step}")
        found = load_model(run)
        planned = assemble.plan(config, info=found.info)["data"]["said"]
        assert sum(MAY in line for line in planned) == told_now
        Trainer(config, resume=found.checkpoint).run()
        assert (run / "report.md").read_text().count(MAY) == told_now
