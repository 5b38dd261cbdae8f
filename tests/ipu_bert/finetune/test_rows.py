"""What is read of files of rows, the same of every kind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ipu_bert.data.errors import DataError
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
