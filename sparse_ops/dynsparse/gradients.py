"""The dense gradient's largest free blocks of a whole step, found while its backward passes run.

The dense gradient dY^T X of a weight is never formed: of one micro-batch it is made strip by strip, and a strip goes
when its best blocks are known. The largest blocks of a sum cannot be told from the largest ones of its parts, so where
a step has several micro-batches, all of them are run PORTIONS times, and each time another part of every weight's
strips is summed over them. Dropout draws the same masks each time. Peak memory: an eighth of the sparse weights' dense
gradients together and one strip, in float32; at a sparsity of 0.9 that is about what the weights' own gradient takes.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager, nullcontext
from typing import Callable, ContextManager, Iterator, Mapping

import torch
from torch import Tensor

from sparse_ops.functional import observe_gradients
from sparse_ops.linear import BlockSparseLinear
from sparse_ops.norms import BlockNorm, GradientBlocks, LargestBlocks
from sparse_ops.pattern import BlockIndex
from sparse_ops.reference import dense_gradient_strip, strips

PORTIONS = 8


class GradientSearch:
    """Finds each layer's largest free blocks of one step's gradient.

    counts: per layer how many free positions of a segment are wanted. several: whether the step has more than one
    micro-batch, each of which has one backward pass in each of `passes`. loss_scale: the factor that the loss has; it
    is taken out before norms are made, as squares would overflow with it. sum_: puts the sum over all processes that
    have micro-batches of the step in a tensor's place; all of them search, and find the same. timed: makes a context
    for each piece of work of the search's own, which is done inside backward passes and after them.
    """

    def __init__(
        self,
        layers: Mapping[str, BlockSparseLinear],
        counts: Mapping[str, int],
        norm: BlockNorm,
        several: bool,
        loss_scale: float,
        sum_: Callable[[Tensor], None],
        timed: Callable[[], ContextManager[None]] = nullcontext,
    ) -> None:
        self._timed = timed
        self._layers, self._several, self._sum, self._loss_scale = layers, several, sum_, loss_scale
        self.observed: Counter[str] = Counter()  # products of each layer in backward passes
        self._names = {layer.rows.data_ptr(): name for name, layer in layers.items()}
        self._largest = {name: LargestBlocks(layer.pattern, counts[name], norm) for name, layer in layers.items()}

    def passes(self) -> Iterator[ContextManager[None]]:
        """Contexts in each of which all of the step's micro-batches are to be run forward and backward."""
        portions = PORTIONS if self._several else 1
        return (self._pass(portion, portions) for portion in range(portions))

    def found(self) -> dict[str, GradientBlocks]:
        """Per layer, after all passes."""
        return {name: largest.found() for name, largest in self._largest.items()}

    @contextmanager
    def _pass(self, portion: int, portions: int) -> Iterator[None]:
        """Take part number `portion` of every layer's strips into account."""
        chosen = {}
        for name, layer in self._layers.items():
            every = list(strips(layer.index, layer.block_size, layer.segments))
            chosen[name] = every[portion * len(every) // portions : (portion + 1) * len(every) // portions]
        sums: dict[str, list[Tensor]] = {}

        def observer(index: BlockIndex, x: Tensor, dy: Tensor) -> None:
            name = self._names.get(index.rows.data_ptr())
            if name is None:  # a layer that nobody asked for
                return
            self.observed[name] += 1
            with self._timed(), torch.no_grad():
                x, dy = (tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in (x, dy))
                if self._loss_scale != 1.0:
                    dy = dy / self._loss_scale
                for number, strip in enumerate(chosen[name]):
                    blocks = dense_gradient_strip(x, dy, strip, self._layers[name].block_size)
                    if not self._several:
                        self._largest[name].add(strip, blocks)
                    elif number < len(sums.setdefault(name, [])):
                        sums[name][number] += blocks
                    else:
                        sums[name].append(blocks)

        with observe_gradients(observer):
            yield
        with self._timed():
            for name in [name for name in chosen if name in sums]:  # in the order that every process has
                for strip, blocks in zip(chosen[name], sums.pop(name)):
                    self._sum(blocks)
                    self._largest[name].add(strip, blocks)


@contextmanager
def record_gradient_blocks(
    layers: Mapping[str, BlockSparseLinear],
    counts: Mapping[str, int] | None,
    norm: BlockNorm,
    loss_scale: float = 1.0,
) -> Iterator[dict[str, GradientBlocks]]:
    """A dict that has each layer's largest free blocks of the one backward pass inside the context, once it is left.

    counts: per layer how many free positions of a segment are wanted, as `PatternUpdater.gradient_counts` says; None:
    nothing is recorded. loss_scale: the factor that the loss of the pass has; it is taken out before norms are made, as
    the l2 norm squares, and overflows with it. Raises ValueError for one that is not above 0 and finite, and, when the
    context is left, for a layer that was not in the pass exactly once: gradients of torch.func, and those with a graph
    of their own, are not seen.
    """
    if not 0.0 < loss_scale < math.inf:
        raise ValueError(f"loss_scale: expected a finite number above 0, found {loss_scale}")
    found: dict[str, GradientBlocks] = {}
    if counts is None:
        yield found
        return
    search = GradientSearch(layers, counts, norm, several=False, loss_scale=loss_scale, sum_=lambda tensor: None)
    (one,) = search.passes()
    with one:
        yield found
    for name in layers:
        if search.observed[name] != 1:
            wanted = "one backward pass (of backward() or autograd.grad, without create_graph) that it is in once"
            raise ValueError(f"{name}: expected {wanted}, found {search.observed[name]}")
    found.update(search.found())
