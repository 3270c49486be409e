"""Where a plan turns into another one: the thresholds of a numeric axis, by bisection, in words.

Along each numeric axis, with all others as they are now, neighbouring values whose plans differ in a trait (whether
anything fits, where ulysses and ring lie, recompute, sharding, degrees) hold a threshold between them. Bisection
narrows it to CLOSE. A cliff names the number, the trait and both sides: "ulysses is inside the node up to 38, across
nodes from 38.3". Where the question
cannot be asked in between (part of a node), the values that can be stand. Of several changes between two values
bisection meets one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from planner.what_if.axes import Axis, Value
from planner.what_if.scenario import Outcome, Sweep, outcome

CLOSE = 0.01
"""Relative width to which a threshold is narrowed."""
TRAITS = ("runs", "ulysses", "ring", "recompute", "sharding", "degrees")


@dataclass(frozen=True, kw_only=True)
class Cliff:
    """Between `low` and `high` of an axis a trait changes from `below` to `above`."""

    axis: str
    trait: str
    low: Value
    high: Value
    below: str
    above: str
    step_below_s: float | None
    step_above_s: float | None
    band: tuple[float, float] | None = None  # of the threshold; no band yet: prices have none

    def words(self) -> str:
        """One sentence."""
        if self.trait == "runs":
            said = f"fits up to {self.low.text}" if self.below == "fits" else f"fits from {self.high.text}"
            return f"{self.axis}: a plan {said}"
        subject = "degrees are" if self.trait == "degrees" else f"{self.trait} is"
        return f"{self.axis}: {subject} {self.below} up to {self.low.text}, {self.above} from {self.high.text}"


def cliffs(sweep: Sweep, on_step: Callable[[str], None] = lambda what: None) -> list[Cliff]:
    """All cliffs of the numeric axes, axis by axis, from low to high."""
    found: list[Cliff] = []
    for index, axis in enumerate(sweep.axes):
        if axis.numeric and len(axis.values) > 1:
            on_step(f"thresholds of {axis.name}")
            found += _along(sweep, index, axis)
    return found


def _along(sweep: Sweep, index: int, axis: Axis) -> Iterator[Cliff]:
    known: dict[float, Outcome] = {}

    def at(value: Value) -> Outcome:
        number = value.number or 0.0
        if number not in known:
            known[number] = outcome(sweep, [value if i == index else None for i in range(len(sweep.axes))], None)
        return known[number]

    values = sorted(axis.values, key=lambda value: value.number or 0.0)
    for low, high in itertools.pairwise(values):
        changed = _changed(at(low), at(high))
        for trait in changed:
            yield _bisect(axis, trait, low, high, at)


def _changed(left: Outcome, right: Outcome) -> list[str]:
    """Traits that differ: only whether anything runs, or else degrees only where no other trait explains them."""
    if not (left.possible and right.possible):
        return []
    if bool(left.problem) != bool(right.problem):
        return ["runs"]
    if left.problem or right.problem:
        return []
    different = [trait for trait in TRAITS if _trait(left, trait) != _trait(right, trait)]
    return [trait for trait in different if trait != "degrees"] or different


def _trait(one: Outcome, trait: str) -> str:
    return "nothing fits" if one.traits is None else one.traits[trait]


def _bisect(axis: Axis, trait: str, low: Value, high: Value, at: Callable[[Value], Outcome]) -> Cliff:
    below = _trait(at(low), trait)
    while (high.number or 0.0) - (low.number or 0.0) > CLOSE * (low.number or 0.0):
        middle = axis.at(((low.number or 0.0) * (high.number or 0.0)) ** 0.5)
        if not (low.number or 0.0) < (middle.number or 0.0) < (high.number or 0.0) or not at(middle).possible:
            break
        if _trait(at(middle), trait) == below:
            low = middle
        else:
            high = middle
    return Cliff(
        axis=axis.name,
        trait=trait,
        low=low,
        high=high,
        below=below,
        above=_trait(at(high), trait),
        step_below_s=at(low).step_s,
        step_above_s=at(high).step_s,
    )
