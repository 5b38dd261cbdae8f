"""An object of JSON that has a name twice is refused by everything that reads one, not read by half."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ipu_bert import checkpoint, pareto
from ipu_bert.config import ConfigError
from ipu_bert.hub.source import weight_files
from ipu_bert.json_file import read_object


@pytest.mark.parametrize(
    ("text", "name"), [('{"a": 1, "a": 1}', "a"), ('{"x": [{"b": 1, "c": 2, "b": 3}]}', "b"), ('{"": {}, "": {}}', "")]
)
def test_a_name_that_stands_twice_is_named(text, name, tmp_path):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(ValueError, match=f"^expected each name once, found '{name}' twice$"):
        read_object(tmp_path / "found.json")


def test_equal_names_in_different_objects_are_read(tmp_path):
    found = {"a": {"a": 1}, "b": [{"a": 1}, {"a": 2.5}], "c": None}
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert read_object(tmp_path / "found.json") == found


def twice(file: Path, name: str, value: str) -> Path:
    """The file with one more value of a name, before all others of its object: the last one was what was read."""
    text = file.read_text()
    assert text.lstrip().startswith("{")
    file.write_text("{" + f'"{name}": {value},' + text.lstrip()[1:])
    return file


def test_files_of_a_run_and_of_others_are_refused_in_a_line(finished, tiny, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "copy"))
    twice(checkpoint.find(run) / "state.json", "step", "9")
    with pytest.raises(checkpoint.CheckpointError, match=r"state\.json.* expected each name once, found 'step' twice"):
        checkpoint.read_info(checkpoint.find(run))
    report = twice(run / "report.json", "steps", "9")
    assert pareto.main([str(run)]) == 2
    said = f"error: {report}: expected the report of a run: expected each name once, found 'steps' twice\n"
    assert capsys.readouterr().err == said
    model = tmp_path / "model"
    model.mkdir()
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')
    with pytest.raises(ValueError, match="expected each name once, found 'a' twice"):
        weight_files(str(model))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"model_type": "bert", "model_type": "bert"}', "expected each name once, found 'model_type' twice"),
        ("[1]", "expected a JSON object, found list"),
        ("{", "Expecting property name"),
    ],
)
def test_a_config_json_that_a_run_begins_from_is_named(text, says, tiny, tmp_path):
    file = tmp_path / "bert" / "config.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        tiny(f"model.init={file.parent}")
    assert caught.value.errors[0].startswith(f"model.init: {file}: {says}")
