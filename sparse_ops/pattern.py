"""Where the blocks of a block-sparse weight are: positions, exact counts, validation, kernel index, checksum."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_SIZES = (1, 4, 8, 16)


class BlockIndex(NamedTuple):
    """The blocks of a pattern in compressed form, by row and by column; every tensor is int32.

    A kernel walks a block row r through `row_slots[row_ptr[r]:row_ptr[r + 1]]`, which holds slot numbers sorted by
    (row, col), and a block column through its transpose. Values are never copied into either order.
    """

    rows: Tensor  # [nnz] block row of each slot
    cols: Tensor  # [nnz] block column of each slot
    row_ptr: Tensor  # [R + 1]
    row_slots: Tensor  # [nnz]
    col_ptr: Tensor  # [C + 1]
    col_slots: Tensor  # [nnz]

    @property
    def grid(self) -> tuple[int, int]:
        """Block rows and block columns (R, C)."""
        return self.row_ptr.numel() - 1, self.col_ptr.numel() - 1


@dataclass(frozen=True, eq=False)
class BlockPattern:
    """Positions of the non-zero blocks of a weight [out, in], one per slot, in any order.

    shape: (out, in) in elements. rows, cols: int32 [nnz] block coordinates on the CPU, unique as pairs.
    segments: equal horizontal parts of the weight (3 for query, key and value); each keeps its own block count.
    Raises ValueError when a size, a dtype or a position is wrong.
    """

    shape: tuple[int, int]
    block_size: int
    rows: Tensor
    cols: Tensor
    segments: int = 1

    def __post_init__(self) -> None:
        grid = check_grid(self.shape, self.block_size, self.segments)
        for name, index, limit in (("rows", self.rows, grid[0]), ("cols", self.cols, grid[1])):
            if index.dtype != torch.int32 or index.dim() != 1 or index.shape != self.rows.shape:
                raise ValueError(
                    f"pattern {name}: expected int32 [{self.rows.numel()}], found {index.dtype} {list(index.shape)}"
                )
            if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < limit):
                raise ValueError(
                    f"pattern {name}: expected block coordinates in [0, {limit}), "
                    f"found {int(index.min())} to {int(index.max())}"
                )
        keys = self.keys().sort().values
        if bool((keys[1:] == keys[:-1]).any()):
            twice = int(keys[1:][keys[1:] == keys[:-1]][0])
            raise ValueError(f"pattern: block (row {twice // grid[1]}, col {twice % grid[1]}) has two slots")

    @property
    def grid(self) -> tuple[int, int]:
        """Block rows and block columns (R, C)."""
        return self.shape[0] // self.block_size, self.shape[1] // self.block_size

    @property
    def nnz(self) -> int:
        """Number of blocks (not of elements)."""
        return self.rows.numel()

    @property
    def density(self) -> float:
        """Share of the weight's elements that exist."""
        return self.nnz * self.block_size**2 / (self.shape[0] * self.shape[1])

    def keys(self) -> Tensor:
        """Row-major number of each slot's position in the block grid; int64 [nnz]."""
        return self.rows.long() * self.grid[1] + self.cols.long()

    def slot_segments(self) -> Tensor:
        """The segment each slot lies in; int64 [nnz]."""
        return self.rows.long() // (self.grid[0] // self.segments)

    def index(self) -> BlockIndex:
        """Build the kernel index; done once per pattern change, O(nnz log nnz)."""
        n_rows, n_cols = self.grid
        return BlockIndex(
            self.rows,
            self.cols,
            _pointer(self.rows, n_rows),
            torch.argsort(self.keys()).int(),
            _pointer(self.cols, n_cols),
            torch.argsort(self.cols.long() * n_rows + self.rows.long()).int(),
        )

    def checksum(self) -> str:
        """SHA-256 of shape, block size, segments and positions in slot order: equal on every rank or the run stops."""
        digest = hashlib.sha256(repr((tuple(self.shape), self.block_size, self.segments)).encode())
        digest.update(self.rows.contiguous().numpy().tobytes())
        digest.update(self.cols.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def random(
        cls,
        shape: tuple[int, int],
        block_size: int,
        sparsity: float,
        generator: torch.Generator,
        segments: int = 1,
    ) -> BlockPattern:
        """Uniformly random pattern with exactly `block_count` blocks in every segment (Algorithm 1, initialise).

        Raises ValueError as `block_count` does.
        """
        return cls.of_count(shape, block_size, block_count(shape, block_size, sparsity, segments), generator, segments)

    @classmethod
    def of_count(
        cls, shape: tuple[int, int], block_size: int, count: int, generator: torch.Generator, segments: int = 1
    ) -> BlockPattern:
        """Uniformly random pattern with `count` blocks in every segment. Raises ValueError when they do not fit."""
        n_rows, n_cols = check_grid(shape, block_size, segments)
        positions = n_rows // segments * n_cols
        keys = torch.cat(
            [sample_distinct(positions, count, generator).sort().values + s * positions for s in range(segments)]
        )
        return cls(shape, block_size, (keys // n_cols).int(), (keys % n_cols).int(), segments)


def check_grid(shape: tuple[int, int], block_size: int, segments: int = 1) -> tuple[int, int]:
    """Block rows and columns (R, C) of a weight [out, in]. Raises ValueError that says what does not divide."""
    out_features, in_features = shape
    sizes = {"block size": block_size, "segments": segments, "outputs": out_features, "inputs": in_features}
    for name, size in sizes.items():  # 8.0 and True are equal to numbers that would do
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise ValueError(f"{name}: expected a whole number, found {size!r}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block size: expected one of {BLOCK_SIZES}, found {block_size}")
    if segments < 1 or out_features % (segments * block_size) or out_features < 1:
        raise ValueError(
            f"weight [{out_features}, {in_features}]: expected rows in a multiple of {segments} segment(s) x "
            f"block size {block_size}, found {out_features}"
        )
    if in_features % block_size or in_features < 1:
        raise ValueError(
            f"weight [{out_features}, {in_features}]: expected columns in a multiple of block size {block_size}, "
            f"found {in_features}"
        )
    return out_features // block_size, in_features // block_size


def block_count(shape: tuple[int, int], block_size: int, sparsity: float, segments: int = 1) -> int:
    """Blocks that each segment of a weight keeps: (1 - sparsity) of its positions, to the nearest whole block.

    Raises ValueError for a sparsity outside [0, 1) or one that leaves no block, and as `check_grid` does.
    """
    n_rows, n_cols = check_grid(shape, block_size, segments)
    if not isinstance(sparsity, Real) or not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity: expected a number in [0, 1), found {sparsity!r}")
    positions = n_rows // segments * n_cols
    count = int((1.0 - sparsity) * positions + 0.5)
    if count < 1:
        raise ValueError(
            f"sparsity {sparsity} leaves no {block_size}x{block_size} block of the {positions} in a weight segment "
            f"[{shape[0] // segments}, {shape[1]}]: expected at least one"
        )
    return count


def sample_distinct(population: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers from range(population), every subset equally likely; int64 [count], random order.

    Needs memory in proportion to `count`: with 1x1 blocks the population is a dense weight's size. Raises ValueError
    when `count` is larger than the population.
    """
    if not 0 <= count <= population:
        raise ValueError(f"sample: expected at most {population} distinct numbers, found {count}")
    if 2 * count > population:
        return torch.randperm(population, generator=generator)[:count]
    chosen = torch.empty(0, dtype=torch.int64)
    while chosen.numel() < count:  # the first `count` different numbers of a stream of uniform draws
        draws = torch.randint(population, (count + count // 4 + 8,), generator=generator)
        chosen = torch.cat([chosen, draws])
        values, order = chosen.sort(stable=True)
        first = torch.ones_like(values, dtype=torch.bool)
        first[1:] = values[1:] != values[:-1]
        chosen = chosen[order[first].sort().values]
    return chosen[:count]


def free_positions(taken: Tensor, ranks: Tensor) -> Tensor:
    """The positions of given rank among those not taken: int64 [n] from sorted unique `taken` [k] and any `ranks` [n].

    Rank r is the r-th free position in row-major order. The free ones are never listed, so memory follows the
    number of blocks and not the size of the grid.
    """
    free_before = taken - torch.arange(taken.numel())
    return ranks + torch.searchsorted(free_before, ranks, right=True)


def _pointer(index: Tensor, length: int) -> Tensor:
    pointer = torch.zeros(length + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(index.long(), minlength=length), 0, out=pointer[1:])
    return pointer.int()


def named_generator(*parts: object) -> torch.Generator:
    """A CPU generator that depends on plain values alone: not on process, machine, or what was drawn before."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    # torch's CPU generator is seeded by 32 bits; more would be cut off silently.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
