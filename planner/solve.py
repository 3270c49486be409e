"""The planner's core: the best layouts of a workload on a cluster, with a proven bound.

    spaces -> bounds and pruning -> columns -> integer program -> price of the answer -> Solution       (all in search/)

A target (`targets/`) says what its layouts may be: a space for each tensor degree, pipeline and set of policies there.
Value and bound are seconds, bytes (`memory`) or GPU-hours per step. The bound holds for every placement of every layout
of the space (`Space.searched`, `Space.held`); the gap is (best - bound) / best. Ties (12 digits) go to less load on the
busiest NICs, then more ulysses, then smaller degrees. Left out: contention; the caller simulates the best few.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from cost_models.cost import StepCost
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.pricing import price
from cost_models.profile import Profile
from cost_models.room import DEFAULT_ROOM, Room
from cost_models.strategy import Strategy
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.workload import Workload
from planner.search.again import ALL, Found, Kept, Left
from planner.search.best_first import MOST_NEAR, NEAR, SearchResult
from planner.search.branch import Branches
from planner.search.integer_program import Answer, choose
from planner.search.objective import Objective, value_of, weight
from planner.search.policy_prices import EQUAL
from planner.search.reasons import notable
from planner.search.remedies import NothingFits, roomiest
from planner.search.several import search_several
from planner.search.space import Key, Space, check_plannable, named, spaces
from planner.search.with_levers import search_levers
from planner.targets.target import MMSP, Target

__all__ = ["Choice", "NothingFits", "Solution", "solve"]
MOST_COLUMNS = 24
"""Columns of the integer program; the bounds of further ones count into the reported bound."""
AGREES = 1e-9
"""Relative difference that summation order may make between the program's value and the price."""
PROGRAM_S = 20.0
"""The integer program gets so long where the caller sets no limit; it needs some hundredths."""


class Choice(Struct, frozen=True, kw_only=True):
    """A layout on a placement with its price."""

    strategy: Strategy
    placement: Placement
    cost: StepCost


class Solution(Struct, frozen=True, kw_only=True):
    """What a search found, and the bound of the space that it covers."""

    objective: Objective
    target: Target
    workload: Workload  # in the target's precision
    spaces: tuple[Space, ...]  # whose layouts the bound covers
    best: tuple[Choice, ...]  # different degrees, best first, each with its optimal recompute mix and placement
    near: tuple[Choice, ...]  # the best and what is priced within NEAR of it, also with its degrees, best first
    lost: tuple[Choice, ...]  # what people would try by hand, also where it does not fit
    bound: float
    gap: float
    reproducible: bool  # false if a time limit cut the search or the program short
    considered: int
    pruned: int
    found: Found  # every priced column, by space
    branches: dict[Key, Branches]  # of each space without levers
    floors: dict[Key, float]  # of each space with levers that was looked at

    @property
    def candidates(self) -> list[Choice]:
        """Everything here that fits, the best prices first."""
        every = {id(one): one for one in (*self.near, *self.best)}.values()
        return sorted(every, key=lambda one: value_of(self.objective, one.cost))


def solve(
    cluster: Cluster,
    workload: Workload,
    *,
    fixed: Mapping[str, object] | None = None,
    objective: Objective = "time",
    profile: Profile | None = None,
    keep: int = 5,
    room: Room = DEFAULT_ROOM,
    near: bool = False,
    time_limit_s: float | None = None,
    target: Target = MMSP,
    kept: Kept | None = None,
    within: Left = ALL,
    at_most: float = np.inf,
) -> Solution:
    """The best layouts; NothingFits (an InputError with remedies) if none has the memory.

    `target`: the program that is to run the plan. `near`: also those whose price is so close to the best that errors of
    the model may turn the order. `kept`: the best of what earlier searches kept, without one. `within`: what a search
    with as much of everything left. `at_most`: a value that some layout has, which spares bounds of levers.

    At the time limit the best layout so far is returned, with a bound that is valid for what was left undone, too.

    >>> from cost_models import Cluster, Model, Workload
    >>> work = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
    >>> solution = solve(Cluster.load("dgx-h100", nodes=32), work)
    >>> solution.best[0].strategy.context, solution.gap < 2e-3
    (256, True)
    """
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    check_plannable(workload.model)
    workload = target.asked(workload)
    several = spaces(cluster, workload, dict(fixed or {}), room, target)
    costs = cluster_costs(cluster, profile)
    if kept is None:
        results = search_several(several, objective, costs, deadline, keep + 1, near, within.ranges)
        results, with_levers = search_levers(several, results, objective, costs, deadline, at_most, within.floors)
    else:
        results, with_levers = kept.priced(cluster, room, objective, costs), []
    if not results.found:
        raise NothingFits(roomiest(several, costs.samples), costs.samples, dict(fixed or {}))

    if deadline is not None and time.monotonic() > deadline:
        keep, near = 1, False
    priced = partial(_priced, cluster, workload, profile, target)
    programs = [_Program(space, result, objective, deadline) for space, result in results.found]
    decided = _decide(programs, results.bound)
    program = decided.program
    picked = [(decided.column, decided.answer.layers), *program.runners_up(decided.column, keep - 1)]
    known = {one: priced(*program.layout(*one)) for one in picked}
    best = list(known.values())
    value = value_of(objective, best[0].cost)
    _agree(value, decided.answer.value, best[0], room)
    others = [other for other in programs if other is not program][: max(0, keep - 1) if not near else MOST_NEAR]
    elsewhere = [priced(*other.layout(*other.first())) for other in others]
    close = [known.get(one) or priced(*program.layout(*one)) for one in program.near(decided.column) if near]
    close += [one for one in elsewhere if near and value_of(objective, one.cost) <= value * NEAR]
    lost = [
        priced(strategy, Placement.in_order(cluster, strategy.ranks))
        for strategy in notable(program.space, best[0].strategy, [choice.strategy for choice in best])
        if keep > 1
    ]
    return Solution(
        objective=objective,
        target=target,
        workload=workload,
        spaces=(*several, *with_levers),
        best=(*best, *elsewhere[: max(0, keep - 1)]),
        near=(best[0], *close),
        lost=tuple(lost),
        bound=min(decided.bound, value),
        gap=max(0.0, 1 - decided.bound / value),
        reproducible=decided.answer.optimal and not results.stopped,
        considered=results.considered,
        pruned=results.considered - results.priced,
        found=results.found,
        branches=results.branches,
        floors=results.floors,
    )


def _priced(
    cluster: Cluster, workload: Workload, profile: Profile | None, target: Target, layout: Strategy, at: Placement
) -> Choice:
    """A layout with its price; of the ways that a search left open the fastest."""
    ways = [
        Choice(strategy=one, placement=at, cost=price(cluster, workload, one, at, profile, target.code))
        for one in named(layout)
    ]
    return min(ways, key=lambda way: way.cost.step_s)


class _Decided(NamedTuple):
    """The best answer of several programs, and the bound of all."""

    program: _Program
    column: int
    answer: Answer
    bound: float


def _decide(programs: Sequence[_Program], bound: float) -> _Decided:
    """Solve every program that may hold the best one; `bound`: of what no program has. The first's search is best."""
    limit, answers = programs[0].result.incumbent * (1 + EQUAL), []
    for program in programs:
        if program.result.bound.min() <= limit:
            answers.append((program, *program.answer()))
    program, column, answer, _ = min(answers, key=lambda one: _digits(one[2].value))
    return _Decided(program, column, answer, min(bound, *(floor for *_, floor in answers)))


class _Program:
    """The integer program over the columns of a search, and what its answer means for the space."""

    def __init__(self, space: Space, result: SearchResult, objective: Objective, deadline: float | None) -> None:
        self.space, self.result, self.columns = space, result, result.columns
        self.objective, self.deadline = objective, deadline

    def layout(self, column: int, layers: tuple[int, ...]) -> tuple[Strategy, Placement]:
        return self.columns.strategy(column, layers), self.columns.placements[column]

    def first(self) -> tuple[int, tuple[int, ...]]:
        """The best column of the search with its mix of at most two policies."""
        value = self.result.value
        column = min(
            np.flatnonzero(np.isfinite(value)).tolist(), key=lambda i: (_digits(value[i]), self.columns.tie_key(i))
        )
        return column, tuple(self.result.layers[column].tolist())

    def answer(self) -> tuple[int, Answer, float]:
        """(column, its layers and value, the bound of the space)."""
        result = self.result
        candidates, beyond = self._candidates()
        answer = self._choose(candidates) or self._of_search(candidates, int(result.value.argmin()))
        of_columns = max(answer.bound, float(result.bound[candidates].min()))  # at a time limit fractions may say more
        bound = min(of_columns, result.open_bound, result.bound[beyond].min(initial=np.inf))
        column = candidates[answer.column]
        if self.objective == "memory":
            return column, answer, bound
        # Of equal columns the solver returns any one, which may change with its version. Columns whose mix of two
        # policies is as good as its answer are therefore ordered by our rule, and the first is taken.
        least = min(answer.value, result.incumbent)
        equal = [i for i in candidates if result.value[i] <= least * (1 + EQUAL)]
        if equal:
            column = min(equal, key=self.columns.tie_key)
            proven = answer.optimal
            answer = self._of_search([column], column, proven)
        return column, answer, bound

    def runners_up(self, best: int, count: int) -> list[tuple[int, tuple[int, ...]]]:
        """The best column of each other (data, ulysses) with its mix of at most two policies, best first."""
        return self._firsts(self._kind, best, np.inf)[:count]

    def near(self, best: int) -> list[tuple[int, tuple[int, ...]]]:
        """Further strategies near the best, each with its best column, best first."""
        return self._firsts(lambda column: self.columns.strategies[column], best, NEAR)[: MOST_NEAR - 1]

    def _firsts(self, name: Callable[[int], object], best: int, within: float) -> list[tuple[int, tuple[int, ...]]]:
        """Of the columns below `within` times the best value the best one of each name, but for the best one's name."""
        value, first = self.result.value, {name(best): best}
        columns = np.flatnonzero(np.isfinite(value) & (value <= value[best] * within)).tolist()
        for column in sorted(columns, key=lambda i: (_digits(value[i]), self.columns.tie_key(i))):
            first.setdefault(name(column), column)
        return [(column, tuple(self.result.layers[column].tolist())) for column in list(first.values())[1:]]

    def _candidates(self) -> tuple[list[int], list[int]]:
        """(columns of the program, further ones that could win, too), the most promising first."""
        result = self.result
        limit = result.incumbent * (1 + EQUAL)
        alive = [i for i in np.flatnonzero(result.bound <= limit).tolist() if np.isfinite(result.value[i])]
        seconds = self.columns.prices.seconds_of(result.layers)
        if self.objective == "memory":
            alive.sort(key=lambda i: (result.bound[i], seconds[i], self.columns.tie_key(i)))
        else:
            alive.sort(key=lambda i: (_digits(result.bound[i]), _digits(result.value[i]), self.columns.tie_key(i)))
        candidates, beyond = alive[:MOST_COLUMNS], alive[MOST_COLUMNS:]
        best = int(result.value.argmin())
        if best not in candidates:
            candidates[-1] = best
        return candidates, beyond

    def _choose(self, candidates: list[int]) -> Answer | None:
        columns = self.columns.take(candidates)
        left = PROGRAM_S if self.deadline is None else max(0.1, self.deadline - time.monotonic())
        return choose(
            columns.prices,
            columns.capacity_bytes,
            weight(self.objective, columns.ranks),
            memory_first=self.objective == "memory",
            time_limit_s=left,
            at_most=self.result.incumbent,
        )

    def _of_search(self, candidates: list[int], column: int, optimal: bool = False) -> Answer:
        """The search's mix for a column: what there is where a time limit leaves the program without an answer."""
        return Answer(
            column=candidates.index(column),
            layers=tuple(int(count) for count in self.result.layers[column]),
            value=float(self.result.value[column]),
            bound=float(self.result.bound[candidates].min()),
            optimal=optimal,
        )

    def _kind(self, column: int) -> tuple[int, int]:
        return self.columns.strategies[column].data, self.columns.strategies[column].ulysses


def _digits(value: Any) -> float:
    """12 digits: what is equal to these is a tie."""
    return float(f"{value:.11e}")


def _agree(priced: float, programmed: float, choice: Choice, room: Room) -> None:
    if abs(priced - programmed) > AGREES * abs(priced) + 16 * (programmed > 1e6) or not room.holds(choice.cost):
        raise AssertionError(
            f"the program says {programmed!r} and the price {priced!r} for {choice.strategy.describe()}"
        )
