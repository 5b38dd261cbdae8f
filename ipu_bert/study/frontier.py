"""Runs against the curve of a dense family: loss at equal cost, and cost at equal loss (Figure 3, Tables 1 and A.8)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Sequence

from ipu_bert.sizes.flops import dense_family, interpolate_cost, interpolate_loss

PAPER_SEQUENCES = 757_000 * 512  # of one of the paper's runs


@dataclass(frozen=True)
class Point:
    """A run, or a mean of some. cost: FLOPs or seconds of the whole run. loss: held-out masked LM [nats]."""

    label: str
    cost: float
    loss: float
    dense: bool


@dataclass(frozen=True)
class Matched:
    """A point against the family. loss: the family's at this cost. cost: the family's at this loss. inside: whether
    both lie between members of the family; else its nearest line is continued.
    """

    point: Point
    loss: float
    cost: float
    inside: bool

    @property
    def cost_ratio(self) -> float:
        """Cost over the family's at equal loss: below 1 the point wins; over FLOPs, 1 / epsilon_critical (Eq. 7)."""
        return self.point.cost / self.cost

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        point = asdict(self.point)
        return {
            **point,
            "family_loss_at_equal_cost": self.loss,
            "family_cost_at_equal_loss": self.cost,
            "cost_ratio": self.cost_ratio,
            "inside": self.inside,
        }


def paper_family() -> list[Point]:
    """The paper's dense models, over the FLOPs of their whole runs."""
    return [Point("the paper's dense", flops * PAPER_SEQUENCES, loss, True) for flops, loss in dense_family()]


def undominated(points: Sequence[Point]) -> list[Point]:
    """Those to which no other is better in one of cost and loss and as good in the other, by rising cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def match(points: Sequence[Point], family: Sequence[Point]) -> list[Matched]:
    """Each point that is not dense against the undominated of the family.

    By the paper's rule: straight lines in log cost and log loss. Empty where fewer than two of the family are
    undominated: there is no curve then.
    """
    curve = undominated(family)
    if len(curve) < 2:
        return []
    pairs = [(member.cost, member.loss) for member in curve]
    return [
        Matched(
            point,
            interpolate_loss(pairs, point.cost),
            interpolate_cost(pairs, point.loss),
            curve[0].cost <= point.cost <= curve[-1].cost and curve[-1].loss <= point.loss <= curve[0].loss,
        )
        for point in points
        if not point.dense
    ]


def table(name: str, found: Sequence[Matched]) -> list[str]:
    """Lines of Markdown; name: of the cost. None where nothing was matched."""
    if not found:
        return []
    lines = [
        f"Against the dense family's line over {name}, straight in log and log as the paper has it:",
        "",
        "| | loss | dense at equal cost | cost | dense at equal loss | ratio | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        verdict = f"wins by {1 / one.cost_ratio:.2f}" if one.cost_ratio < 1 else f"loses by {one.cost_ratio:.2f}"
        beyond = "" if one.inside else ", beyond the dense runs"
        lines.append(
            f"| {one.point.label} | {one.point.loss:.4f} | {one.loss:.4f} | {one.point.cost:.3g} | {one.cost:.3g} "
            f"| {one.cost_ratio:.2f} | {verdict}{beyond} |"
        )
    return [*lines, ""]
