"""A whole fine-tuning: read, start, train, judge, write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from ipu_bert.data.quality import told_words
from ipu_bert.finetune.examples import Encoded, Labels, encode, split
from ipu_bert.finetune.measures import measures
from ipu_bert.finetune.options import LEAST_LENGTH, Options
from ipu_bert.finetune.result import Result, write_result
from ipu_bert.finetune.rows import Rows, read_rows
from ipu_bert.finetune.start import Source, border_ids, check_borders, classifier, read_source
from ipu_bert.finetune.train import Examples, fit, in_units_of, predict, steps_of
from ipu_bert.hub.folders import check_place
from ipu_bert.hub.weights import check_blocks
from sparse_ops.process import make_ready
from sparse_ops.saying import say


def fine_tune(options: Options, folder: Path, sparse: bool) -> Result:
    """Fine-tune and write `folder`. Raises ValueError or OSError with one line; then `folder` is as it was."""
    make_ready()
    check_place(folder)
    if Path(options.start.where).resolve() == folder.resolve():
        raise ValueError(f"{folder}: expected another folder than the start's, which it would replace, found the same")
    train, validation, test = _rows(options)
    labels = Labels.of(train, options.regression)
    targets = {"train": labels.numbers(train), "validation": labels.numbers(validation)}
    wanted = labels.numbers(test) if test is not None and test.labels else None
    updates, steps = options.training.updates, steps_of(len(train.texts), options.training)
    if updates > steps:
        raise ValueError(
            f"--updates: expected at most one per step, {train.file} makes {steps} step(s), found {updates}"
        )
    source = read_source(options.start, options.training.seed)
    if sparse or options.training.updates:
        option = "--sparse" if sparse else "--updates"
        check_blocks(source.model, option, "a start with block-sparse weights, or --sparsity")
    length = _length(options, source)
    check_borders(source.tokenizer, options.start.where, len(options.files.columns.texts))
    model = classifier(source.model, len(labels.classes) or 1, options.training)
    texts = {"train": train, "validation": validation, **({} if test is None else {"test": test})}
    encoded = {name: _encoded(source, options.start.where, name, rows, length) for name, rows in texts.items()}
    examples = {name: Examples(encoded[name], numbers) for name, numbers in targets.items()}
    fitted = fit(model, examples["train"], examples["validation"], labels, options.training)

    judged = "validation" if test is None else "test"
    found, scores = predict(model, encoded[judged], labels, options.training.batch_size)
    truth = targets["validation"] if test is None else wanted
    result = Result(
        options=options,
        labels=labels,
        fitted=fitted,
        counts={**{name: len(rows.texts) for name, rows in texts.items()}, "cut": sum(x.cut for x in encoded.values())},
        judged=judged,
        rows=texts[judged],
        predictions=found,
        scores=scores,
        measures=None if truth is None else measures(truth.numpy(), found, options.regression),
        max_length=length,
    )
    in_units_of(labels, model)
    write_result(model, source.tokenizer, result, folder, sparse)
    _say_result(result, folder)
    return result


def _rows(options: Options) -> tuple[Rows, Rows, Rows | None]:
    """Rows to train on, to validate by, and to predict."""
    files = options.files
    names = [name for name in (files.columns.text, files.columns.pair, files.columns.label) if name is not None]
    if len(set(names)) < len(names):  # a label among the text is learned at once, and of no use
        raise ValueError(f"--text, --pair, --label: expected different columns, found {', '.join(map(repr, names))}")
    train = read_rows(files.train, files.columns, files.encoding, labelled=True)
    test = None if files.test is None else read_rows(files.test, files.columns, files.encoding, labelled=False)
    if files.validation is not None:
        return train, read_rows(files.validation, files.columns, files.encoding, labelled=True), test
    Labels.of(train, options.regression)  # what is wrong with labels is said before there are too few to split
    return (*split(train, files.validation_share, options.training.seed, not options.regression), test)


def _length(options: Options, source: Source) -> int:
    most = source.tokenizer.model_max_length
    if not isinstance(most, (int, float)) or most < LEAST_LENGTH:
        raise ValueError(
            f"{options.start.where}: expected a number of at least {LEAST_LENGTH} as the tokenizer's "
            f"model_max_length, found {most!r:.60}"
        )
    return int(min(options.max_length, most, source.model.shape.max_positions))


def _encoded(source: Source, where: str, name: str, rows: Rows, length: int) -> Encoded:
    encoded, shape = encode(source.tokenizer, rows, length), source.model.shape
    for kind, numbers, known in (("ids", encoded.ids, shape.vocab_size), ("types", encoded.types, shape.type_vocab)):
        largest = int(torch.cat(numbers).max())
        if largest >= known:
            raise ValueError(
                f"{where}: expected a tokenizer whose {kind} are below the model's {known}, found {largest}"
            )
    if encoded.cut:
        say(
            f"{name}: {encoded.cut:,} of {len(rows.texts):,} rows are longer than {length} tokens and were cut",
            sys.stdout,
        )
    for line in told_words(_unknown(source.tokenizer, encoded)):
        say(f"{name}: {line}", sys.stdout)
    return encoded


def _unknown(tokenizer: Any, encoded: Encoded) -> float:
    """The share of [UNK], in [0, 1], of all tokens that stand for text."""
    ids = torch.cat(encoded.ids)
    number = tokenizer.get_vocab().get("[UNK]") if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    unknown = 0 if number is None else int((ids == number).sum())
    around = torch.tensor(border_ids(tokenizer))  # there are such: check_borders
    return unknown / max(1, int((~torch.isin(ids, around)).sum()))


def _say_result(result: Result, folder: Path) -> None:
    if result.measures is not None:
        shown = "  ".join(f"{name} {'none' if x is None else f'{x:.4f}'}" for name, x in result.measures.items())
        say(f"{result.judged}: {shown}; of epoch {result.fitted.best}", sys.stdout)
    say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", sys.stdout)
