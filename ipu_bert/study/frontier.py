"""Runs against the curve of a dense family: loss at equal cost, and cost at equal loss (Figure 3, Tables 1 and A.8)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Sequence

from ipu_bert.sizes.flops import dense_family, interpolate_cost, interpolate_loss

PAPER_SEQUENCES = 757_000 * 512  # of one of the paper's runs
FARTHEST = 1e6  # times above or below all of the family: beyond, its line says nothing


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
    both lie between members of the family; else its nearest line is continued, and what it comes to beyond FARTHEST, as
    it does where two of the family have all but equal losses, is None.
    """

    point: Point
    loss: float | None
    cost: float | None
    inside: bool

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
    curve = undominated(family)
    if len(curve) < 2:
        return []
    pairs = [(member.cost, member.loss) for member in curve]
    return [
        Matched(
            point,
            _near(interpolate_loss(pairs, point.cost), [loss for _, loss in pairs]),
            _near(interpolate_cost(pairs, point.loss), [cost for cost, _ in pairs]),
            curve[0].cost <= point.cost <= curve[-1].cost and curve[-1].loss <= point.loss <= curve[0].loss,
        )
        for point in points
        if not point.dense
    ]


def _near(value: float, family: Sequence[float]) -> float | None:
    return value if min(family) / FARTHEST <= value <= max(family) * FARTHEST else None


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
    ratio = one.cost_ratio
    if ratio is None:
        return "too far from the dense runs"
    return (f"wins by {1 / ratio:.2f}" if ratio < 1 else f"loses by {ratio:.2f}") + (
        "" if one.inside else ", beyond the dense runs"
    )
