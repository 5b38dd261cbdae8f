"""The placement that `ipu.layers_per_ipu: auto` stands for: of all that fit, the one of the fewest estimated cycles.

The estimate is that of cycles.py, times what the pipeline's schedule makes of it: a step is as many micro-batches as
are accumulated, and as many more as the pipeline takes to fill and to empty, each as long as the busiest IPU's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Collection, Iterator

from ipu_bert.settings import Config
from ipu_bert.sizes.cycles import head_cycles, layer_cycles
from ipu_bert.sizes.padding import figures, product_of
from ipu_bert.sizes.placement import HEADROOM, IPU_BYTES, MOMENT_BYTES, place, value_bytes
from ipu_bert.sizes.shape import bert_shape
from ipu_bert.sizes.stages import minimum_accumulation, pipeline_stages
from ipu_bert.sizes.weights import encoder_weights

SHOWN = 3  # other placements that a choice is compared with


@dataclass(frozen=True)
class Candidate:
    """A placement of one batch; cycles: of a step, estimated."""

    layers: tuple[int, ...]
    replicas: int
    micro_batch_size: int
    gradient_accumulation: int
    cycles: float

    def applied(self, config: Config) -> Config:
        """The config with these values written out."""
        ipu = replace(
            config.ipu,
            layers_per_ipu=list(self.layers),
            replicas=self.replicas,
            gradient_accumulation=self.gradient_accumulation,
        )
        return replace(config, ipu=ipu, train=replace(config.train, micro_batch_size=self.micro_batch_size))

    def __str__(self) -> str:
        return (
            f"ipu.replicas {self.replicas} of ipu.layers_per_ipu {list(self.layers)}, ipu.gradient_accumulation "
            f"{self.gradient_accumulation} of train.micro_batch_size {self.micro_batch_size}"
        )


@dataclass(frozen=True)
class Choice:
    """The best placement, and why: lines of text for a reader."""

    best: Candidate
    lines: tuple[str, ...]


def choose(config: Config, fixed: Collection[str]) -> Choice:
    """The best placement of a checked config on `ipu.ipus` IPUs that leaves the settings named in `fixed` as they are.

    fixed: of `ipu.replicas`, `ipu.gradient_accumulation` and `train.micro_batch_size`. An IPU may be filled to
    HEADROOM. Raises ValueError where nothing fits.
    """
    found = sorted(_candidates(config, fixed), key=lambda c: (c.cycles, len(c.layers), -c.micro_batch_size))
    fitting = (candidate for candidate in found if _fullest(candidate, config) <= HEADROOM)
    best = next(fitting, None)
    if best is None:
        raise ValueError(
            f"ipu.layers_per_ipu: expected a placement on {config.ipu.ipus} IPUs that fills the pipeline with "
            f"train.batch_size {config.train.batch_size} and each IPU to at most {HEADROOM:.0%}, found none among "
            f"{len(found)}: change ipu.ipus or train.batch_size, or write the placement out"
        )
    others: dict[int, Candidate] = {len(best.layers): best}
    for candidate in found:
        if len(candidate.layers) not in others and _fullest(candidate, config) <= HEADROOM:
            others[len(candidate.layers)] = candidate
    return Choice(best, tuple(_lines(config, best, list(others.values())[1 : SHOWN + 1])))


def _lines(config: Config, best: Candidate, others: list[Candidate]) -> Iterator[str]:
    yield f"for {config.ipu.ipus} IPUs: {best}"
    yield (
        f"{best.cycles / 1e6:,.1f} million cycles a step are estimated, as popsparse's planner expects of sparse "
        "products and at the peak rate of dense ones; nothing else is counted, nothing was measured"
    )
    yield (
        f"the fullest IPU is filled to {_fullest(best, config):.0%} by what is counted, of at most {HEADROOM:.0%}; "
        f"{_moved(best, config)}"
    )
    for other in others:
        yield f"{other.cycles / best.cycles:.2f} times the cycles: {other}; {_moved(other, config)}"


def _fullest(candidate: Candidate, config: Config) -> float:
    """Share of the fullest IPU that counted memory fills."""
    placement = place(candidate.applied(config), config.data.vocab_size)
    return max(placement.ipu_memory(ipu) for ipu in range(placement.ipus)) / IPU_BYTES


def _moved(candidate: Candidate, config: Config) -> str:
    """What a step moves beside its cycles, by the IPU with the most parameters; padding is left out."""
    placement = place(candidate.applied(config), config.data.vocab_size)
    gradients = max(sum(s.gradients for s in placement.stages if s.ipu == ipu) for ipu in range(placement.ipus))
    moved = [f"{gradients / 1e6:,.0f} MB of gradients are summed over replicas"] if candidate.replicas > 1 else []
    if config.ipu.optimizer_off_chip:
        shared = candidate.replicas if config.ipu.optimizer_sharded else 1
        moments = gradients / value_bytes(config) * MOMENT_BYTES / shared
        moved.append(f"{moments / 1e6:,.0f} MB of moments come from the host and go back")
    return f"in every step {' and '.join(moved)}" if moved else "no state moves between steps"


def _candidates(config: Config, fixed: Collection[str]) -> Iterator[Candidate]:
    shape = bert_shape(config.model, config.data.vocab_size)
    weights = encoder_weights(config.model, config.sparsity)
    cuts = list(_cuts(config, fixed))
    for size in sorted({size for _, sizes in cuts for size in sizes}):
        sized = replace(config, train=replace(config.train, micro_batch_size=size))
        layers = [layer_cycles(sized, shape, [w for w in weights if w.layer == i]) for i in range(shape.layers)]
        heads = head_cycles(sized, shape)
        for cut, sizes in cuts:
            replicas = config.ipu.ipus // len(cut)
            accumulation = config.train.batch_size // (replicas * size)
            if size not in sizes or accumulation < minimum_accumulation(cut):
                continue
            if "ipu.gradient_accumulation" in fixed and accumulation != config.ipu.gradient_accumulation:
                continue
            stages = pipeline_stages(cut)
            work = [0.0] * len(cut)
            for stage in stages:
                work[stage.ipu] += sum(layers[i] for i in stage.layers) + (heads if stage.heads else 0.0)
            cycles = (accumulation + 2 * (len(stages) - 1)) * max(work)
            yield Candidate(cut, replicas, size, accumulation, cycles)


def _cuts(config: Config, fixed: Collection[str]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Layers of each IPU, and the micro-batches that a replica's part of the batch can be cut into.

    All IPUs are used. The first, with embeddings and heads, has at most its share of the layers, and the last ones have
    what does not divide, since fewer micro-batches wait there.
    """
    ipus, layers, batch = config.ipu.ipus, config.model.layers, config.train.batch_size
    for size in range(1, min(ipus, layers + 1) + 1):
        replicas = ipus // size
        if ipus % size or batch % replicas or ("ipu.replicas" in fixed and replicas != config.ipu.replicas):
            continue
        sizes = [n for n in range(1, batch // replicas + 1) if batch // replicas % n == 0 and _usual(config, fixed, n)]
        for first in range(layers // size + 1) if size > 1 else ():
            least, over = divmod(layers - first, size - 1)
            yield (first, *[least] * (size - 1 - over), *[least + 1] * over), sizes
        if size == 1:
            yield (layers,), sizes


def _usual(config: Config, fixed: Collection[str], size: int) -> bool:
    """Whether anything is known of a micro-batch of this size.

    Where it is written, that one; without sparse weights the config's, since nothing here says how dense products slow
    down with fewer rows; else what has as many rows as products that the planner was asked about.
    """
    sparse = [weight for weight in encoder_weights(config.model, config.sparsity) if weight.is_sparse]
    if "train.micro_batch_size" in fixed or not sparse:
        return size == config.train.micro_batch_size
    known = [product.rows for product in figures()[product_of(sparse[0], config)[:2]]]
    return min(known) <= size * config.data.sequence_length <= max(known)
