"""Which way the native kernels carry out a product: what was measured on this machine, kept in a file.

csrc/cpu/level.cpp has the ways, called variants. All of them give the same bits, so a choice is no part of a run: it
may be another on each rank and after each resume. `sparse_ops.tune` makes choices; where there is none for a product,
the library takes the variant that was right on the first machine.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from sparse_ops.files import plain, write
from sparse_ops.pattern import BLOCK_SIZES
from sparse_ops.saying import say

PRODUCTS = ("forward", "grad_input", "grad_values")
DEFAULT = -1  # the number that leaves the choice to the library


class ShapeClass(NamedTuple):
    """What a choice holds for: one weight and product, for all token counts and densities that are about the same.

    density: of the weight's blocks, in half powers of two; tokens: in powers of two, both rounded.
    """

    product: str
    out: int
    inp: int
    block: int
    density: int
    tokens: int
    half: bool
    threads: int
    level: int


@dataclass(frozen=True)
class Work:
    """A product of a weight [out, inp] with `blocks` blocks of block x block, and `tokens` tokens.

    product: one of PRODUCTS, of which forward is with GELU, too; half: in bfloat16, else float32; threads: at most so
    many; level: its number.
    """

    product: str
    out: int
    inp: int
    block: int
    blocks: int
    tokens: int
    half: bool
    threads: int
    level: int

    @property
    def shape_class(self) -> ShapeClass:
        """What this is an example of."""
        return _class_of(*self.__dict__.values())


@functools.lru_cache(maxsize=4096)
def _class_of(
    product: str, out: int, inp: int, block: int, blocks: int, tokens: int, half: bool, threads: int, level: int
) -> ShapeClass:
    density = round(2 * math.log2(max(blocks, 1) * block**2 / (out * inp)))
    return ShapeClass(product, out, inp, block, density, round(math.log2(max(tokens, 1))), half, threads, level)


@dataclass(frozen=True)
class Choice:
    """The variant for works of a class, and the least milliseconds of every variant of the one that was measured."""

    work: Work
    variant: str
    milliseconds: dict[str, float]


class Choices:
    """All choices for one library on one processor, as their file has them; one that is damaged is as good as none."""

    def __init__(self, folder: Path, library: ctypes.CDLL, processor: str) -> None:
        self._library, self._processor, self._name = library, processor, Path(library._name).stem
        machine = hashlib.sha256(processor.encode()).hexdigest()[:8]  # several may share the folder
        self.path = folder / f"{self._name}-{machine}.variants.json"
        self._choices: dict[ShapeClass, Choice] = {}
        self._numbers: dict[ShapeClass, int] = {}
        self._damaged = False  # is said once
        self.load()

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._choices.values())

    def __contains__(self, work: Work) -> bool:
        return work.shape_class in self._choices

    def number(self, work: Work) -> int:
        """The number of the variant that was chosen for this work, or DEFAULT."""
        return self._numbers.get(work.shape_class, DEFAULT)

    def use(self, work: Work, number: int) -> None:
        """Carry out works of this one's class in this way from now on, in this process."""
        self._numbers[work.shape_class] = number

    def take(self, choice: Choice) -> None:
        """Use this one from now on, in this process. Raises ValueError where there is no such variant."""
        self.use(choice.work, self.names(choice.work).index(choice.variant))
        self._choices[choice.work.shape_class] = choice

    def names(self, work: Work) -> tuple[str, ...]:
        """The ways in which the library can carry out a product, by their numbers."""
        return _names(self._library, work.product == "grad_values", work.level, work.half, work.block)

    def default(self, work: Work) -> int:
        """The number of the variant that is taken where none has been chosen."""
        if work.product == "grad_values":
            return 0
        n_in = work.inp if work.product == "forward" else work.out
        function = self._library.sparse_ops_default_variant
        function.argtypes, function.restype = (*_OF_A_PRODUCT, ctypes.c_int64), ctypes.c_int64
        return int(function(work.level, work.half, work.block, n_in))

    def load(self) -> None:
        """Take all choices of the file, where it is whole; says in one line where it is not."""
        whose = {"library": self._name, "processor": self._processor}
        try:
            found = json.loads(Path(plain(self.path)).read_text(encoding="utf-8"))
            if {name: found[name] for name in whose} != whose:
                raise ValueError("it is of another library or processor")
            for choice in [_choice_of(fields) for fields in found["choices"]]:
                self.take(choice)
        except FileNotFoundError:
            pass
        except (
            OSError,
            ValueError,
            LookupError,
            ArithmeticError,
            TypeError,
            AttributeError,
            RecursionError,
            ctypes.ArgumentError,
        ) as error:
            self._choices, self._numbers = {}, {}
            reason = " ".join(str(error).split())[:200]
            if not self._damaged:
                say(f"sparse_ops: {self.path}: not as it was written ({reason}); choices are measured anew", sys.stderr)
            self._damaged = True

    def save(self) -> None:
        """Write all choices to the file. Raises OSError."""
        content = {
            "library": self._name,
            "processor": self._processor,
            "choices": [asdict(choice) for choice in self],
        }
        write(self.path, json.dumps(content, indent=1) + "\n")


def _choice_of(fields: Any) -> Choice:
    """As it stands in a file. Raises ValueError, or what Python does, where it is none."""
    work, milliseconds = Work(**fields["work"]), {str(k): float(v) for k, v in fields["milliseconds"].items()}
    numbers = (work.out, work.inp, work.blocks, work.tokens, work.threads)
    if (
        work.product not in PRODUCTS
        or work.block not in BLOCK_SIZES
        or work.level not in range(4)
        or work.half not in (True, False)
        or not all(isinstance(n, int) and 0 < n < 2**31 for n in numbers)
    ):
        raise ValueError(f"found {fields['work']}")
    return Choice(work, fields["variant"], milliseconds)


_OF_A_PRODUCT = (ctypes.c_int, ctypes.c_bool, ctypes.c_int64)  # level, half, block


@functools.lru_cache(maxsize=None)
def _names(library: Any, is_gradient: bool, level: int, half: bool, block: int) -> tuple[str, ...]:
    function = library.sparse_ops_gradient_variant if is_gradient else library.sparse_ops_product_variant
    function.argtypes = (ctypes.c_int64, ctypes.c_int64) if is_gradient else (*_OF_A_PRODUCT, ctypes.c_int64)
    function.restype = ctypes.c_char_p
    of = (block,) if is_gradient else (level, half, block)
    names = (function(*of, number) for number in itertools.count())
    return tuple(name.decode() for name in itertools.takewhile(lambda name: name is not None, names))
