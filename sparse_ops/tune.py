"""Choose by measurement how this machine carries out the products of a model; kept beside the compiled library.

    python -m sparse_ops.tune                                  # shows what has been chosen
    python -m sparse_ops.tune --again                          # measures all of that anew
    python -m sparse_ops.tune 768x768 3072x768 768x3072 --block 16 --sparsity 0.9 --tokens 4096

All ways give the same bits (sparse_ops.variants), so nothing but time depends on the choice. A long training run makes
it by itself before its first step (ipu_bert/assemble.py); nothing else does.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Callable, Iterable, Iterator, NamedTuple

import torch
from torch import Tensor

from sparse_ops import native
from sparse_ops.arguments import MOST_THREADS, Parser, fraction, take_threads, whole_number
from sparse_ops.ends import with_one_line
from sparse_ops.files import in_words, lock_after_others
from sparse_ops.host_memory import keep_freed_memory
from sparse_ops.pattern import BLOCK_SIZES, BlockIndex, BlockPattern, block_count
from sparse_ops.saying import answer, say
from sparse_ops.variants import PRODUCTS, Choice, Choices, Work

SECONDS = 8.0  # for all products of a call, where they leave time for LEAST_ROUNDS
ROUNDS, LEAST_ROUNDS = 15, 3  # of every variant in turn, of which the fastest counts
MARGIN = 0.97  # of the default's time is what another variant may take at most: less than that is noise
MOST_TOKENS = 8192  # are measured: more would be more panels of the same


def works(shape: tuple[int, int], block: int, blocks: int, tokens: int, dtype: torch.dtype) -> list[Work]:
    """All products of a weight `shape` = (out, in) with so many blocks, as they would be carried out now."""
    return [native.work(product, shape, block, blocks, tokens, dtype) for product in PRODUCTS]


def tune(wanted: Iterable[Work], again: bool) -> list[Choice]:
    """Measure those for which no choice has been made, or all of them `again`; returns and keeps what is chosen now.

    All have to be of the level in use. Two processes that want it at once measure one after the other, and the second
    only what is left. Choices that cannot be kept, which is said, are for this process.
    """
    choices = native.choices()
    with _alone(choices):
        distinct = {work.shape_class: work for work in wanted}.values()
        missing = [w for w in distinct if (again or w not in choices) and len(choices.names(w)) > 1]
        made = [_measure(work, choices, SECONDS / len(missing)) for work in missing]
        for choice in made:
            choices.take(choice)
        if made:
            try:
                choices.save()
            except OSError as error:
                say(f"sparse_ops: choices are for this process only: {in_words(error)}", sys.stderr)
    return made


@contextlib.contextmanager
def _alone(choices: Choices) -> Iterator[None]:
    """While no other process measures, and with what the last one has found."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # nowhere to keep anything: then there is nothing to share either
            choices.path.parent.mkdir(parents=True, exist_ok=True)
            told = "sparse_ops: another process measures the kernels; waiting for it"
            held.enter_context(lock_after_others(choices.path.with_suffix(".lock"), told))
            choices.load()
        yield


class _Example(NamedTuple):
    """Tensors for one weight: a product's time depends on where blocks lie, and not on numbers."""

    x: Tensor
    dy: Tensor
    values: Tensor
    where: BlockIndex

    @classmethod
    def of(cls, work: Work) -> _Example:
        generator = torch.Generator().manual_seed(0)
        pattern = BlockPattern.of_count((work.out, work.inp), work.block, work.blocks, generator, 1)
        dtype = torch.bfloat16 if work.half else torch.float32
        values = torch.ones(work.blocks, work.block, work.block, dtype=dtype)
        x, dy = (torch.ones(work.tokens, features, dtype=dtype) for features in (work.inp, work.out))
        return cls(x, dy, values, pattern.index())

    def run(self, product: str) -> Callable[[], Tensor]:
        """The product with all of its result read once, since results that went past the caches are slower to read."""
        x, dy, values, where = self
        return {
            "forward": lambda: native.forward(x, values, where, None).sum(),
            "grad_input": lambda: native.grad_input(dy, values, where).sum(),
            "grad_values": lambda: native.grad_values(x, dy, where, values.shape[-1], True)[0],
        }[product]


def _measure(work: Work, choices: Choices, seconds: float) -> Choice:
    """The fastest variant, or the default one where none is faster by the margin."""
    measured = replace(work, tokens=_measured_tokens(work))
    run, names, default = _Example.of(measured).run(work.product), choices.names(work), choices.default(work)
    before = choices.number(measured)
    order: list[int] = list(range(len(names)))
    taken: list[list[float]] = [[] for _ in names]
    threads = torch.get_num_threads()
    torch.set_num_threads(work.threads)
    try:
        start = time.perf_counter()
        for done in range(-1, ROUNDS):  # in the first round memory is got
            if done >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
                break
            for number in order:
                choices.use(measured, number)
                began = time.perf_counter()
                run()
                if done >= 0:
                    taken[number].append(time.perf_counter() - began)
            order = order[1:] + order[:1]  # no variant always comes after the same one
    finally:
        torch.set_num_threads(threads)
        choices.use(measured, before)
    fastest = min(order, key=lambda number: min(taken[number]))
    # In the even and in the odd rounds: what others do on the machine seldom helps the same variant twice.
    faster = all(min(taken[fastest][half::2]) < MARGIN * min(taken[default][half::2]) for half in (0, 1))
    least = {name: round(1e3 * min(seconds), 4) for name, seconds in zip(names, taken)}
    return Choice(work, names[fastest if faster else default], least)


def _measured_tokens(work: Work) -> int:
    return min(work.tokens, MOST_TOKENS)


def told(made: list[Choice], seconds: float) -> str:
    """What measuring came to, in one line."""
    if not made:
        return "sparse_ops: nothing to measure: of these products each has one way here"
    choices = native.choices()
    other = Counter(c.variant for c in made if c.variant != choices.names(c.work)[choices.default(c.work)])
    ways = ", ".join(f"{count} as `{name}`" for name, count in other.items()) or "none"
    return (
        f"sparse_ops: measured the ways of {len(made)} products in {seconds:.1f} s, once; otherwise than by default "
        f"are carried out: {ways} (with the same bits; python -m sparse_ops.tune shows them)"
    )


def table(choices: Choices) -> str:
    """One line a choice: milliseconds of every variant, the chosen one in brackets, the default one with a star.

    Milliseconds are of the tokens that were measured: "8192 of 131072", where the choice is for more.
    """
    wide = max([6, *(len(_tokens(choice.work)) for choice in choices)])
    lines = [f"{'product':>11} {'weight':>10} {'block':>5} {'sparsity':>8} {'tokens':>{wide}} threads level"]
    for choice in sorted(choices, key=lambda c: c.work.shape_class):
        w, default = choice.work, choices.names(choice.work)[choices.default(choice.work)]
        ways = [
            ("[{} {:.2f}]" if name == choice.variant else "{} {:.2f}").format(name + "*" * (name == default), ms)
            for name, ms in choice.milliseconds.items()
        ]
        sparsity = 1 - w.blocks * w.block**2 / (w.out * w.inp)
        lines.append(
            f"{w.product:>11} {f'{w.out}x{w.inp}':>10} {w.block:>5} {sparsity:>8.3f} {_tokens(w):>{wide}} "
            f"{w.threads:>7} {native.LEVELS[w.level]}{' bfloat16' * w.half}  {'  '.join(ways)}"
        )
    return "\n".join(lines)


def _tokens(work: Work) -> str:
    measured = _measured_tokens(work)
    return str(measured) if measured == work.tokens else f"{measured} of {work.tokens}"


def weight(text: str) -> tuple[int, int]:
    """OUTxIN of a command line."""
    if not re.fullmatch(r"[1-9][0-9]{0,6}x[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"expected OUTxIN, as 3072x768, found {text!r:.60}")
    out, inp = text.split("x")
    return int(out), int(inp)


def main(arguments: list[str]) -> int:
    """Show choices, after measuring what was asked for; exit status 1 without native kernels, 2 as with_one_line."""
    parser = Parser(prog="python -m sparse_ops.tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", nargs="*", type=weight, metavar="OUTxIN", help="measure products of such weights")
    parser.add_argument("--again", action="store_true", help="measure all that has been chosen at this level anew")
    parser.add_argument("--block", type=int, choices=BLOCK_SIZES, default=16)
    parser.add_argument("--sparsity", type=fraction, default=0.9)
    parser.add_argument("--tokens", type=whole_number(1, 1 << 30), default=4096, help="of a micro-batch")
    parser.add_argument("--bfloat16", action="store_true", help="default: float32")
    parser.add_argument(
        "--threads", type=whole_number(1, MOST_THREADS), default=torch.get_num_threads(), help="default: torch's"
    )
    options = parser.parse_args(arguments)
    if not native.needed():
        return 1
    take_threads(options.threads)
    keep_freed_memory()
    return with_one_line(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    level, wanted = native.level(), []
    for shape in options.weights:
        blocks = block_count(shape, options.block, options.sparsity, 1)
        wanted += works(shape, options.block, blocks, options.tokens, dtype)
    if options.again:
        wanted += [choice.work for choice in native.choices() if native.LEVELS[choice.work.level] == level]
    if wanted:
        start = time.monotonic()
        say(told(tune(wanted, again=True), time.monotonic() - start), sys.stderr)
    answer(f"{native.choices().path}\n{table(native.choices())}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
