"""How full sequences are: counted here from whole batches, and told wherever their tokens and products are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest
import yaml
from small_models import make_shape
from small_runs import tiny_settings

import run_pretraining
from ipu_bert import assemble
from ipu_bert.config import Config, load_config
from ipu_bert.data import filling
from ipu_bert.data.filling import Filling
from ipu_bert.data.shards import HASH_RANGE, document_hash
from ipu_bert.engines.torch_engine import TorchEngine
from ipu_bert.record.metrics import read_metrics
from ipu_bert.sizes.flops import head_flops
from ipu_bert.stopwatch import Stopwatch
from ipu_bert.trainer import Trainer
from sparse_ops import linear_cross_entropy, native

SEQUENCES = 512


@pytest.fixture(scope="module")
def short_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred documents of two short sentences."""
    path = tmp_path_factory.mktemp("short") / "short.jsonl"
    texts = (f"The count of the day is {number}. It is more than {number - 1} by one." for number in range(200))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def short(short_texts: Path, prepared: Path, tmp_path: Path) -> Callable[..., Config]:
    """A config of a tiny run on them; call it with overrides."""
    settings = tiny_settings(short_texts, prepared)
    settings["data"].update(sequence_length=48, heldout_fraction=0.1, vocab_size=200)
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump({**settings, "run": {"dir": str(tmp_path / "run")}}))
    return lambda *overrides: load_config(str(path), overrides)


def counted(config: Config) -> Filling:
    """From whole batches of a stream's first sequences."""
    stream = assemble.make_stream(config, assemble.open_data(config, progress=False), "train")
    batches = [stream.batch(index) for index in range(SEQUENCES // config.train.batch_size)]
    lengths = [int(row.sum()) for batch in batches for row in batch.attention_mask]
    labels = sum(int((batch.masked_labels >= 0).sum()) for batch in batches)
    width = config.data.sequence_length
    return Filling(
        SEQUENCES,
        1.0 - sum(lengths) / (SEQUENCES * width),
        sum(length < width for length in lengths) / SEQUENCES,
        labels / SEQUENCES,
        (sum(lengths) - 3 * SEQUENCES) / (SEQUENCES * width),
        sum(int(stream.never_asked(batch).sum()) for batch in batches) / (sum(lengths) - 3 * SEQUENCES),
    )


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_the_first_sequences_are_counted(
    tiny: Callable[..., Config], short: Callable[..., Config], share: float
) -> None:
    for make in (tiny, short):
        found = []
        for size in (4, 32):  # which does not matter
            config = make(f"data.short_sequence_probability={share}", f"train.batch_size={size}")
            stream = assemble.make_stream(config, assemble.open_data(config, progress=False), "train")
            found.append(filling.filling(stream))
        assert found == [counted(config)] * 2


def test_of_long_sequences_fewer_are_made(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    stream = assemble.make_stream(config, assemble.open_data(config, progress=False), "train")
    monkeypatch.setattr(filling, "MOST_TOKENS", 32 * 100)
    assert filling.filling(stream).sequences == 100
    monkeypatch.setattr(filling, "MOST_TOKENS", 32)
    assert filling.filling(stream).sequences == 8


@pytest.mark.usefixtures("blank_pictures")
def test_padding_is_told_where_it_is_much_and_said_to_be_counted(
    short: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report told 81,920 tokens, of which 26,545 were no padding."""
    padding = counted(short()).padding
    line = (
        f"{100 * padding:.0f} % of the first 512 sequences' tokens are padding, which is computed and counted as all "
        "else: a shorter data.sequence_length may do"
    )
    assert padding > 0.25
    command = ["--config", str(tmp_path / "short.yaml"), "train.stop_at=3"]
    assert run_pretraining.main(command) == 0
    assert f"text: warning: {line}\n" in "".join(capsys.readouterr())
    page = (tmp_path / "run" / "report.md").read_text()
    assert f"**About the text:** {line}.\n" in page
    assert "12 sequences (576 tokens, padding counted)" in page
    assert "\n| tokens per second, padding counted | " in page
    assert line in read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["text"]["warnings"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["data"]["filling"] == vars(counted(short()))
    assert run_pretraining.main([*command, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert f"text        warning: {line}\n" in plan
    assert "12 sequences, 576 tokens, padding counted\n" in plan
    assert run_pretraining.main([*command, "--throughput", "--steps", "1"]) == 0
    assert "for 4 samples (192 tokens, padding counted)" in capsys.readouterr().out


def test_little_padding_is_not_told() -> None:
    assert Filling(512, 0.25, 1.0, 5.0, 0.7, 0.01).warnings() == []
    assert len(Filling(512, 0.26, 1.0, 5.0, 0.7, 0.0).warnings()) == 1


# --- what the masked-LM head computes


@pytest.mark.skipif(bool(native.why_not()), reason="no native kernels")
@pytest.mark.parametrize("places", [5, 29])
def test_the_head_scores_as_many_places_as_are_counted(
    short: Callable[..., Config], places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the sequences that are counted, by what the product is given: more places were told as more FLOPs."""
    config = short(f"data.max_predictions={places}", "train.batch_size=32")
    files = assemble.open_data(config, progress=False)
    stream = assemble.make_stream(config, files, "train")
    rows, apply = [], linear_cross_entropy._LinearCrossEntropy.apply
    monkeypatch.setattr(
        linear_cross_entropy._LinearCrossEntropy,
        "apply",
        lambda hidden, *more: rows.append(len(hidden)) or apply(hidden, *more),
    )
    engine = assemble.make_engine(config, files.vocab_size, Stopwatch())
    assert isinstance(engine, TorchEngine)
    for index in range(SEQUENCES // 32):
        engine.train_step(stream.batch(index))
    assert assemble.decoded(config, filling.filling(stream), True) == sum(rows) / SEQUENCES


def test_places_that_are_counted_where_all_are_scored_or_no_text_is_there(tiny: Callable[..., Config]) -> None:
    full = Filling(512, 0.0, 0.0, 4.5, 0.9, 0.0)
    wide = tiny("data.max_predictions=20")
    assert assemble.decoded(wide, full, True) == 4.5
    assert assemble.decoded(wide, None, True) == 5  # round(0.15 * 32)
    assert assemble.decoded(tiny("data.max_predictions=3"), None, True) == 3
    assert assemble.decoded(wide, full, False) == 20
    for others in (["engine.kernel=torch"], ["precision.compute=bfloat16"], ["engine.name=ipu"]):
        assert assemble.decoded(tiny("data.max_predictions=20", *others), full, True) == 20


def test_flops_of_the_head_by_hand() -> None:
    """Pooler 16 and NSP 8 weights on one token, transform 16 on three, decoder 40 on one and a half."""
    shape = make_shape(hidden_size=4, intermediate_size=8, vocab_size=10, max_positions=4)
    assert head_flops(shape, 3, 1.5) == 6 * (24 + 3 * 16 + 1.5 * 40)
    assert head_flops(shape, 3, 3) == head_flops(shape, 3)


@pytest.mark.usefixtures("blank_pictures")
def test_reports_and_plans_count_the_same(
    short: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Places that nobody fills cost the transform alone, 6 H^2; H is 64."""
    executed = []
    for places in (8, 29):
        command = ["--config", str(tmp_path / "short.yaml"), "train.stop_at=1", f"data.max_predictions={places}"]
        short()
        assert run_pretraining.main(command) == 0
        capsys.readouterr()
        assert run_pretraining.main([*command, "--dry-run", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        executed.append(report["flops_per_sequence"]["executed"])
        assert plan["flops"]["executed"] == pytest.approx(executed[-1], rel=1e-12)
        scored = report["data"]["filling"]["predictions"] if not native.why_not() else places
        words = f"with a word's scores at {scored:.1f} of the {places} places for predictions of a sequence."
        assert words in (tmp_path / "run" / "report.md").read_text()
    if not native.why_not():
        assert executed[1] - executed[0] == pytest.approx(6 * (29 - 8) * 64**2, rel=1e-9)


@pytest.mark.usefixtures("blank_pictures")
def test_words_that_are_never_asked_for_are_told_of_both_texts(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Of a Thai text, whose held-out words had too many pieces, and those of training, being pieces, had not."""
    texts = [f"the war and peace {i}.\nwork {i}." for i in range(160)]
    alike = [text for text in texts if document_hash(text) >= int(0.3 * HASH_RANGE)]
    assert 80 < len(alike) < 150
    others = [text.replace("peace", "kcaeprwokcaepr") for text in texts if text not in alike]
    found = [text for text in others if document_hash(text) < int(0.3 * HASH_RANGE)]
    assert len(found) > 5
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in (*alike, *found)))
    config = tiny(
        "data.source=files", f"data.path={path}", "data.heldout_fraction=0.3", "train.stop_at=1", f"data.dir={tmp_path}"
    )
    (line,) = [line for line in Trainer(config).quality.warnings() if "never predicted" in line]
    share, of, _ = line.partition(" % of the held-out text's tokens are in words of more pieces")
    assert of
    assert 20.0 < float(share) < 80.0
    assert f"warning: {line}" in assemble.plan(config)["data"]["said"]
