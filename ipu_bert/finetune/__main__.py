"""Fine-tune a BERT, sparse or dense: python -m ipu_bert.finetune START FOLDER --train FILE

START is a run's folder, a checkpoint, a folder of export_run or of an earlier fine-tuning, or a BERT's folder or name
on the hub. FILE is .csv, .tsv (GLUE's) or .jsonl. FOLDER, which appears whole or not at all, is what transformers'
pipeline loads, with predictions.csv and finetune.json; with --sparse its weights stay blocks, which
`import ipu_bert.hub.auto` makes known to transformers.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Callable

from ipu_bert.finetune.options import LEAST_LENGTH, Columns, Files, Options, Start, Training
from ipu_bert.settings import MOST_STEPS, SparsitySettings
from sparse_ops.arguments import MOST_THREADS, Parser, named, named_path, no_effect, take_threads, whole_number
from sparse_ops.ends import with_one_line
from sparse_ops.files import there
from sparse_ops.pattern import BLOCK_SIZES
from sparse_ops.saying import say


def main(argv: list[str]) -> int:
    """Fine-tune; what cannot be read or learned ends in one line and status 2, and leaves FOLDER as it was."""
    options = _parser().parse_args(argv)

    def act() -> None:
        from ipu_bert.finetune.work import fine_tune  # seconds to import, which a wrong option need not wait for

        take_threads(options.threads)
        for line in no_effect(_parser(), options, _idle(options)):
            say(f"no effect: {line}", sys.stderr)
        fine_tune(_options(options), Path(options.folder), options.sparse)

    return with_one_line(act)


def _idle(found: argparse.Namespace) -> dict[str, str]:
    """Why an option does nothing beside the others; empty: it acts."""
    without = "--sparsity was not given" if found.sparsity is None else "--sparsity 0 is dense"
    return {
        "block_size": "" if found.sparsity else without,
        "updates": "patterns change once less" if found.updates == 1 else "",
        "pruning_ratio": "--updates moves no block" if found.updates < 2 else "",
        "validation_share": "" if found.validation is None else "--validation was given",
    }


def _options(found: argparse.Namespace) -> Options:
    return Options(
        start=Start(found.start, found.sparsity, found.block_size, found.from_scratch),
        files=Files(
            train=found.train,
            validation=found.validation,
            validation_share=found.validation_share,
            test=found.test,
            columns=Columns(found.text, found.pair, found.label),
            encoding=found.encoding,
        ),
        training=Training(
            epochs=found.epochs,
            patience=found.patience,
            batch_size=found.batch_size,
            lr=found.lr,
            weight_decay=found.weight_decay,
            dropout=found.dropout,
            updates=found.updates,
            pruning_ratio=found.pruning_ratio,
            seed=found.seed,
        ),
        regression=found.regression,
        max_length=found.max_length,
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m ipu_bert.finetune",
        description=(__doc__ or "").partition(":")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, sparsity = parser.add_argument, SparsitySettings()
    add("start", type=named, help="a run, a checkpoint, an export, or a BERT's folder or name on the hub")
    add("folder", type=there, help="where the model goes: a new folder, or an earlier one's")
    add(
        "--train",
        type=named_path,
        required=True,
        metavar="FILE",
        help="labelled rows: .csv, .tsv (as GLUE's) or .jsonl",
    )
    add("--validation", type=named_path, metavar="FILE", help="rows to validate by, in the place of some of --train")
    add("--validation-share", type=_number(0, 1), default=0.1, help="share of --train held out where there is no file")
    add("--test", type=named_path, metavar="FILE", help="rows to predict in the end, with labels or without")
    add("--text", type=named, default="text", metavar="COLUMN", help="the text")
    add("--pair", type=named, metavar="COLUMN", help="the second text of a pair")
    add("--label", type=named, default="label", metavar="COLUMN", help="the class, or the number of a regression")
    add("--encoding", type=named, default="utf-8", help="of the files")
    add("--regression", action="store_true", help="labels are numbers to predict")
    add("--sparse", action="store_true", help="write block-sparse weights as blocks")
    add("--sparsity", type=_number(0, 1, low=True), help="make the start's largest blocks all there is; none: as it is")
    add("--block-size", type=int, choices=BLOCK_SIZES, default=sparsity.block_size, help="with --sparsity")
    add("--from-scratch", action="store_true", help="sizes, words and patterns of the start, with new weights")
    parts = "parts of the run that patterns change between; 0: they stay"
    add("--updates", type=whole_number(0, 1_000_000), default=0, help=parts)
    ratio = "share of blocks that the first update moves"
    add("--pruning-ratio", type=_number(0, 1, low=True), default=sparsity.pruning_ratio, help=ratio)
    add("--epochs", type=whole_number(1, MOST_STEPS), default=3, help="passes over the rows, at most")
    waited = "epochs without a better validation before it ends"
    add("--patience", type=whole_number(1, MOST_STEPS), default=2, help=waited)
    add("--batch-size", type=whole_number(1, 2**20), default=32, help="rows per step")
    add("--lr", type=_number(0, math.inf), default=2e-4, help="peak learning rate")
    add("--weight-decay", type=_number(0, math.inf, low=True), default=0.01, help="decoupled, of weight matrices")
    add("--dropout", type=_number(0, 1, low=True), default=0.1, help="of hidden states and attention")
    add(
        "--max-length",
        type=whole_number(LEAST_LENGTH, 2**20),
        default=128,
        help="tokens of a row, and no more than the start was trained at",
    )
    add("--seed", type=whole_number(0, 2**63 - 1), default=0, help="of everything that is drawn")
    add("--threads", type=whole_number(0, MOST_THREADS), default=0, help="CPU threads; 0: torch's default")
    return parser


def _number(above: float, below: float, low: bool = False) -> Callable[[str], float]:
    """A number between the two; low: the lower one is allowed."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (above < value < below or (low and value == above)):
            side = "from" if low else "above"
            raise argparse.ArgumentTypeError(f"expected a number {side} {above} and below {below}, found {text!r}")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
