"""What a model does with one micro-batch, taken down once, so that every other one needs none of the model's code.

PopTorch traces a model once, too. Operations are taken down below autograd, those of the backward pass among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor

from ipu_bert.engines.simulator.arithmetic import MATRIX_PRODUCTS, Operation, writes
from ipu_bert.engines.simulator.errors import SimulatorError

CONSTANT, OF_VARIABLES, OF_INPUTS = 0, 1, 2  # what a value changes with: never, with a step, with a micro-batch


@dataclass(frozen=True)
class Place:
    """Stands for the tensor with this number among the arguments of a line."""

    number: int


@dataclass(frozen=True)
class Line:
    """One operation. run: its first argument is a Rounding where `rounds`; args, kwargs: with Places in lists too.

    results: numbers of what it makes, in order; single: of its result where that is no list. rounding: the number of
    roundings before it, of `roundings` of its own.
    fixed: must be run, and at its turn, in every micro-batch.
    """

    run: Callable[..., Any]
    rounds: bool
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[int | None, ...]
    single: int | None
    rounding: int
    roundings: int
    fixed: bool

    def sources(self) -> list[int]:
        """Numbers of what it takes."""
        return _numbers(self.args)


class Tape:
    """A Recorder. Tensors are known by what they view: two of one place, shape and stride have the same numbers.

    values: of constants by number; halves of others are float32 tensors when a line is run, but for the variables and
    inputs themselves. changes: of each number, CONSTANT, OF_VARIABLES or OF_INPUTS.
    """

    def __init__(self, variables: Mapping[str, Tensor], inputs: Sequence[Tensor], scale: Tensor) -> None:
        self.lines: list[Line] = []
        self.values: dict[int, Any] = {}
        self.changes: list[int] = []
        self._known: dict[Any, int] = {}
        self._as_given: set[int] = set()  # numbers of halves that have 16 bits when a line is run
        self._widened: dict[int, int] = {}
        self._contiguous: dict[int, int] = {}
        self._held: dict[int, tuple[int, Any]] = {}  # by id; what is held stays alive
        self._places: list[int] = []  # the storage of each number, which another may take over later
        self._written: set[int] = set()
        self.variables = {name: self._given(tensor, OF_VARIABLES) for name, tensor in variables.items()}
        self.scale = self._given(scale, OF_VARIABLES)
        self.inputs = [self._given(tensor, OF_INPUTS) for tensor in inputs]
        self._kept = {self._places[number] for number in range(len(self.changes))}

    # --- taking down

    def note(self, operation: Operation, args: Any, kwargs: Any, result: Any, roundings: range, func: Any) -> None:
        """See Recorder. Raises SimulatorError where a variable or an input is written."""
        written = func is not None and writes(func)
        if written:
            storage = args[0].untyped_storage().data_ptr()
            if storage in self._kept:
                raise SimulatorError(f"{func}: the model writes a variable or an input of its own in place")
            self._written.add(storage)
        taken = tuple(self._argument(x) for x in args)
        if operation.rounds and func in MATRIX_PRODUCTS:  # others, by torch, sum in an order that layout decides
            taken = tuple(self._laid_out(x) if isinstance(x, Place) else x for x in taken)
        random = func is not None and torch.Tag.nondeterministic_seeded in func.tags
        self._add(operation, taken, kwargs, result, roundings, written or random)

    def note_held(self, run: Callable[..., Any], args: Any, result: Any) -> None:
        """See Recorder."""
        taken = tuple(Place(self.number(x)) for x in args)
        number = self._new(max(self.changes[x.number] for x in taken), 0)
        self._held[id(result)] = number, result
        self.lines.append(Line(run, False, taken, {}, (number,), number, 0, 0, fixed=False))

    def _add(
        self, operation: Operation, args: tuple[Any, ...], kwargs: Any, result: Any, roundings: range, fixed: bool
    ) -> None:
        changes = max([OF_INPUTS if fixed or roundings else CONSTANT, *(self.changes[x] for x in _numbers(args))])
        several = isinstance(result, (list, tuple))
        results = tuple(
            self._made(x, changes) if isinstance(x, Tensor) else None for x in (result if several else (result,))
        )
        single = None if several else results[0]
        run, rounds = operation.run, operation.rounds
        self.lines.append(
            Line(run, rounds, args, _wide(kwargs), results, single, roundings.start, len(roundings), fixed)
        )

    def _laid_out(self, x: Place) -> Place:
        """A product reads its factors in order; of what follows from variables it gets a copy made once a step."""
        if self.changes[x.number] != OF_VARIABLES:
            return x
        if x.number not in self._contiguous:
            self._contiguous[x.number] = copy = self._new(OF_VARIABLES, self._places[x.number])
            self.lines.append(Line(Tensor.contiguous, False, (x,), {}, (copy,), copy, 0, 0, fixed=False))
        return Place(self._contiguous[x.number])

    def _argument(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return Place(self._wide_number(x))
        if id(x) in self._held and self._held[id(x)][1] is x:
            return Place(self._held[id(x)][0])
        if isinstance(x, (list, tuple)):
            return [self._argument(y) for y in x]
        return torch.float32 if x is torch.float16 else x

    def number(self, x: Tensor) -> int:
        """Of this tensor; what no line has made is a constant."""
        key = _key(x)
        if key not in self._known:
            self.values[self._given(x, CONSTANT)] = x.detach()
        return self._known[key]

    def _wide_number(self, x: Tensor) -> int:
        """The number of its values in float32, if they are halves."""
        number = self.number(x)
        if number not in self._as_given or x.dtype != torch.float16:
            return number
        if number not in self._widened:
            self._widened[number] = wide = self._new(self.changes[number], 0)
            self.lines.append(Line(Tensor.float, False, (Place(number),), {}, (wide,), wide, 0, 0, fixed=False))
        return self._widened[number]

    def _given(self, x: Tensor, changes: int) -> int:
        number = self._known[_key(x)] = self._new(changes, x.untyped_storage().data_ptr())
        self._as_given.add(number)
        return number

    def _made(self, x: Tensor, changes: int) -> int:
        number = self._known[_key(x)] = self._new(changes, x.untyped_storage().data_ptr())
        return number

    def _new(self, changes: int, storage: int) -> int:
        self.changes.append(changes)
        self._places.append(storage)
        return len(self.changes) - 1

    # --- what comes of it

    def result(self, x: Tensor) -> int:
        """The number of a result of the model, with float32 values if they are halves."""
        return self._wide_number(x)

    def change_of(self, line: Line) -> int:
        """What a line's results change with."""
        if line.fixed or line.roundings:
            return OF_INPUTS
        return max(self.changes[number] for number in line.results if number is not None)

    def settle(self) -> None:
        """What a line writes in place is made anew for every micro-batch, and so is all that follows from it."""
        for line in self.lines:
            changes = max([CONSTANT, *(self.changes[x] for x in line.sources())])
            for number in line.results:
                if number is not None:
                    again = self._places[number] in self._written
                    self.changes[number] = OF_INPUTS if again else max(changes, self.changes[number])


def _numbers(args: Sequence[Any]) -> list[int]:
    flat = (y for x in args for y in (x if isinstance(x, (list, tuple)) else (x,)))
    return [x.number for x in flat if isinstance(x, Place)]


def _key(x: Tensor) -> Any:
    return x.data_ptr(), x.dtype, x.shape, x.stride()


def _wide(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: torch.float32 if x is torch.float16 else x for key, x in kwargs.items()}
