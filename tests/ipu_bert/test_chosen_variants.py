"""When a run measures how its sparse products are carried out fastest; it trains the same whatever comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiler import needs_kernels
from run_history import assert_same_state, newest, train

from ipu_bert import assemble
from ipu_bert.config import load_config
from ipu_bert.ranks import Ranks
from sparse_ops import native
from sparse_ops.variants import Choice, Choices, Work

pytestmark = needs_kernels


def wanted(monkeypatch: pytest.MonkeyPatch, ranks: Ranks, *overrides: str) -> list[Work]:
    asked: list[Work] = []

    def tune(works: list[Work], again: bool) -> list[Choice]:
        assert not again
        asked.extend(works)
        return []

    monkeypatch.setattr(assemble, "tune", tune)
    assemble.choose_variants(load_config("quickstart", ["train.steps=500", *overrides]), ranks)
    return asked


def test_a_long_run_measures_its_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    works = wanted(
        monkeypatch,
        Ranks(),
        *("model.layers=2", "model.hidden_size=128", "model.intermediate_size=512", "sparsity.block_size=16"),
        *("sparsity.sparsity=0.75", "train.batch_size=32", "train.micro_batch_size=8", "data.sequence_length=64"),
    )
    shapes = {(384, 128): 48, (128, 128): 16, (512, 128): 64, (128, 512): 64}  # and their blocks
    assert {((w.out, w.inp), w.blocks) for w in works} == set(shapes.items())
    assert {(w.block, w.tokens, w.half, w.threads) for w in works} == {(16, 512, False, torch.get_num_threads())}
    assert len(works) == 2 * 4 * 3
    assert all(w.half for w in wanted(monkeypatch, Ranks(), "precision.compute=bfloat16"))


@pytest.mark.parametrize(
    "override", ["train.steps=499", "train.stop_at=499", "engine.kernel=torch", "sparsity.method=dense"]
)
def test_a_short_one_does_not_nor_one_without_such_products(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted(monkeypatch, Ranks(), override) == []


def test_the_first_rank_of_a_machine_measures_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(Ranks):
        local_index = 1

    assert wanted(monkeypatch, Second()) == []


def test_a_run_trains_the_same_whatever_is_chosen(
    tiny, blank_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured in earnest before the first step, once, and said in one line."""
    choices = Choices(tmp_path / "kept", native._library(), "a processor")
    monkeypatch.setattr(native, "choices", lambda: choices)
    blocks = "sparsity.block_size=16"  # of which every level has several ways

    def trained(name: str) -> Path:
        config = tiny(f"run.dir={tmp_path / name}", blocks)
        train(config)
        saved = newest(config)
        assert saved is not None
        return saved

    before = trained("default")
    assert "measured the ways" not in capsys.readouterr().err
    monkeypatch.setattr(assemble, "MEASURED_FROM", 12)
    assert_same_state(before, trained("chosen"))
    assert capsys.readouterr().err.count("measured the ways of 12 products") == 1
    for choice in list(choices):
        names = choices.names(choice.work)
        other = names[(choices.default(choice.work) + 1) % len(names)]
        choices.take(Choice(choice.work, other, choice.milliseconds))
        choices.save()
    assert_same_state(before, trained("other"))
    assert "measured the ways" not in capsys.readouterr().err
