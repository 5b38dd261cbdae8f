"""BlockSparseLinear: a linear layer whose weight exists only at its blocks, and whose blocks can be re-allocated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_ops.functional import block_linear
from sparse_ops.norms import block_norm
from sparse_ops.pattern import BlockIndex, BlockPattern, block_count, check_grid

PATTERNS = ("random", "magnitude")
_SIZES = "block_sparse_sizes"  # of a layer, [out, in], in a state dict's metadata


class BlockSparseLinear(nn.Module):
    """y = x W^T + bias with W [out, in] held as `values` [nnz, b, b], one block per slot; else as nn.Linear.

    Slots are fixed for the layer's life: `reallocate` moves some to other positions in place, so that no tensor changes
    shape and no parameter is replaced. `rows` and `cols` int32 [nnz] are in the state dict; the kernel index is
    rebuilt when they change. docs/library.md says what else works as for nn.Linear and what is refused.
    """

    rows: Tensor
    cols: Tensor
    row_ptr: Tensor
    _on_meta = False  # of layers that were pickled before there was one

    def __init__(
        self,
        in_features: int,
        out_features: int,
        block_size: int,
        sparsity: float,
        bias: bool = True,
        segments: int = 1,
        kernel: str = "auto",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A random pattern, uniform, of exactly (1 - sparsity) of each segment's blocks, and the start of
        `reset_parameters`; both are drawn from `generator`, by default torch's own.

        kernel: as in `block_linear`. Raises ValueError as `block_count` does.
        """
        super().__init__()
        self.in_features, self.out_features, self.block_size = in_features, out_features, block_size
        self.segments, self.kernel = segments, kernel
        count = block_count((out_features, in_features), block_size, sparsity, segments)
        self._allocate(count * segments, bias, device, dtype)
        self.reset_parameters(generator)

    @classmethod
    def from_pattern(
        cls,
        pattern: BlockPattern,
        bias: bool = True,
        kernel: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> BlockSparseLinear:
        """A layer with these positions, and the start of `reset_parameters`."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.out_features, layer.in_features = pattern.shape
        layer.block_size, layer.segments, layer.kernel = pattern.block_size, pattern.segments, kernel
        layer._allocate(pattern.nnz, bias, device, dtype)
        if not layer.rows.is_meta:
            layer._place(pattern)
        layer.reset_parameters()
        return layer

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        block_size: int,
        sparsity: float,
        pattern: str = "random",
        segments: int = 1,
        kernel: str = "auto",
        generator: torch.Generator | None = None,
    ) -> BlockSparseLinear:
        """A layer with the linear layer's bias, and its weights at some of its blocks, unchanged.

        pattern: "random" positions, drawn from `generator`, or in each segment those of largest "magnitude" (L1 norm).
        Raises ValueError for another pattern, and as `block_count` does.
        """
        if pattern not in PATTERNS:
            raise ValueError(f"pattern: expected one of {PATTERNS}, found {pattern!r}")
        weight = linear.weight.detach()
        shape = (linear.out_features, linear.in_features)
        if pattern == "magnitude" and not weight.is_meta:
            found = _largest_blocks(weight, block_size, sparsity, segments)
        else:
            with torch.device("cpu"):
                found = BlockPattern.random(shape, block_size, sparsity, generator or torch.default_generator, segments)
        layer = cls.from_pattern(found, linear.bias is not None, kernel, weight.device, weight.dtype)
        if not weight.is_meta:
            layer.from_dense(weight)
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(linear.bias)
            layer.bias.requires_grad_(linear.bias.requires_grad)
        layer.values.requires_grad_(linear.weight.requires_grad)
        return layer.train(linear.training)

    def _allocate(self, nnz: int, bias: bool, device: Any, dtype: torch.dtype | None) -> None:
        """Make every tensor, with nothing in it yet."""
        b, (n_rows, n_cols) = self.block_size, self._grid
        self.values = nn.Parameter(torch.empty(nnz, b, b, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        for name, length in zip(BlockIndex._fields, (nnz, nnz, n_rows + 1, nnz, n_cols + 1, nnz)):
            index = torch.empty(length, dtype=torch.int32, device=device)
            self.register_buffer(name, index, persistent=name in ("rows", "cols"))
        self._placed = False  # whether positions are known: not on the meta device, nor after to_empty from there
        self._on_meta = self.rows.is_meta  # its own tensors; torch.func may call it with others

    @property
    def _grid(self) -> tuple[int, int]:
        return check_grid((self.out_features, self.in_features), self.block_size, self.segments)

    @property
    def pattern(self) -> BlockPattern:
        """The present positions (a copy that later updates do not change). Raises ValueError when there are none."""
        self._check_placed()
        return self._pattern_of(self.rows, self.cols)

    @property
    def index(self) -> BlockIndex:
        """The kernel index of the present positions."""
        return BlockIndex(*(getattr(self, name) for name in BlockIndex._fields))

    def _check_placed(self) -> None:
        if not self._placed:
            raise ValueError(
                "BlockSparseLinear: expected positions, found none (made on the meta device): "
                "call reset_parameters or load_state_dict first"
            )

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """x [*, in] -> [*, out]; with `gelu` the GELU of it, made as results are written. Errors of `block_linear`."""
        if not (self._placed or self.rows.is_meta):
            handed_in = self._on_meta and not any(tensor.is_meta for tensor in self.index)
            if not handed_in:
                self._check_placed()
        return block_linear(x, self.values, self.index, self.bias, self.kernel, gelu)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw values and bias as nn.Linear does, uniform in +-1 / sqrt(fan-in), where an output's fan-in is the number
        of its weights that exist (all inputs where it has none). Positions stay; where there are none they are drawn.

        Raises ValueError where positions are to be drawn for segments that cannot have equally many blocks.
        """
        nnz = self.values.shape[0]
        if not (self._placed or self.rows.is_meta):
            if nnz % self.segments:
                raise ValueError(f"reset_parameters: expected {self.segments} equal segments, found {nnz} blocks")
            shape, source = (self.out_features, self.in_features), generator or torch.default_generator
            with torch.device("cpu"):
                count = nnz // self.segments
                self._place(BlockPattern.of_count(shape, self.block_size, count, source, self.segments))
        blocks = torch.diff(self.row_ptr)
        fan_in = torch.where(blocks > 0, blocks * self.block_size, self.in_features)
        wide = torch.promote_types(self.values.dtype, torch.float32)  # a fan-in is out of float16's range
        bound = fan_in.to(wide).rsqrt().to(self.values.dtype)
        self.values.uniform_(-1.0, 1.0, generator=generator)
        self.values.mul_(bound[self.rows.long()].view(nnz, 1, 1))
        if self.bias is not None:
            self.bias.uniform_(-1.0, 1.0, generator=generator)
            self.bias.mul_(bound.repeat_interleave(self.block_size))

    @torch.no_grad()
    def reallocate(self, slots: Tensor, rows: Tensor, cols: Tensor) -> None:
        """Move `slots` to the block positions (rows, cols), integers [n] each, and zero their values, in place.

        Raises ValueError, and changes nothing, when a position is taken or lies outside the slot's segment, when an
        argument is not of whole numbers or names a slot twice, and where values are no parameter but made of one, as by
        pruning: then what makes them would bring the old ones back.
        """
        if "values" not in self._parameters:
            raise ValueError("reallocate: expected values that are a parameter, found ones that something makes anew")
        pattern = self.pattern
        _check_moves(slots, rows, cols, pattern)
        slots = slots.long()  # torch takes other whole numbers for a mask, or not at all
        before = pattern.slot_segments()[slots]
        pattern.rows[slots], pattern.cols[slots] = rows.int(), cols.int()
        moved = BlockPattern(pattern.shape, pattern.block_size, pattern.rows, pattern.cols, pattern.segments)
        if not torch.equal(moved.slot_segments()[slots], before):
            raise ValueError("reallocate: expected every slot to stay in its segment, found one that leaves it")
        self._place(moved)
        self.values[slots] = 0.0

    @torch.no_grad()
    def _place(self, pattern: BlockPattern) -> None:
        with torch.device("cpu"):
            index = pattern.index()
        for name, tensor in zip(BlockIndex._fields, index):
            mine = getattr(self, name)
            if mine.is_meta:  # beside positions that load_state_dict(assign=True) has put there
                setattr(self, name, tensor.to(self.rows.device))
            else:
                mine.copy_(tensor)
        self._placed = True

    def _apply(self, fn: Any, *args: Any, **options: Any) -> BlockSparseLinear:
        """Positions outlive whatever is done to all tensors, to_empty too, but not the meta device."""
        before = self.pattern if self._placed else None
        super()._apply(fn, *args, **options)
        for name in BlockIndex._fields:
            self._buffers[name] = getattr(self, name).to(torch.int32)  # `.type` changes buffers of every kind
        self._placed, self._on_meta = False, self.rows.is_meta
        if before is not None and not self.rows.is_meta:
            self._place(before)
        return self

    def load_state_dict(self, state_dict: Any, strict: bool = True, *args: Any, **options: Any) -> Any:
        """As of every module, and a state dict that is refused has changed nothing.

        Raises RuntimeError for other keys (if strict) or shapes, as torch does; ValueError, as BlockPattern does, for
        positions that a pattern cannot have, and where values come without their positions or positions without values.
        """
        mine = self.state_dict()
        if strict and state_dict.keys() != mine.keys():
            expected, found = sorted(mine), sorted(state_dict)
            raise RuntimeError(f"state dict of BlockSparseLinear: expected the keys {expected}, found {found}")
        return super().load_state_dict(state_dict, strict, *args, **options)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:  # where torch keeps a module's version: the keys are as ever
            metadata.setdefault(prefix[:-1], {})[_SIZES] = [self.out_features, self.in_features]

    def _state(self) -> dict[str, Tensor]:
        parameters = {name: p for name, p in self._parameters.items() if p is not None}
        return {**parameters, "rows": self.rows, "cols": self.cols}

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """What torch calls for the layer in a model. Nothing is copied unless all of it fits."""
        mine = self._state()
        found = {name: state_dict[prefix + name] for name in mine if prefix + name in state_dict}
        assign = local_metadata.get("assign_to_params_buffers", False)
        wrong = [x for name, tensor in found.items() for x in _problems(prefix + name, tensor, mine[name], assign)]
        sizes = [self.out_features, self.in_features]
        if "rows" in found and local_metadata.get(_SIZES, sizes) != sizes:  # as many blocks, and they may fit
            wrong.append(f"{prefix}rows: expected those of a layer {sizes}, found those of {local_metadata[_SIZES]}")
        if wrong:
            error_msgs += wrong
            return
        together = [name for name in ("values", "rows", "cols") if name in found]
        if len(together) in (1, 2) and "values" in mine:
            raise ValueError(f"{prefix}values, rows and cols belong together: expected all, found {together} only")
        pattern = None
        if "rows" in found and (assign or not self.rows.is_meta):
            try:
                pattern = self._pattern_of(found["rows"], found["cols"])
            except ValueError as error:
                raise ValueError(f"{prefix.rstrip('.') or 'state dict'}: {error}") from None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if pattern is not None:
            if assign:  # positions of its own, since reallocate writes to them
                self.rows, self.cols = self.rows.clone(), self.cols.clone()
            self._place(pattern)

    def _pattern_of(self, rows: Tensor, cols: Tensor) -> BlockPattern:
        shape = (self.out_features, self.in_features)
        return BlockPattern(shape, self.block_size, rows.cpu().clone(), cols.cpu().clone(), self.segments)

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """The dense weight [out, in] of the values' dtype; for export and tests, never while training."""
        self._check_placed()
        dense = self.values.new_zeros(self.out_features, self.in_features)
        as_blocks(dense, self.block_size)[self.rows.long(), self.cols.long()] = self.values
        return dense

    @torch.no_grad()
    def from_dense(self, weight: Tensor) -> None:
        """Take the values at this layer's blocks from a dense weight [out, in]; what lies elsewhere is left out.

        Raises ValueError when the weight has another shape.
        """
        self._check_placed()
        if tuple(weight.shape) != (self.out_features, self.in_features):
            raise ValueError(f"weight: expected [{self.out_features}, {self.in_features}], found {list(weight.shape)}")
        self.values.copy_(as_blocks(weight, self.block_size)[self.rows.long(), self.cols.long()])

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, block_size={self.block_size}, "
            f"blocks={self.values.shape[0]}, segments={self.segments}, bias={self.bias is not None}"
        )


def _check_moves(slots: Tensor, rows: Tensor, cols: Tensor, pattern: BlockPattern) -> None:
    """Raises ValueError where these are no moves of a pattern's slots; whether places are free is seen later."""
    limits = {"slots": pattern.nnz, "rows": pattern.grid[0], "cols": pattern.grid[1]}
    for (name, limit), found in zip(limits.items(), (slots, rows, cols)):
        if found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool or found.dim() != 1:
            raise ValueError(
                f"reallocate: expected {name} of whole numbers [n], found {found.dtype} {list(found.shape)}"
            )
        if found.numel() != slots.numel():
            raise ValueError(f"reallocate: expected {slots.numel()} {name}, found {found.numel()}")
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < limit:
            raise ValueError(
                f"reallocate: expected {name} of 0 to {limit - 1}, found {int(found.min())} to {int(found.max())}"
            )
    if slots.unique().numel() != slots.numel():
        raise ValueError("reallocate: expected every slot once, found one twice")


def _problems(name: str, found: Any, mine: Tensor, assign: bool) -> list[str]:
    """Why a tensor of a state dict cannot be copied into one of a layer, or assigned in its place: a line, or none."""
    if not isinstance(found, Tensor):
        return [f"{name}: expected a tensor, found {type(found).__name__}"]
    if found.shape != mine.shape:
        return [f"size mismatch for {name}: expected {list(mine.shape)}, found {list(found.shape)}"]
    try:
        if assign and isinstance(mine, nn.Parameter):
            nn.Parameter(found, mine.requires_grad)
        else:
            torch.empty_like(mine).copy_(found.detach())
    except RuntimeError as error:  # NotImplementedError is one
        return [f"{name}: expected numbers for {mine.dtype} on {mine.device}: {str(error).splitlines()[0]:.200}"]
    return []


def as_blocks(weight: Tensor, b: int) -> Tensor:
    """A dense weight [out, in] as blocks [out / b, in / b, b, b]: a view of it where it is contiguous."""
    return weight.reshape(weight.shape[0] // b, b, weight.shape[1] // b, b).transpose(1, 2)


def _largest_blocks(weight: Tensor, block_size: int, sparsity: float, segments: int) -> BlockPattern:
    """The positions of the blocks of largest L1 norm in each segment of a dense weight [out, in]."""
    shape = (weight.shape[0], weight.shape[1])
    count = block_count(shape, block_size, sparsity, segments)
    norms = block_norm(as_blocks(weight, block_size), 1.0).cpu()
    n_cols, of_segment = norms.shape[1], norms.reshape(segments, -1)
    best = of_segment.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
    keys = (best + torch.arange(segments).unsqueeze(1) * of_segment.shape[1]).flatten()
    return BlockPattern(shape, block_size, (keys // n_cols).int(), (keys % n_cols).int(), segments)
