"""Runs against the curve of a dense family: loss at equal cost, and cost at equal loss (Figure 3, Tables 1 and A.8)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Sequence

from ipu_bert.sizes.flops import dense_family, interpolate_cost, interpolate_loss

PAPER_SEQUENCES = 757_000 * 512  # of one of the paper's runs
BELOW = "no dense run comes to it, the costlier ones neither"
FAR = "too far from the dense runs"


@dataclass(frozen=True)
class Point:
    """A run, or a mean of some. cost: FLOPs or seconds of the whole run. loss: held-out masked LM [nats]."""

    label: str
    cost: float
    loss: float
    dense: bool


@dataclass(frozen=True)
class Matched:
    """A point against the family. loss: the family's at this cost. cost: the family's at this loss; each is None where
    the family's curve does not say it; no_cost: why not. cost_inside, loss_inside: whether the point's lie between
    those of members of the family, so that the family's other number there does, too.
    """

    point: Point
    loss: float | None
    cost: float | None
    cost_inside: bool
    loss_inside: bool
    no_cost: str

    @property
    def inside(self) -> bool:
        """Whether both do."""
        return self.cost_inside and self.loss_inside

    @property
    def cost_ratio(self) -> float | None:
        """Cost over the family's at equal loss: below 1 the point wins; over FLOPs, 1 / epsilon_critical (Eq. 7)."""
        return None if self.cost is None else self.point.cost / self.cost

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
    curve = _Curve(undominated(family), max((member.cost for member in family), default=0.0))
    if len(curve.members) < 2:
        return []
    return [curve.matched(point) for point in points if not point.dense]


@dataclass(frozen=True)
class _Curve:
    """A family's `members` by rising cost and falling loss; `most`: the cost of the costliest of all that were run.

    Outside the members the nearest line is continued by the whole curve's length in log cost, and no farther: members
    of all but equal cost have a line of any slope. Where costlier ones than the last were run and came to no lower
    loss, nothing goes down there.
    """

    members: Sequence[Point]
    most: float

    def matched(self, point: Point) -> Matched:
        """A point against this curve."""
        first, last = self.members[0], self.members[-1]
        below = self._ends and point.loss < last.loss
        cost = None if below else self._cost(point.loss)
        cost_inside, loss_inside = first.cost <= point.cost <= self.most, last.loss <= point.loss <= first.loss
        no_cost = BELOW if below else FAR if cost is None else ""
        return Matched(point, self._loss(point.cost), cost, cost_inside, loss_inside, no_cost)

    @property
    def _pairs(self) -> list[tuple[float, float]]:
        return [(member.cost, member.loss) for member in self.members]

    @property
    def _ends(self) -> bool:
        return self.most > self.members[-1].cost

    def _loss(self, cost: float) -> float | None:
        if self._ends and cost > self.members[-1].cost:
            return self.members[-1].loss if cost <= self.most else None
        return interpolate_loss(self._pairs, cost) if self._is_near(cost) else None

    def _cost(self, loss: float) -> float | None:
        cost = interpolate_cost(self._pairs, loss)
        return cost if self._is_near(cost) else None

    def _is_near(self, cost: float) -> bool:
        low, high = (math.log(self.members[i].cost) for i in (0, -1))
        return cost > 0 and 2 * low - high <= math.log(cost) <= 2 * high - low


def table(name: str, found: Sequence[Matched]) -> list[str]:
    """Lines of Markdown, none where nothing was matched; name: of the cost."""
    if not found:
        return []
    lines = [
        f"Against the dense family's line over {name}, straight in log and log as the paper has it:",
        "",
        "| | loss | dense at equal cost | cost | dense at equal loss | ratio | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        loss, cost = (_or_dash(one.loss, ".4f"), _or_dash(one.cost, ".3g"))
        lines.append(
            f"| {one.point.label} | {one.point.loss:.4f} | {loss} | {one.point.cost:.3g} | {cost} "
            f"| {_or_dash(one.cost_ratio, '.2f')} | {_verdict(one)} |"
        )
    return [*lines, ""]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _verdict(one: Matched) -> str:
    """Of the ratio, which hangs on the family's cost at this loss alone; then what is read off its continued line."""
    ratio = one.cost_ratio
    if ratio is None:
        return one.no_cost
    words = f"wins by {1 / ratio:.2f}" if ratio < 1 else f"loses by {ratio:.2f}"
    if not one.loss_inside:
        return words + ", beyond the dense runs"
    return words + ("" if one.cost_inside or one.loss is None else "; dense at equal cost: beyond the dense runs")
