"""A compiled model: the lines of a tape that count, each run as often as what it takes can change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from ipu_bert.engines.simulator.arithmetic import Rounding
from ipu_bert.engines.simulator.tape import CONSTANT, OF_INPUTS, OF_VARIABLES, Line, Place, Tape


class Result(NamedTuple):
    """Of a micro-batch. gradients: by parameter, float32, still with the loss scale."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Wanted:
    """What a program is for: numbers of a tape's tensors, and the dtypes that outputs have."""

    outputs: list[int]
    output_types: list[Any]
    gradients: dict[str, int]


class Program:
    """Runs what `tape` has taken down, with `rounding`, which counts `roundings` for each micro-batch.

    What follows from constants alone is computed here, what follows from variables at `begin`.
    """

    def __init__(self, tape: Tape, wanted: Wanted, roundings: int, rounding: Rounding) -> None:
        tape.settle()
        self._tape, self._wanted, self._roundings, self._rounding = tape, wanted, roundings, rounding
        self._values: list[Any] = [tape.values.get(number) for number in range(len(tape.changes))]
        self._passing = [number for number, changes in enumerate(tape.changes) if changes != CONSTANT]
        ends = {*wanted.outputs, *wanted.gradients.values()}
        lines: dict[int, list[Line]] = {CONSTANT: [], OF_VARIABLES: [], OF_INPUTS: []}
        for line in _needed(tape.lines, ends):
            lines[tape.change_of(line)].append(line)
        for line in lines[CONSTANT]:
            _step(line, rounding, 0)(self._values)
        self._at_begin = [_step(line, rounding, 0) for line in lines[OF_VARIABLES]]
        self._steps, done = [], 0
        for line in lines[OF_INPUTS]:
            self._steps.append(_step(line, rounding, line.rounding - done if line.roundings else 0))
            done = line.rounding + line.roundings if line.roundings else done
        self._unneeded = _last_uses(lines[OF_INPUTS], tape.changes, ends)

    @torch.no_grad()
    def begin(self, variables: Mapping[str, Tensor], scale: Tensor) -> None:
        """Take the variables' values, which may not change until `end`, and the loss scale, float32 []."""
        for name, number in self._tape.variables.items():
            self._values[number] = variables[name]
        self._values[self._tape.scale] = scale
        for step in self._at_begin:
            step(self._values)

    @torch.no_grad()
    def run(self, inputs: Sequence[Tensor]) -> Result:
        """One micro-batch. Random numbers are torch's and `rounding`'s."""
        values, first = self._values, self._rounding.count
        for number, x in zip(self._tape.inputs, inputs):
            values[number] = x
        for step, unneeded in zip(self._steps, self._unneeded):
            step(values)
            for number in unneeded:
                values[number] = None
        self._rounding.count = first + self._roundings
        wanted = self._wanted
        outputs = [values[number].to(dtype) for number, dtype in zip(wanted.outputs, wanted.output_types)]
        return Result(outputs, {name: values[number].float() for name, number in wanted.gradients.items()})

    def end(self) -> None:
        """Let go of everything but constants."""
        for number in self._passing:
            self._values[number] = None


def _needed(lines: Sequence[Line], ends: set[int]) -> list[Line]:
    """Those that lead to `ends`, and those that must be run."""
    needed, kept = set(ends), []
    for line in reversed(lines):
        if line.fixed or any(number in needed for number in line.results):
            needed.update(line.sources())
            kept.append(line)
    return kept[::-1]


def _last_uses(lines: Sequence[Line], changes: Sequence[int], ends: set[int]) -> list[list[int]]:
    """For each line the numbers that none after it takes."""
    later, last = set(ends), []
    for line in reversed(lines):
        numbers = {*line.sources(), *(number for number in line.results if number is not None)} - later
        last.append([number for number in numbers if changes[number] == OF_INPUTS])
        later |= numbers
    return last[::-1]


def _step(line: Line, rounding: Rounding, skipped: int) -> Callable[[list[Any]], None]:
    """What a line does to the values; `skipped` roundings that nothing needs come before."""
    run = partial(line.run, rounding) if line.rounds else line.run
    args, kwargs = [None if isinstance(x, Place) else x for x in line.args], line.kwargs
    places = [(i, x.number) for i, x in enumerate(line.args) if isinstance(x, Place)]
    lists = [(i, x) for i, x in enumerate(line.args) if isinstance(x, list) and any(isinstance(y, Place) for y in x)]
    single, results = line.single, line.results

    def step(values: list[Any]) -> None:
        given = args.copy()
        for i, number in places:
            given[i] = values[number]
        for i, items in lists:
            given[i] = [values[y.number] if isinstance(y, Place) else y for y in items]
        if skipped:
            rounding.count += skipped
        result = run(*given, **kwargs)
        if single is not None:
            values[single] = result
            return
        for made, x in zip(results, result):
            if made is not None:
                values[made] = x

    return step
