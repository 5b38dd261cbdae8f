"""What python -m ipu_bert.gradient_range counts: by hand, and over micro-batches of a small run's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest
import torch
import yaml

from ipu_bert import gradient_range
from ipu_bert.config import Config, as_dict
from ipu_bert.gradient_range import magnitudes, main, measure


def test_magnitudes_by_hand() -> None:
    """Ten elements: two zeros, 2^-26 and 0.9 * 2^-25 are lost, 2^-25 and 2^-15 coarse, 2^16 and inf too large."""
    values = [0.0, 0.0, 2.0**-26, -0.9 * 2.0**-25, 2.0**-25, 2.0**-15, 2.0**-14, 1.5, -(2.0**16), torch.inf]
    found = magnitudes(torch.tensor(values))
    assert found.to_dict() == {"lost": 2 / 8, "coarse": 2 / 8, "over": 2 / 8, "median": 2.0**-15}
    assert found.to_dict(shift=2) == {"lost": 0.0, "coarse": 3 / 8, "over": 2 / 8, "median": 2.0**-13}
    assert (found + found).counts.sum() == 16
    assert magnitudes(torch.zeros(3)).to_dict() == {"lost": 0.0, "coarse": 0.0, "over": 0.0, "median": 0.0}


def test_a_larger_scale_moves_every_tensor(tiny: Callable[..., Config]) -> None:
    one, four = (measure(tiny(f"precision.loss_scale={scale}"), None, count=2) for scale in (1, 4))
    assert one.keys() == four.keys()
    layer = "bert.encoder.layer.0.attention.self.qkv"
    assert {f"{layer} ->", f"{layer}.values"} <= one.keys()
    for name, found in one.items():
        assert found.to_dict(shift=2) == four[name].to_dict(), name


def test_the_weights_are_those_that_the_config_starts_from(tiny: Callable[..., Config], finished: Path) -> None:
    config = tiny(f"model.init={finished}")
    found, of_run, fresh = measure(config, None, 1), measure(tiny(), finished, 1), measure(tiny(), None, 1)
    name = "bert.embeddings.position_embeddings.weight"
    assert torch.equal(found[name].counts, of_run[name].counts)
    assert not torch.equal(found[name].counts, fresh[name].counts)


def test_the_command_prints_the_worst_and_all(
    tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(as_dict(tiny())))
    assert main(["--config", str(path), "--micro-batches", "1"]) == 0
    assert "loss scale 1, " in capsys.readouterr().out
    assert main(["--config", str(path), "precision.loss_scale=8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss_scale"] == 8
    assert all(0.0 <= row["lost"] + row["coarse"] + row["over"] <= 1.0 for row in found["tensors"].values())
    assert main(["--config", str(path), "--run", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_says_what_is_not_as_it_was_written(
    tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What gave way, what has no effect, and that a batch has fewer micro-batches than were asked for."""
    tiny()
    settings = ["train.micro_batch_size=2", "sparsity.method=static", "sparsity.updates=3", "sparsity.updates=7"]
    command = ["--config", str(tmp_path / "tiny.yaml"), *settings, "--micro-batches", "1000"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert ", 2 of the batch's 2 micro-batches, " in captured.out.splitlines()[0]
    lines = captured.err.splitlines()
    assert "no effect: sparsity.updates=7, since sparsity.method is static" in lines
    assert "gave way: 'sparsity.updates=3', since 'sparsity.updates=7' comes after it" in lines
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["micro_batches"] == 2


def test_the_process_has_the_configs_threads(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(gradient_range, "make_ready", lambda: asked.append("ready"))
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    measure(tiny("engine.threads=3"), None, 1)
    assert asked == ["ready", 3]


def test_a_run_on_other_words_is_refused(tiny: Callable[..., Config], finished: Path, tmp_path: Path) -> None:
    config = tiny("data.do_lower_case=false", f"data.dir={tmp_path / 'prepared'}")  # as many words, and other ones
    with pytest.raises(ValueError, match=r"expected a run on text in the words of .*, found other ones"):
        measure(config, finished, 1)
