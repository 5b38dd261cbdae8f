"""Fine-tuning through the command a user types: what is learned, written, loaded again, and the same by seed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from transformers import pipeline

from ipu_bert import export_run
from ipu_bert.finetune import train, work
from ipu_bert.finetune.__main__ import main
from ipu_bert.finetune.measures import measures
from ipu_bert.finetune.train import predict
from ipu_bert.hub.weights import dense_state
from ipu_bert.model import sparse_layers
from ipu_bert.trained import load_model

QUICK = {"--epochs": "8", "--lr": "3e-3", "--batch-size": "8", "--dropout": "0", "--validation-share": "0.25"}


def write(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def words(tmp_path) -> Path:
    """Two classes told apart by one word."""
    rows = [[("war " if i % 2 else "peace ") * (3 + i // 10), "bad" if i % 2 else "good"] for i in range(40)]
    return write(tmp_path / "words.csv", ["text", "label"], rows)


def tune(start: Path, folder: Path, file: Path, *options: str) -> dict:
    quick = [text for option, value in QUICK.items() if option not in options for text in (option, value)]
    assert main([str(start), str(folder), "--train", str(file), *quick, *options]) == 0
    return json.loads((folder / "finetune.json").read_text())


def predictions(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_run_becomes_a_classifier_that_pipeline_loads(form, finished, words, tmp_path):
    folder = tmp_path / "tuned"
    found = tune(finished, folder, words, "--test", str(words), *(["--sparse"] if form == "sparse" else []))
    card = (folder / "README.md").read_text()
    assert f"its labelled text and from what {finished.name} was trained on, with whatever is wrong" in card
    assert "base_model" not in card.split("---")[1]  # a path means nothing elsewhere
    assert found["measures"] == {"accuracy": 1.0, "f1": 1.0, "mcc": 1.0}
    assert found["rows"] == {"train": 30, "validation": 10, "test": 40, "cut": 0}
    classify = pipeline("text-classification", model=str(folder))
    rows = predictions(folder)
    with open(words, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    for row, text in zip(rows[:3], texts):
        (answer,) = classify(text)
        assert (answer["label"], row["label"]) == (row["prediction"], row["prediction"])
        assert answer["score"] == pytest.approx(float(row["probability"]), abs=1e-5)


def test_the_same_seed_gives_the_same_bits_and_patterns_move_or_stay(finished, words, tmp_path):
    options = {"stay": [], "one": ["--updates", "30"], "two": ["--updates", "30"], "other": ["--seed", "1"]}
    found = {}
    for name, more in options.items():
        torch.rand(3)  # whatever was drawn before
        found[name] = tune(finished, tmp_path / name, words, "--sparse", "--dropout", "0.1", *more)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert (tmp_path / "one/predictions.csv").read_bytes() == (tmp_path / "two/predictions.csv").read_bytes()
    assert found["stay"]["moved_blocks"] == 0 < found["one"]["moved_blocks"]
    assert export_run.main([str(finished), str(tmp_path / "start"), "--sparse"]) == 0
    start, *tuned = (tensors(tmp_path / name) for name in ("start", "stay", "one", "other"))
    steps = [name for name in start if name.endswith(".steps")]
    stayed = [all(torch.equal(start[name], one[name]) for name in steps) for one in tuned]
    assert stayed == [True, False, True]
    assert not torch.equal(tuned[0]["classifier.weight"], tuned[2]["classifier.weight"])


def test_every_start_gives_its_own_encoder(finished, words, tmp_path):
    """A learning rate of nearly nothing leaves the start's encoder, whatever form it came in."""
    still = ["--epochs", "1", "--lr", "1e-30", "--weight-decay", "0"]
    assert export_run.main([str(finished), str(tmp_path / "sparse"), "--sparse"]) == 0
    assert export_run.main([str(finished), str(tmp_path / "dense")]) == 0
    starts = [finished, next((finished / "checkpoints").iterdir()), tmp_path / "sparse", tmp_path / "dense"]
    for number, start in enumerate(starts):
        tune(start, tmp_path / f"of{number}", words, *still)
    tune(tmp_path / "of2", tmp_path / "again", words, *still)  # from a fine-tuned one
    expected = {name: tensor for name, tensor in tensors(tmp_path / "dense").items() if name.startswith("bert.")}
    for name in ("of0", "of1", "of2", "of3", "again"):
        found = tensors(tmp_path / name)
        assert set(found) == {*expected, "classifier.weight", "classifier.bias"}
        for key, tensor in expected.items():  # where a dense start has 0 a step of 1e-30 is seen
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-20, msg=f"{name}: {key}")
    tune(finished, tmp_path / "scratch", words, *still, "--from-scratch", "--sparse")
    assert "its labelled text alone, with" in (tmp_path / "scratch" / "README.md").read_text()
    tune(finished, tmp_path / "same", words, *still, "--sparse")
    scratch, same = (tensors(tmp_path / name) for name in ("scratch", "same"))
    name = "bert.encoder.layer.0.output.dense"
    assert torch.equal(scratch[f"{name}.steps"], same[f"{name}.steps"])
    assert not torch.equal(scratch[f"{name}.values"], same[f"{name}.values"])


def test_a_dense_model_made_sparse_keeps_its_largest_blocks(finished, words, tmp_path):
    assert export_run.main([str(finished), str(tmp_path / "dense")]) == 0
    still = ["--epochs", "1", "--lr", "1e-30", "--weight-decay", "0", "--sparsity", "0.9", "--block-size", "4"]
    tune(tmp_path / "dense", tmp_path / "tuned", words, *still)
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    before, after = (tensors(tmp_path / folder)[name] for folder in ("dense", "tuned"))
    norms = before.reshape(64, 4, 16, 4).abs().sum((1, 3)).flatten()
    largest = norms.argsort(descending=True)[:102]  # a tenth of 1,024
    mask = torch.zeros(1024).index_fill_(0, largest, 1.0).reshape(64, 1, 16, 1).expand(64, 4, 16, 4).reshape(256, 64)
    assert torch.equal(after, before * mask)


def test_pairs_and_numbers_in_every_kind_of_file(finished, tmp_path):
    """STS-B's form: a number from 0 to 5 for two sentences; validation, test and their measures by hand."""
    rows = [[f'the "war {i}', "the war" if i % 3 else "a peace", str(5.0 if i % 3 else 100.0)] for i in range(36)]
    names = ["sentence1", "sentence2", "score"]
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(row) for row in [names, *rows]) + "\n")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(dict(zip(names, [*row[:2], float(row[2])]))) + "\n" for row in rows)
    )
    write(tmp_path / "a.csv", names, rows)
    options = ["--regression", "--text", "sentence1", "--pair", "sentence2", "--label", "score"]
    for kind in ("tsv", "jsonl", "csv"):
        file = tmp_path / f"a.{kind}"
        found = tune(finished, tmp_path / kind, file, *options, "--validation", str(file), "--test", str(file))
    lines = predictions(tmp_path / "csv")
    truth, guess = (np.array([float(line[name]) for line in lines]) for name in ("label", "prediction"))
    assert found["measures"]["pearson"] == pytest.approx(np.corrcoef(truth, guess)[0, 1])
    assert found["measures"]["spearman"] == pytest.approx(stats.spearmanr(truth, guess).statistic)
    assert found["measures"]["mse"] == pytest.approx(((truth - guess) ** 2).mean())
    assert found["measures"]["pearson"] > 0.9
    for kind in ("tsv", "jsonl"):
        assert (tmp_path / kind / "model.safetensors").read_bytes() == (tmp_path / "csv/model.safetensors").read_bytes()
    answer = pipeline("text-classification", model=str(tmp_path / "csv"))({"text": rows[0][0], "text_pair": rows[0][1]})
    assert answer["score"] == pytest.approx(guess[0], rel=1e-4)  # in the labels' units


@pytest.mark.parametrize(("first", "more"), [(1_700_000_000, 26_000), (0, 2.4e-36), (5, 1e-3)])
def test_what_is_measured_is_what_the_written_model_answers(first, more, finished, tmp_path):
    """Down to the smallest spread that is taken; below it the model answered one number, whatever was measured."""
    rows = [[("war " if i % 2 else "peace ") * (3 + i // 10), str(first + i % 2 * more)] for i in range(40)]
    file = write(tmp_path / "a.csv", ["text", "label"], rows)
    found = tune(finished, tmp_path / "tuned", file, "--regression", "--test", str(file))
    asked = pipeline("text-classification", model=str(tmp_path / "tuned"), function_to_apply="none")
    answers = np.array([answer["score"] for answer in asked([text for text, _ in rows])])
    truth, written = (
        np.array([float(line[name]) for line in predictions(tmp_path / "tuned")]) for name in ("label", "prediction")
    )
    assert abs(answers - written).max() < truth.std() / 100
    assert np.corrcoef(truth, answers)[0, 1] == pytest.approx(found["measures"]["pearson"], abs=1e-4)
    assert found["measures"]["pearson"] > 0.9


def test_it_ends_early_and_the_best_epoch_is_what_is_kept(finished, words, tmp_path, monkeypatch):
    scores, after = iter([0.5, 0.9, 0.7, 0.9, 1.0]), []

    def measured(*_: object) -> dict[str, float]:
        return {"accuracy": next(scores), "f1": 0.0, "mcc": 0.0}

    def seen(model, *rest):
        after.append(dense_state(model))
        return predict(model, *rest)

    monkeypatch.setattr(train, "measures", measured)
    monkeypatch.setattr(train, "predict", seen)
    monkeypatch.setattr(work, "predict", seen)
    found = tune(finished, tmp_path / "tuned", words, "--patience", "2")
    assert [epoch["accuracy"] for epoch in found["validation"]] == [0.5, 0.9, 0.7, 0.9]  # of eight
    assert found["best_epoch"] == 2
    kept = tensors(tmp_path / "tuned")
    same = [all(torch.equal(kept[name], tensor) for name, tensor in one.items()) for one in after]
    assert same == [False, True, False, False, True]  # the last are the written predictions
    right = [row["label"] == row["prediction"] for row in predictions(tmp_path / "tuned")]
    assert found["measures"]["accuracy"] == sum(right) / len(right)


def test_text_that_is_too_long_is_cut_counted_and_said(finished, tmp_path, capsys):
    rows = [["war " * (50 if i < 3 else 2), str(i % 2)] for i in range(20)]
    found = tune(finished, tmp_path / "tuned", write(tmp_path / "a.csv", ["text", "label"], rows), "--epochs", "1")
    assert found["rows"]["cut"] == 3
    assert found["max_length"] == 32  # what the run was trained at
    assert "longer than 32 tokens and were cut" in capsys.readouterr().out


def test_f1_is_a_mean_over_the_classes_that_labels_or_predictions_have() -> None:
    """By hand: class 0 is right in 1 of 2 and wrong in none, 2 / 3; class 2 is predicted and is no label, 0."""
    found = measures(np.array([0, 0, 1]), np.array([0, 2, 1]), regression=False)
    assert found["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    same = measures(np.array([0, 0, 2]), np.array([0, 2, 2]), regression=False)  # class 1 is in neither
    assert same["f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


@pytest.mark.parametrize("best", [1, 2, 4])
def test_moved_blocks_are_those_of_the_model_that_is_written(best, finished, words, tmp_path, monkeypatch):
    """One update an epoch: 30 rows are 4 steps. Those after the best epoch were counted, too."""
    scores, after = iter([0.1 * epoch if epoch <= best else 0.0 for epoch in range(1, 9)]), []

    def measured(*_: object) -> dict[str, float]:
        return {"accuracy": next(scores), "f1": 0.0, "mcc": 0.0}

    def seen(model, *rest):
        after.append(places(model))
        return predict(model, *rest)

    def places(model) -> dict[str, list[tuple[int, int]]]:
        return {n: list(zip(x.rows.tolist(), x.cols.tolist())) for n, x in sparse_layers(model)}

    monkeypatch.setattr(train, "measures", measured)
    monkeypatch.setattr(train, "predict", seen)
    monkeypatch.setattr(work, "predict", seen)
    found = tune(finished, tmp_path / "tuned", words, "--updates", "8", "--patience", "2")
    start = places(load_model(finished).model)
    assert len(after) == min(best + 2, 8) + 1
    moved = [
        sum(old != new for name in start for old, new in zip(before[name], now[name]))
        for before, now in zip([start, *after], after)
    ]
    assert all(moved[: best + 2])
    assert (found["best_epoch"], found["moved_blocks"]) == (best, sum(moved[:best]))


@pytest.mark.parametrize(
    ("labels", "predicted", "mcc"),
    [
        ([1], [1], None),
        ([0, 0, 0], [0, 0, 0], None),
        ([2, 2, 2], [0, 1, 2], None),
        ([0, 1, 1], [1, 1, 1], 0.0),
        ([0, 1, 0, 1], [0, 1, 0, 1], 1.0),
        ([0, 1, 1, 1, 0], [0, 0, 1, 1, 1], (2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5),  # TP TN - FP FN, by hand
    ],
)
def test_mcc_is_not_defined_of_labels_of_one_class(labels, predicted, mcc) -> None:
    """It was 0, as of chance, beside an accuracy of 1."""
    found = measures(np.array(labels), np.array(predicted), regression=False)["mcc"]
    assert found == (mcc if mcc is None else pytest.approx(mcc))


def test_one_row_to_test_has_no_mcc(finished, words, tmp_path, capsys):
    test = write(tmp_path / "test.csv", ["text", "label"], [["war war war", "bad"]])
    found = tune(finished, tmp_path / "tuned", words, "--test", str(test), "--validation", str(test))
    assert found["measures"] == {"accuracy": 1.0, "f1": 1.0, "mcc": None}
    assert all(epoch["mcc"] is None for epoch in found["validation"])
    assert "test: accuracy 1.0000  f1 1.0000  mcc none; of epoch" in capsys.readouterr().out
    assert "| mcc | not defined |" in (tmp_path / "tuned" / "README.md").read_text()
