"""What is read of files of rows, the same of every kind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ipu_bert.data.errors import DataError
from ipu_bert.finetune.__main__ import main
from ipu_bert.finetune.options import Columns
from ipu_bert.finetune.rows import Rows, read_rows

COLUMNS = Columns("text", None, "label")


def written(folder: Path, kind: str, rows: list[dict[str, object]]) -> Path:
    """Rows of the same names as a file of this kind; None is empty in a table."""
    path = folder / f"a{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_a_text_may_be_as_long_as_it_is(kind, tmp_path):
    """Above 131,072 characters, csv's own limit, a table's was refused; that limit is left to others as they set it."""
    long = "war and peace " * 20_000
    rows = [{"text": text, "label": label} for text, label in ((long, "1"), ("peace", "0"))]
    path, before = written(tmp_path, kind, rows), csv.field_size_limit(77)
    try:
        assert read_rows(path, COLUMNS, "utf-8", labelled=True) == Rows(path, ((long,), ("peace",)), ("1", "0"))
        with pytest.raises(DataError, match="expected a column 'body'"):
            read_rows(path, Columns("body", None, "label"), "utf-8", labelled=True)
        assert csv.field_size_limit() == 77
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("nothing", [None, "", " "])
def test_rows_to_predict_may_have_a_column_of_labels_with_none_in_it(kind, nothing, tmp_path):
    """As a table is written whose labels are not known: it was refused by its first row."""
    rows = [{"text": text, "label": nothing} for text in ("war", "peace")]
    path = written(tmp_path, kind, rows)
    assert read_rows(path, COLUMNS, "utf-8", labelled=False) == Rows(path, (("war",), ("peace",)), None)
    with pytest.raises(DataError, match=r"row 1: expected a label in column 'label', found [nN]one"):
        read_rows(path, COLUMNS, "utf-8", labelled=True)
    for some in ([*rows, {"text": "a", "label": "1"}], [{"text": "a", "label": "1"}, *rows]):
        path = written(tmp_path, kind, some)
        with pytest.raises(DataError, match="expected a label in every row or in none, found one in 1 of 3"):
            read_rows(path, COLUMNS, "utf-8", labelled=False)


def test_a_label_that_is_none_is_refused_of_rows_to_predict(tmp_path):
    for label in ([], {}, float("nan")):
        path = written(tmp_path, ".jsonl", [{"text": "war", "label": label}])
        with pytest.raises(DataError, match="row 1: expected a label in column 'label', found"):
            read_rows(path, COLUMNS, "utf-8", labelled=False)


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_rows_with_an_empty_column_of_labels_are_predicted(kind, finished, tmp_path):
    rows = [{"text": ["war", "peace"][i % 2], "label": str(i % 2)} for i in range(20)]
    (tmp_path / "train").mkdir()
    train = written(tmp_path / "train", ".csv", rows)
    test = written(tmp_path, kind, [{**row, "label": None} for row in rows[:3]])
    assert (
        main([str(finished), str(tmp_path / "out"), "--train", str(train), "--epochs", "1", "--test", str(test)]) == 0
    )
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["row"] for row in found] == ["1", "2", "3"]
    assert "label" not in found[0]
    assert json.loads((tmp_path / "out" / "finetune.json").read_text())["measures"] is None
