"""Where a plan turns into another one: the thresholds of a numeric axis, by bisection, in words.

Along each numeric axis, with all others as they are now, neighbouring values whose plans differ in a trait (whether
anything fits, where ulysses and ring lie, recompute, sharding, degrees) hold a threshold between them. Bisection
narrows it to CLOSE. A cliff names the number, the trait and both sides: "ulysses is inside the node up to 38, across
nodes from 38.3". Where the question
cannot be asked in between (part of a node), the values that can be stand. Of several changes between two values
bisection meets one. The band of a threshold ends where the odds for the plan below it pass 90% and 10%.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cost_models.bands import odds
from cost_models.errors import InputError
from cost_models.room import OUTERMOST, sureness
from cost_models.timing.cluster_costs import cluster_costs
from planner.question import options
from planner.search.remedies import largest_gpu_bytes, least_bytes
from planner.search.space import Space
from planner.what_if.axes import Axis, Value
from planner.what_if.scenario import Outcome, Sweep, kept, outcome, planned

CLOSE = 0.01
"""Relative width to which a threshold is narrowed."""
NARROW = 0.05
"""And the ends of its band."""
REACH = 8.0
"""Ends of a band are sought up to this multiple of the threshold, and down to its inverse."""
LEVELS = (0.9, 0.1)
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
    band: tuple[Value | None, Value | None] = (None, None)  # see `_band`; None: not reached within REACH

    def words(self) -> str:
        """One sentence."""
        if self.trait == "runs":
            said = f"fits up to {self.low.text}" if self.below == "fits" else f"fits from {self.high.text}"
            return f"{self.axis}: a plan {said} ({self._ends()})"
        subject = "degrees are" if self.trait == "degrees" else f"{self.trait} is"
        sides = f"{self.below} up to {self.low.text}, {self.above} from {self.high.text}"
        return f"{self.axis}: {subject} {sides} ({self._ends()})"

    def _ends(self) -> str:
        low, high = (end and end.text for end in self.band)
        if low and high:
            return f"80%: {low} to {high}"
        if low or high:
            return f"80%: from {low} on" if low else f"80%: up to {high}"
        return f"either may be better, also {REACH:g}× away"


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
            known[number] = outcome(sweep, sweep.alone(index, value), None)
        return known[number]

    values = sorted(axis.values, key=lambda value: value.number or 0.0)
    for low, high in itertools.pairwise(values):
        changed = _changed(at(low), at(high))
        for trait in changed:
            yield _bisect(sweep, index, trait, low, high, at)


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


def _bisect(sweep: Sweep, index: int, trait: str, low: Value, high: Value, at: Callable[[Value], Outcome]) -> Cliff:
    axis = sweep.axes[index]
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
        band=_band(sweep, index, trait, low, high),
        axis=axis.name,
        trait=trait,
        low=low,
        high=high,
        below=below,
        above=_trait(at(high), trait),
        step_below_s=at(low).step_s,
        step_above_s=at(high).step_s,
    )


def _band(sweep: Sweep, index: int, trait: str, low: Value, high: Value) -> tuple[Value | None, Value | None]:
    """Values of the axis where the odds for what holds below the threshold pass 90% and 10%.

    These are the odds that the plan below fits and is faster than the one above, or that one does not fit, both kept as
    they are; or, where the threshold is of memory alone, the odds that anything fits.
    """
    axis = sweep.axes[index]

    def asked(value: Value) -> options.Question | None:
        try:
            return sweep.question(sweep.alone(index, value))
        except InputError:
            return None

    if trait == "runs":
        fits_below = not outcome(sweep, sweep.alone(index, low), None).problem

        def odds_below(question: options.Question) -> float | None:
            sure = _fits_at(sweep, question)
            return sure if fits_below else 1 - sure
    else:
        sides = [planned(sweep, question).best[0] for question in map(asked, (low, high)) if question is not None]

        def odds_below(question: options.Question) -> float | None:
            below, above = (kept(question, one.strategy, one.placement)[0] for one in sides)
            if below is None or above is None:
                return None
            paid = above.ranks / below.ranks if sweep.objective == "gpu-hours" else 1.0
            faster = odds(below, above, paid)
            fits, other = (sureness(one.memory_bytes, one.capacity_bytes) / OUTERMOST for one in (below, above))
            return fits * (1 - other) + fits * other * faster + (1 - fits) * (1 - other) / 2

    def certain(value: Value, level: float) -> bool | None:
        question = asked(value)
        found = None if question is None else odds_below(question)
        return None if found is None else (found >= level if level > 0.5 else found <= level)

    return _end(axis, low, 1 / REACH, LEVELS[0], certain), _end(axis, high, REACH, LEVELS[1], certain)


def _end(
    axis: Axis, start: Value, reach: float, level: float, certain: Callable[[Value, float], bool | None]
) -> Value | None:
    """The value nearest to `start`, towards `reach` times it, where the odds pass the level; None if none does."""
    begin = start.number or 0.0
    near, outer = 1.0, start
    for power in (0.0, *(2.0**-n for n in range(6, -1, -1))):
        far, value = reach**power, axis.at(begin * reach**power)
        sure = certain(value, level)
        if sure is None:
            return None
        if sure:
            outer = value
            break
        near = far
    else:
        return None
    while abs(math.log(far / near)) > NARROW:
        middle = math.sqrt(near * far)
        value = axis.at(begin * middle)
        if certain(value, level):
            far, outer = middle, value
        else:
            near = middle
    return outer


def _fits_at(sweep: Sweep, question: options.Question) -> float:
    """Probability that the layout that needs least memory has it."""
    samples = cluster_costs(question.cluster, question.profile).samples
    space = Space(cluster=question.cluster, workload=question.workload, pins=dict(sweep.fixed), room=question.room)
    least, _ = least_bytes(space, samples)
    return sureness(least, largest_gpu_bytes(space))
