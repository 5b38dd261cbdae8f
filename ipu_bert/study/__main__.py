"""Run a study, or report what has finished: python -m ipu_bert.study NAME_or_FILE

python -m ipu_bert.study updates_small --dry-run        what would be run, and how long
python -m ipu_bert.study updates_small                  run what has not finished, then report; goes on after a stop
python -m ipu_bert.study updates_small --time           seconds a step of each row on this machine, then report
python -m ipu_bert.study updates_small --report         the page alone, from the results that are there

Results, page and figures are in results/NAME/, the runs themselves in runs/studies/NAME/. A run that has finished in
either, or in another study's results, is not repeated: `--results mine --runs mine_runs` begins anew. Exit status: 0
done; 1 some runs failed, their lines say why; 2 something is wrong; 75 or 130 stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Sequence, TextIO

from ipu_bert.machine import processor
from ipu_bert.record.console import format_duration
from ipu_bert.signals import InterruptedRunError, raised
from ipu_bert.study.definition import Cell, Study, read_study
from ipu_bert.study.groups import timed_configs
from ipu_bert.study.report import write_report
from ipu_bert.study.results import Results
from ipu_bert.study.run import cell_flops, run_cells
from ipu_bert.study.seconds import REPEATS, measure_seconds, read_seconds, write_seconds
from sparse_ops import files
from sparse_ops.arguments import MOST_THREADS, Parser, named_path, whole_number
from sparse_ops.ends import with_one_line
from sparse_ops.saying import answer, say


def main(argv: list[str]) -> int:
    """The command line."""
    options = _parser().parse_args(argv)
    statuses = [0]

    def act() -> None:
        statuses.append(_act(options))

    try:
        with raised():
            return with_one_line(act) or statuses[-1]
    except InterruptedRunError as stop:
        say("stopped; runs have saved, the same command goes on", sys.stderr)
        return stop.status


def _act(options: argparse.Namespace) -> int:
    study = read_study(options.study)
    folder = options.results / study.name
    if options.dry_run:
        _plan(study, Results(folder), options.jobs)
        return 0
    tell = partial(say, stream=sys.stderr)
    failed: dict[str, str] = {}
    if not options.report:
        runs = options.runs / study.name
        with ExitStack() as stack:
            for held in (folder,) if options.time else (folder, runs):
                stack.enter_context(_only_one(held))
            for line in _of_another(study, Results(folder)):
                tell(line)
            if options.time:
                read_seconds(folder)  # where it is damaged, before anything is measured
                Results(folder).finished(study.cells)
                write_seconds(folder, measure_seconds(timed_configs(study), REPEATS, tell))
            else:
                for line in study.told:
                    tell(line)
                failed = run_cells(study.cells, Results(folder), runs, options.jobs or _jobs(study.cells), tell)
    for title, problem in failed.items():
        say(f"failed: {title}: {problem}", sys.stderr)
    if (failed or options.time) and not Results(folder).finished(study.cells):  # nothing to report yet
        return 1 if failed else 0
    say(f"report: {write_report(study, folder)}", sys.stdout)
    return 1 if failed else 0


def _only_one(folder: Path) -> TextIO:
    """Hold a folder of results or of runs, made if missing, so that a study is run or timed once at a time; its runs
    hold it with this process.

    Raises ValueError where another process has it, or a run that has outlived a study that was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = files.lock(folder / ".lock", wait=False)
    except BlockingIOError:
        raise ValueError(f"{folder}: another process runs this study, or a run that it began goes on") from None
    os.set_inheritable(lock.fileno(), True)
    return lock


def _of_another(study: Study, results: Results) -> list[str]:
    """A line where all that a folder has is of another study whose file has the same name, in another folder."""
    if not results.by_key or any(cell.key in results.by_key for cell in study.cells):
        return []
    which = f"expected results of {study.asked}, found those of another study of this name, or of it before it changed"
    return [f"{results.path}: {which}; its page will be replaced, and --results with another folder keeps it"]


def _jobs(cells: Sequence[Cell]) -> int:
    """As many as the machine has CPUs for, by the threads of a run; one where runs take all."""
    threads = [cell.config.engine.threads for cell in cells]
    return max(1, (os.cpu_count() or 1) // max(threads)) if all(threads) else 1


def _plan(study: Study, results: Results, jobs: int | None) -> None:
    """Each cell, what it costs, and hours by how fast finished runs were on such a machine, if any."""
    jobs = jobs or _jobs(study.cells)
    finished = {**results.finished(study.cells), **results.of_other_studies(study.cells)}
    mine = [
        run
        for run in {**results.by_key, **finished}.values()
        if run.seconds and run.machine["processor"] == processor()
    ]
    rates = [run.executed_flops * run.sequences / run.seconds for run in mine]
    rate = sum(rates) / len(rates) if rates else None
    total = 0.0
    lines = [study.about, *_of_another(study, results)]
    for cell in study.cells:
        flops, state = cell_flops(cell), "finished" if cell.key in finished else "waits"
        total += flops if state == "waits" else 0.0
        config = cell.config
        lines.append(
            f"{state:<8} {cell.title}: {config.model.layers} x {config.model.hidden_size}, "
            f"{config.train.last_step:,} steps of {config.train.batch_size} x {config.data.sequence_length}, "
            f"{flops:.3g} FLOPs"
        )
    hours = (
        f"about {format_duration(total / rate / jobs)} at the speed of those that finished" if rate else _guess(total)
    )
    answer(
        "\n".join([*lines, *study.told, f"{len(study.cells)} runs, {total:.3g} FLOPs to do, {jobs} at a time: {hours}"])
    )


def _guess(flops: float) -> str:
    """Hours by this machine's own dense product, which real steps do not reach."""
    from ipu_bert.bench.parts import ceilings

    rate = ceilings().product
    return (
        f"at least {flops / rate / 3600:.1f} h at this machine's {1e-9 * rate:.0f} GFLOP/s; none has finished here yet"
    )


def _parser() -> argparse.ArgumentParser:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = Parser(
        prog="python -m ipu_bert.study",
        description=about,
        epilog="examples:\n" + more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", metavar="NAME_or_FILE", help="a name in configs/studies/ (NAME.yaml), or a YAML file")
    jobs = "runs at once (default: CPUs / engine.threads of a run)"
    parser.add_argument("--jobs", type=whole_number(1, MOST_THREADS), help=jobs)
    parser.add_argument(
        "--runs", type=named_path, default=Path("runs/studies"), metavar="FOLDER", help="where runs are"
    )
    parser.add_argument(
        "--results", type=named_path, default=Path("results"), metavar="FOLDER", help="where results are"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the runs and how long they take, and stop")
    what.add_argument(
        "--time",
        action="store_true",
        help="measure seconds a step of each row, with each value of the grid that they depend on",
    )
    what.add_argument("--report", action="store_true", help="make tables and figures again, run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
