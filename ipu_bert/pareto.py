"""Runs against the curve of the dense ones among them: python -m ipu_bert.pareto RUN ... [--seconds] [--svg FILE]

RUN is the folder of a run that has come to its end. The curve goes through the dense runs that no other beats in both
cost and loss, straight in log and log (Figure 3, and the "Matched" rows of Tables 1 and A.8); with fewer than two of
those it is the paper's, whose losses are those of another text. Cost is FLOPs of the whole run as the paper counts, or,
with --seconds, steps times seconds a step, for which all are built and timed in turn here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Mapping, Sequence

from ipu_bert import assemble
from ipu_bert.config import Config, from_dict
from ipu_bert.json_file import is_amount, is_count, read_object
from ipu_bert.record.metrics import METRICS_FILE, dumps, read_metrics
from ipu_bert.record.report_numbers import alike
from ipu_bert.sizes.flops import paper_flops
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.study.comparable import apart, judged_on
from ipu_bert.study.frontier import Point, match, paper_family, table, undominated
from ipu_bert.study.seconds import REPEATS, measure_seconds
from sparse_ops.arguments import Parser, file_to_write, named_path
from sparse_ops.ends import with_one_line
from sparse_ops.pictures import write_picture
from sparse_ops.saying import answer, say


@dataclass(frozen=True)
class _Run:
    """A finished run. config, report: as report.json has them. heldout_batches: by which it was judged at its end, None
    where its records do not say it. label: another one than those of all beside it.
    """

    folder: Path
    config: Config
    report: Mapping[str, Any]
    heldout_batches: int | None
    label: str

    @property
    def unigram_entropy(self) -> float:
        return float(self.report["heldout"]["unigram_entropy"])

    @property
    def word_frequencies_loss(self) -> float | None:
        found = self.report["heldout"].get("word_frequencies_loss")
        return float(found) if is_amount(found) else None

    @property
    def flops(self) -> float:
        """Of the whole run, as the paper counts."""
        config = self.config
        shape = bert_shape(config.model, self.report["model"]["vocab_size"])
        one = paper_flops(shape, assemble.weights(config), config.data.sequence_length)
        return one * config.train.last_step * config.train.batch_size


def points(folders: Sequence[Path], seconds: bool) -> list[Point]:
    """A point for each run; a line on standard error where their losses do not compare.

    Raises ValueError or OSError, one line, for a folder without the report of a run.
    """
    runs = _labelled([_reported(folder) for folder in folders])
    for line in filter(None, [apart(runs), judged_on(runs)]):
        say(f"warning: {line}", sys.stderr)
    if seconds:
        rows = measure_seconds({run.label: run.config for run in runs}, REPEATS, partial(say, stream=sys.stderr)).rows
        costs = [rows[run.label].per_step * run.config.train.last_step for run in runs]
    else:
        costs = [run.flops for run in runs]
    return [
        Point(run.label, cost, run.report["heldout"]["mlm_loss"], run.config.sparsity.method == "dense")
        for run, cost in zip(runs, costs)
    ]


def _reported(folder: Path) -> _Run:
    path = folder / "report.json"
    try:
        report = read_object(path)
        config = from_dict(report["config"])
        loss, words = report["heldout"]["mlm_loss"], report["model"]["vocab_size"]
        if not (is_amount(loss) and loss and is_count(words) and words):
            raise ValueError(f"expected a loss and a vocabulary above 0, found {loss!r:.40} and {words!r:.40}")
        if not is_amount(report["heldout"]["unigram_entropy"]):
            raise ValueError(f"expected unigram_entropy, found {report['heldout']['unigram_entropy']!r:.40}")
        if report["steps"] != config.train.last_step:
            raise ValueError("found one that has not come to its end")
        return _Run(folder, config, report, _heldout_batches(folder), config.run.name)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: expected the folder of a run that has come to its end, found no report") from None
    except (KeyError, TypeError, ValueError) as error:
        problem = f"found no {error} in it" if isinstance(error, KeyError) else "; ".join(str(error).splitlines())
        raise ValueError(f"{path}: expected the report of a run: {problem}") from None


def _heldout_batches(folder: Path) -> int | None:
    """None, too, where its records are gone or cannot be read: what is asked here is all in the report."""
    try:
        judged = alike(read_metrics(folder / METRICS_FILE))
    except (OSError, ValueError):
        return None
    return judged[-1].get("batches") if judged else None


def _labelled(runs: Sequence[_Run]) -> list[_Run]:
    """By the names of the runs, or by their folders where two have the same name."""
    alike = len({run.label for run in runs}) < len(runs)
    return [replace(run, label=str(run.folder)) if alike else run for run in runs]


def _figure(found: Sequence[Point], family: Sequence[Point], name: str) -> Any:
    from ipu_bert.study.figures import cost_figure  # matplotlib, which the numbers do without

    return cost_figure(found, [None] * len(found), family, name)


def main(argv: list[str]) -> int:
    """The command line; what cannot be read ends in one line and status 2."""
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = Parser(prog="python -m ipu_bert.pareto", description=about.partition(":")[0], epilog=more)
    parser.add_argument(
        "runs", nargs="+", type=named_path, metavar="RUN", help="folders of runs, dense ones among them"
    )
    parser.add_argument("--seconds", action="store_true", help="cost in seconds on this machine in place of FLOPs")
    parser.add_argument("--svg", type=file_to_write(".svg"), metavar="FILE", help="draw it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)

    def act() -> None:
        found = points(list(dict.fromkeys(options.runs)), options.seconds)
        family = [point for point in found if point.dense]
        own = len(undominated(family)) > 1
        if not own and options.seconds:
            raise ValueError("--seconds: expected at least two dense runs, neither beaten by the other in both")
        family = family if own else paper_family()
        matched, name = match(found, family), "seconds" if options.seconds else "FLOPs"
        whose = "the dense runs among these" if own else "the paper's dense models, of another text"
        numbers = {"family": whose, "cost": name, "runs": [one.to_dict() for one in matched]}
        answer(dumps(numbers) if options.json else "\n".join([f"The line: {whose}.", *table(name, matched)]))
        if options.svg:  # last: what was measured is shown where a picture cannot be written
            write_picture(options.svg, "svg", partial(_figure, found, family, name))

    return with_one_line(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
