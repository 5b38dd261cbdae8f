"""What earlier releases wrote (tests/releases): configs and checkpoints are read, text is prepared anew.

Text prepared as format 1 was cut into other sentences and pieces, so a run that saw it cannot go on with what this
version makes of the text. That its checkpoints themselves are read, to the loss, is shown with the release's own text
in its place.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipu_bert import assemble, checkpoint, export_run
from ipu_bert.config import as_dict, from_dict, load_config
from ipu_bert.data.batches import BatchStream
from ipu_bert.data.manifest import COUNTS
from ipu_bert.data.token_files import TokenFiles
from ipu_bert.hub.folders import TOKENIZER_FILES
from ipu_bert.record.metrics import read_metrics
from ipu_bert.trainer import Trainer

RELEASES = sorted(path for path in (Path(__file__).parents[1] / "releases").iterdir() if path.is_dir())
ENGINES = ("torch", "ipu")

pytestmark = pytest.mark.usefixtures("blank_pictures")


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in; what is read there is named from there."""
    copy = tmp_path / "release"
    shutil.copytree(request.param, copy)
    monkeypatch.chdir(copy)
    return copy


def recorded(folder: Path, kind: str) -> list[tuple[int, float]]:
    return [(r["step"], r["mlm_loss"]) for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == kind]


@pytest.fixture
def own_text(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release's prepared text in the place of today's, and examples drawn from it as the release drew them.

    Later formats add what is only told, here made up. The release drew half of the B's at random, and all of the
    chunks of one sentence; these are more than half of its text's, of which no example has a label today.
    """
    (folder,) = (release / "data").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    splits = {name: {**dict.fromkeys(COUNTS, 1), **size} for name, size in manifest["splits"].items()}
    text = TokenFiles(str(folder), {**manifest, "splits": splits, "notes": [], "rules": {}})

    def make_stream(*arguments: Any) -> BatchStream:
        stream = make_todays(*arguments)
        stream.pairs, stream._random_share = True, 0.5
        return stream

    make_todays = assemble.make_stream
    monkeypatch.setattr(assemble, "open_data", lambda *_, **__: text)
    monkeypatch.setattr(assemble, "find_data", lambda *_: (text.directory, text))
    monkeypatch.setattr(assemble, "make_stream", make_stream)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_whose_text_is_prepared_anew_does_not_go_on(release, engine):
    old = {path: path.read_bytes() for path in (release / "data").rglob("*") if path.is_file()}
    config = load_config(str(release / engine / "config.yaml"))
    with pytest.raises(checkpoint.CheckpointError, match="how it is prepared, changed since this was saved: a run"):
        Trainer(config, checkpoint.find(release / engine))
    assert {path: path.read_bytes() for path in old} == old
    assert len([path for path in (release / "data").iterdir() if path.is_dir()]) == 2
    assert export_run.main([str(release / engine), engine + " exported"]) == 2
    assert not (release / f"{engine} exported").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_goes_on_to_what_the_release_recorded(release, own_text, engine):
    """Losses of the same numbers, perhaps summed in another order on this machine.

    A loss is a mean of -log softmax over 300 pieces in float32: sums of 300 terms are within 300 x 2^-24 = 2e-5 of the
    exact ones, and so is their logarithm. An error of a gradient moves a weight by at most lr / epsilon = 1 times that.
    From the weights of step 0 in place of step 3, the next evaluation would be 7e-4 away.
    """
    folder = release / engine
    expected = {kind: recorded(folder, kind) for kind in ("train", "eval")}
    config = load_config(str(folder / "config.yaml"))
    prepared = {path: path.read_bytes() for path in (release / "data").rglob("*") if path.is_file()}
    Trainer(config, checkpoint.find(folder)).run()
    assert {path: path.read_bytes() for path in prepared} == prepared
    assert [path for path in (release / "data").iterdir() if path.is_dir()] == [next(iter(prepared)).parent]
    for kind, losses in expected.items():
        found = recorded(folder, kind)
        assert [step for step, _ in found] == [step for step, _ in losses]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in losses], abs=2e-5)
        assert found[:3] == losses[:3]  # as they were
    assert len(expected["train"]) == 6


def test_a_resolved_config_is_the_same_run(release):
    for engine in ENGINES:
        written = yaml.safe_load((release / engine / "config.yaml").read_text())
        read = as_dict(load_config(str(release / engine / "config.yaml")))
        assert {s: {k: read[s][k] for k in keys} for s, keys in written.items()} == written
        assert as_dict(from_dict(written)) == read


def test_a_checkpoint_and_its_text_are_exported(release, own_text):
    for engine in ENGINES:
        assert export_run.main([str(release / engine), engine + " exported"]) == 0
        written = {path.name for path in (release / f"{engine} exported").iterdir()}
        assert written == {"config.json", "model.safetensors", "README.md", *TOKENIZER_FILES}


CHECKPOINT = "torch/checkpoints/step_00000003/state.json"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (CHECKPOINT, "expected format 1, found 99; use the version that wrote it"),
        ("data/*/manifest.json", "format .*, found 99; delete this folder and prepare the text again"),
    ],
)
def test_a_later_format_is_refused_with_what_to_do(release, file, message):
    assemble.open_data(load_config(str(release / "torch" / "config.yaml")), progress=False)
    path = max(release.glob(file), key=lambda path: path.stat().st_mtime_ns)  # of text: as prepared now
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    config = load_config(str(release / "torch" / "config.yaml"))
    with pytest.raises(ValueError, match=message):
        Trainer(config, checkpoint.find(release / "torch"))
