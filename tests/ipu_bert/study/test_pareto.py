"""Anyone's runs against the dense ones among them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ipu_bert import pareto


@pytest.fixture
def runs(finished, tmp_path):
    """Reports of a sparse run and of two dense ones, made from a real one."""
    report = json.loads((finished / "report.json").read_text())

    def make(name: str, method: str, hidden: int, loss: float) -> str:
        folder = tmp_path / name
        folder.mkdir()
        changed = json.loads(json.dumps(report))
        changed["config"]["run"]["name"] = name
        changed["config"]["train"]["stop_at"] = None
        changed["steps"] = changed["config"]["train"]["steps"]
        changed["config"]["sparsity"]["method"] = method
        changed["config"]["model"].update(hidden_size=hidden, intermediate_size=4 * hidden)
        changed["heldout"]["mlm_loss"] = loss
        (folder / "report.json").write_text(json.dumps(changed))
        return str(folder)

    return [make("sparse", "dynsparse", 64, 5.9), make("small", "dense", 16, 6.0), make("large", "dense", 64, 5.8)]


def test_a_sparse_run_is_read_against_the_dense_ones(runs, tmp_path, capsys):
    picture = tmp_path / "pareto.svg"
    assert pareto.main([*runs, "--json", "--svg", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["family"] == "the dense runs among these"
    (one,) = found["runs"]
    assert one["label"] == "sparse"
    sequences, layers, length = 12 * 4, 2, 32
    # Appendix A.2 by hand: 3 x 2 S x 12 H^2 f L + 12 S^2 H L; 8x8 blocks at 0.8 of 64 x 64 are 13 of 64, asked for 0.2.
    by_hand = sequences * layers * (6 * length * 12 * 64**2 * 0.2 + 12 * length**2 * 64)
    assert one["cost"] == pytest.approx(by_hand, rel=1e-12)
    assert one["inside"]
    assert picture.read_text().startswith("<?xml")
    (tmp_path / "link.svg").symlink_to("blob")
    assert pareto.main([*runs, "--svg", str(tmp_path / "link.svg")]) == 0
    assert (tmp_path / "blob").read_text().startswith("<?xml")
    capsys.readouterr()
    assert pareto.main(runs) == 0
    assert "| sparse | 5.9000 |" in capsys.readouterr().out


def test_runs_of_different_texts_are_told(runs, capsys):
    """Their losses stood in one table, and nothing said so."""
    assert pareto.main(runs) == 0
    assert not capsys.readouterr().err
    path = Path(runs[1]) / "report.json"
    report = json.loads(path.read_text())
    report["heldout"]["unigram_entropy"] += 0.1
    path.write_text(json.dumps(report))
    assert pareto.main(runs) == 0
    (line,) = capsys.readouterr().err.splitlines()
    entropy = report["heldout"]["unigram_entropy"]
    words = f"word frequencies of the held-out texts come to {entropy - 0.1:.4f} and {entropy:.4f} nats"
    assert line == f"warning: losses do not compare: sparse and small: {words}"
    report["heldout"]["unigram_entropy"] = "x"
    path.write_text(json.dumps(report))
    assert pareto.main(runs) == 2
    assert (
        capsys.readouterr().err == f"error: {path}: expected the report of a run: expected unigram_entropy, found 'x'\n"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"data.mask_probability": 0.3},
            "losses do not compare: sparse and small: data.mask_probability is 0.15 and 0.3",
        ),
        (
            {"data.sequence_length": 64},
            "losses do not compare: sparse and small: data.sequence_length is 32 and 64",
        ),
        (
            {"data.max_predictions": 3},
            "losses do not compare: sparse and small: at most 5 and 3 tokens of a sequence are masked",
        ),
        (
            {"eval.batches": 7},  # in batches of 4
            "held-out sequences that losses are means over, which alone may make them differ: "
            "at most 8: sparse / large; at most 28: small",
        ),
        ({"data.mask_probability": None, "data.short_sequence_probability": None, "eval.batches": 2}, ""),
    ],
)
def test_runs_of_other_masks_lengths_or_evaluations_are_told_in_a_studys_words(changes, line, runs, capsys):
    """They stood in one table, and nothing said so. None: a release that had no such setting ran with its default."""
    path = Path(runs[1]) / "report.json"
    report = json.loads(path.read_text())
    for key, value in changes.items():
        section, name = key.split(".")
        report["config"][section][name] = value
        if value is None:
            del report["config"][section][name]
    report["heldout"]["word_frequencies_loss"] += 0.01  # of others that are judged
    path.write_text(json.dumps(report))
    assert pareto.main(runs) == 0
    assert capsys.readouterr().err == (f"warning: {line}\n" if line else "")


@pytest.mark.parametrize(("guess", "numbers"), [(0.01, "8: sparse; at most 8: large; 20: small"), (0.0, "")])
def test_as_many_sequences_as_a_run_was_judged_by_are_told(guess, numbers, runs, finished, capsys):
    """Of a text of 20, which 5 of the 7 batches of 4 go through; the large one's records are gone."""
    for run, batches in ((runs[0], 2), (runs[1], 5)):
        lines = (finished / "metrics.jsonl").read_text()
        (Path(run) / "metrics.jsonl").write_text(lines.replace('"batches": 2', f'"batches": {batches}'))
    path = Path(runs[1]) / "report.json"
    report = json.loads(path.read_text())
    report["config"]["eval"]["batches"] = 7
    report["heldout"]["word_frequencies_loss"] += guess
    path.write_text(json.dumps(report))
    assert pareto.main(runs) == 0
    assert capsys.readouterr().err.partition("differ: ")[2].strip() == numbers


def test_without_dense_runs_the_line_is_the_papers(runs, capsys):
    assert pareto.main(runs[:2]) == 0
    assert "The line: the paper's dense models, of another text." in capsys.readouterr().out
    assert pareto.main([*runs[:2], "--seconds"]) == 2
    assert "--seconds: expected at least two dense runs" in capsys.readouterr().err.splitlines()[-1]


def test_what_is_no_finished_run_is_refused_by_name(runs, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "copy")  # it stopped at step 2 of 12, as it was told
    assert pareto.main([str(tmp_path / "copy")]) == 0
    capsys.readouterr()
    for folder, text in (("empty", None), ("torn", "{"), ("other", "{}"), ("list", '{"config": [1]}')):
        (tmp_path / folder).mkdir()
        if text:
            (tmp_path / folder / "report.json").write_text(text)
        assert pareto.main([str(tmp_path / folder)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {tmp_path / folder}")
        assert len(err.splitlines()) == 1
    (tmp_path / "run.log").write_text("a log beside the runs of a study, as `runs/studies/NAME/*` finds it")
    assert pareto.main([str(tmp_path / "run.log")]) == 2
    assert "run.log: expected the folder of a run that has come to its end" in capsys.readouterr().err


@pytest.mark.parametrize(("section", "key", "value"), [("model", "vocab_size", "x"), ("heldout", "mlm_loss", 0.0)])
def test_a_report_of_no_numbers_is_named(section, key, value, finished, tmp_path, capsys):
    report = json.loads((finished / "report.json").read_text())
    report[section][key] = value
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert pareto.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/report.json: expected the report of a run: expected a loss and a vocab")


def test_what_was_found_is_shown_where_the_picture_cannot_be_drawn(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: 1 / 0)
    assert pareto.main([*runs, "--svg", str(tmp_path / "pareto.svg")]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("The line: the dense runs among these.")
    found = "expected matplotlib to draw it, found ZeroDivisionError: division by zero"
    assert err == f"error: {tmp_path / 'pareto.svg'}: {found}\n"


def test_what_was_found_is_shown_where_the_picture_cannot_be_written(runs, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "pareto.svg")

    monkeypatch.setattr(pareto, "write_picture", full)
    assert pareto.main([*runs, "--svg", str(tmp_path / "pareto.svg")]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("The line: the dense runs among these.")
    assert err == "error: pareto.svg: No space left on device\n"


def test_another_report_than_a_runs_is_told_by_what_it_has_not(tmp_path, capsys):
    """As a study's, which lies in results/."""
    (tmp_path / "report.json").write_text('{"about": "x"}')
    assert pareto.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path}/report.json: expected the report of a run: found no 'config' in it"
