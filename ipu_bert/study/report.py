"""The page of a study, from whatever of it has finished: tables, comparisons, figures and the paper's data beside."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Sequence

from ipu_bert.record.metrics import dumps
from ipu_bert.study.comparable import apart, judged_on, other_loss, same_entropy
from ipu_bert.study.definition import SEED, Study
from ipu_bert.study.frontier import Matched, Point, match, table
from ipu_bert.study.groups import Group, group, outdated, timed, timed_label
from ipu_bert.study.results import Results, RunResult
from ipu_bert.study.seconds import SECONDS_FILE, MachineSeconds, read_seconds
from ipu_bert.study.statistics import CLEAR, Difference, difference, mean
from sparse_ops import files
from sparse_ops.pictures import Make, write_each
from sparse_ops.saying import say

REPORT_FILE, NUMBERS_FILE = "report.md", "report.json"


def write_report(study: Study, folder: Path) -> Path:
    """Write report.md, report.json and the figures into a folder of results; returns the page.

    Rows that were timed before they were edited are told, and have no seconds on it. What cannot be drawn is a line.
    Raises ValueError where nothing has finished yet, or a file there is damaged.
    """
    results = Results(folder)
    groups = group(study, results.kept(study.cells))
    if not groups:
        raise ValueError(f"{folder}: expected the result of at least one run of {study.name}, found none")
    for line in filter(None, [results.changed(study.cells), apart(groups), judged_on(groups)]):
        say(line, sys.stderr)
    seconds = _of_now(folder, groups)
    files.write(folder / NUMBERS_FILE, dumps(_numbers(study, groups, seconds), indent=1) + "\n")
    files.write(folder / REPORT_FILE, _page(study, groups, seconds, [], []))
    drawn, told = write_each(folder, _figures(study, groups, seconds))
    for line in told:
        say(line, sys.stderr)
    files.write(folder / REPORT_FILE, _page(study, groups, seconds, drawn, told))
    return folder / REPORT_FILE


def compared(study: Study, groups: Sequence[Group]) -> list[tuple[str, str, Difference | None]]:
    """What the study compares, as far as it has finished: rows by equal values of the grid.

    None for those whose losses cannot be compared.
    """
    found = []
    for first, second in study.compare:
        for one in groups:
            for other in groups:
                if (one.row.label, other.row.label) == (first, second) and one.grid == other.grid:
                    alike = not other_loss(one, other)
                    found.append((one.label, other.label, difference(one.losses, other.losses) if alike else None))
    return found


def over_flops(groups: Sequence[Group]) -> list[Point]:
    """A point for each group, over the FLOPs of its runs."""
    return [Point(group.label, group.flops, group.loss.value, group.is_dense) for group in groups]


def over_seconds(groups: Sequence[Group], machine: MachineSeconds) -> list[Point]:
    """A point for each group that was timed, over the seconds of its runs on a machine."""
    return [
        Point(one.label, row.per_step * one.first.steps, one.loss.value, one.is_dense)
        for one, row in timed(groups, machine)
    ]


def _of_now(folder: Path, groups: Sequence[Group]) -> list[MachineSeconds]:
    """The machines on which something was timed that the study still has."""
    found = read_seconds(folder)
    for machine in found:
        for label, problem in outdated(groups, machine).items():
            where = f"{folder / SECONDS_FILE}: {machine.machine}, {machine.threads} threads: {label}"
            say(f"left out: {where}: {problem}; --time measures it again", sys.stderr)
    return [machine for machine in found if timed(groups, machine)]


def _matched(groups: Sequence[Group], points: Sequence[Point]) -> list[Matched]:
    return match(points, _family(groups, points))


def _family(groups: Sequence[Group], points: Sequence[Point]) -> list[Point]:
    """The dense ones; none where they stand among losses that cannot be compared."""
    return [] if apart(groups) else [point for point in points if point.dense]


def _figures(study: Study, groups: Sequence[Group], seconds: Sequence[MachineSeconds]) -> dict[str, Make]:
    """What there is to draw, by file name."""
    guess = guess_of(groups)
    found: dict[str, Make] = {}
    for name in study.figures:
        if name == "steps":
            found["steps"] = partial(_figure, "steps_figure", groups, guess)
        elif name == "seconds":
            for machine in seconds:
                found[f"seconds_{_slug(machine)}"] = partial(_figure, "seconds_figure", groups, machine, guess)
        elif name == "flops":
            points, errors = over_flops(groups), [one.loss.error for one in groups]
            axis = "FLOPs of the whole run, as the paper counts"
            found["flops"] = partial(_figure, "cost_figure", points, errors, _family(groups, points), axis)
        elif name == "explored" and any(one.first.updates for one in groups):
            found["explored"] = partial(_figure, "explored_figure", groups)
        elif name == "grid":
            (key,) = (key for key in study.grid if key != SEED)
            found[f"grid_{key.rpartition('.')[2]}"] = partial(_figure, "grid_figure", groups, key)
    return {f"{name}.svg": make for name, make in found.items()}


def guess_of(groups: Sequence[Group]) -> tuple[float, str] | None:
    """The loss of a guess by word frequency [nats] that figures show, and its name; None where texts differ."""
    if not all(same_entropy(one.unigram_entropy, groups[0].unigram_entropy) for one in groups):
        return None
    asked = _asked_for([run for one in groups for run in one.runs.values()])
    return (
        (mean(asked).value, "word frequencies")
        if asked
        else (groups[0].unigram_entropy, "word frequencies of all held-out text")
    )


def _figure(which: str, *arguments: Any) -> Any:
    from ipu_bert.study import figures  # matplotlib, without which there are the numbers and the page all the same

    return getattr(figures, which)(*arguments)


def _slug(machine: MachineSeconds) -> str:
    words = "".join(c if c.isalnum() else " " for c in machine.machine.lower()).split()
    return f"{'_'.join(words)[:80]}_{machine.threads}"


def _numbers(study: Study, groups: Sequence[Group], seconds: Sequence[MachineSeconds]) -> dict[str, Any]:
    return {
        "study": study.name,
        "about": study.about,
        "rows": [
            {
                "row": one.row.label,
                "grid": one.grid,
                "losses": one.losses,
                "mean": one.loss.value,
                "standard_error": one.loss.error,
                "flops": one.flops,
                "explored_dof": one.explored_dof,
                "paper": one.row.paper,
            }
            for one in groups
        ],
        "compared": [
            {"first": a, "second": b, **({**vars(found), "clear": found.clear} if found else {"comparable": False})}
            for a, b, found in compared(study, groups)
        ],
        "at_equal_flops": [found.to_dict() for found in _matched(groups, over_flops(groups))],
        "at_equal_seconds": {
            f"{machine.machine}, {machine.threads} threads": [
                found.to_dict() for found in _matched(groups, over_seconds(groups, machine))
            ]
            for machine in seconds
        },
    }


def _page(
    study: Study,
    groups: Sequence[Group],
    seconds: Sequence[MachineSeconds],
    drawn: Sequence[str],
    not_drawn: Sequence[str],
) -> str:
    """The page's text. drawn: file names of the pictures that are there. not_drawn: a line for others."""
    runs = [run for one in groups for run in one.runs.values()]
    lines = [f"# {study.name}", "", study.about, ""]
    lines += [f"{len(runs)} of {len(study.cells)} runs have finished. {made_of(runs)}", ""]
    for line in filter(None, [apart(groups), judged_on(groups)]):
        lines += [f"**{line}**", ""]
    lines += [*(f"- {line}" for line in study.told), ""] if study.told else []
    lines += _table(groups)
    lines += _comparison(compared(study, groups))
    lines += table("FLOPs", _matched(groups, over_flops(groups)))
    for machine in seconds:
        lines += _seconds_table(groups, machine)
        lines += table(
            f"seconds on {machine.threads} threads of {machine.machine}",
            _matched(groups, over_seconds(groups, machine)),
        )
    lines += [f"![{Path(name).stem}]({name})" for name in drawn]
    lines += [line for one in not_drawn for line in ("", f"**Not drawn:** {one}")]
    lines += ["", f"Made by `python -m ipu_bert.study {study.asked} --report`.", ""]
    return "\n".join(lines)


def made_of(runs: Sequence[RunResult]) -> str:
    """What the runs were made of, in a sentence; where they differ, from the least to the most."""
    machines, revisions, sources = (
        ", ".join(sorted(set(names)))
        for names in (
            (str(run.machine["processor"]) for run in runs),
            (run.revision for run in runs),
            (str(run.settings["data.source"]) for run in runs),
        )
    )
    return (
        f"{_span([run.sequences for run in runs], ',')} sequences of "
        f"{_span([run.settings['data.sequence_length'] for run in runs], ',')} tokens of {sources}; "
        f"{frequencies(runs)}. "
        f"Run on {machines}, at {revisions}."
    )


def frequencies(runs: Sequence[RunResult]) -> str:
    """What a guess by word frequency comes to, in words.

    Other words are asked for than a text has: no special ones, and few of those that end sentences.
    """
    whole, asked = _span([run.unigram_entropy for run in runs], ".3f"), _asked_for(runs)
    if asked:
        return (
            f"a guess by word frequency: {_span(asked, '.3f')} nats on what is asked for, {whole} on all held-out text"
        )
    return f"a guess by word frequency on all held-out text, of which not every word is asked for: {whole} nats"


def _asked_for(runs: Sequence[RunResult]) -> list[float]:
    """The guess's losses on what these were asked for; none where one of them has not kept it."""
    kept = [run.word_frequencies_loss for run in runs]
    return [] if None in kept else [loss for loss in kept if loss is not None]


def _span(numbers: Sequence[float], form: str) -> str:
    least, most = (format(number, form) for number in (min(numbers), max(numbers)))
    return least if least == most else f"{least} to {most}"


def _table(groups: Sequence[Group]) -> list[str]:
    lines = [
        "Held-out masked-LM loss after the last step [nats], mean and standard error over seeds.",
        "",
        "| | seeds | loss | least - largest | FLOPs | explored DOF | removed new, last | the paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in groups:
        low, high = one.loss.spread
        explored, removed, paper = (
            "" if number is None else format(number, form)
            for number, form in ((one.explored_dof, ".2f"), (one.removed_new, ".2f"), (one.row.paper, ".3f"))
        )
        lines.append(
            f"| {one.label} | {len(one.runs)} of {one.cells} | {one.loss} | {low:.4f} - {high:.4f} | {one.flops:.3g} "
            f"| {explored} | {removed} | {paper} |"
        )
    return [*lines, ""]


def _comparison(found: Sequence[tuple[str, str, Difference | None]]) -> list[str]:
    if not found:
        return []
    lines = [
        "Differences of these losses, first minus second, paired by seed where both have the same seeds. p: how often "
        f"models that are equal differ as much (Student); below {CLEAR} something is said.",
        "",
        "| first | second | difference | p | |",
        "|---|---|---|---|---|",
    ]
    for first, second, one in found:
        if one is None:
            lines.append(f"| {first} | {second} | | | losses do not compare |")
            continue
        verdict = ("first is lower" if one.value < 0 else "first is higher") if one.clear else "nothing can be said"
        p = "" if one.p is None else f"{one.p:.2g}"
        lines.append(f"| {first} | {second} | {one} | {p} | {verdict} |")
    return [*lines, ""]


def _seconds_table(groups: Sequence[Group], machine: MachineSeconds) -> list[str]:
    rows = {timed_label(one): row for one, row in timed(groups, machine)}
    lines = [
        f"Seconds a step, all in turn in one process, {machine.threads} threads of {machine.machine}.",
        "",
        "| | median | quartiles | an update | updates |",
        "|---|---|---|---|---|",
    ]
    for label, row in rows.items():
        lines.append(
            f"| {label} | {row.step.seconds:.3f} | {row.step.low:.3f} - {row.step.high:.3f} | {row.update:.3f} "
            f"| {row.updates} of {row.steps} steps |"
        )
    return [*lines, ""]
