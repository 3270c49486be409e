"""The planner's core: the best layouts of a workload on a cluster, with a proven bound.

    space -> bounds and pruning (search/) -> integer program (integer_program.py) -> price of the answer -> Solution

Value and bound are seconds, bytes (`memory`) or GPU-hours per step. The bound holds for every placement; the gap is
(best - bound) / best. Ties (12 digits) go to less load on the busiest NICs, then more ulysses, then smaller degrees.
Left out: contention that only the simulator sees; the caller simulates the best few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cost_models.cost import StepCost
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.pricing import price
from cost_models.profile import Profile
from cost_models.strategy import Strategy
from cost_models.timing.profile_samples import samples_for
from cost_models.workload import Workload
from planner.plannable import check_plannable
from planner.search.best_first import Search, SearchResult
from planner.search.branch import Objective, Tree
from planner.search.integer_program import Answer, choose
from planner.search.losers import notable, reason
from planner.search.policy_prices import EQUAL
from planner.search.remedies import NothingFits, remedies
from planner.search.space import Space

__all__ = ["Choice", "NothingFits", "Solution", "solve"]
MOST_COLUMNS = 24
"""PolicyPrices of the integer program; the bounds of further ones count into the reported bound."""
AGREES = 1e-9
"""Relative difference that summation order may make between the program's value and the price."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    strategy: Strategy
    placement: Placement
    cost: StepCost
    reason: str  # why it lost, in a few words; "" for the best


@dataclass(frozen=True, kw_only=True)
class Solution:
    best: tuple[Choice, ...]  # different degrees, best first, each with its own optimal recompute mix and placement
    lost: tuple[Choice, ...]  # notable losers, also such as do not fit
    bound: float
    gap: float
    reproducible: bool  # false if a time limit cut the program short
    considered: int
    pruned: int


def solve(
    cluster: Cluster,
    workload: Workload,
    *,
    fixed: Mapping[str, object] | None = None,
    objective: Objective = "time",
    profile: Profile | None = None,
    keep: int = 5,
    time_limit_s: float = 20.0,
) -> Solution:
    """The best layouts; NothingFits (an InputError with remedies) if none has the memory.

    >>> from cost_models import Cluster, Model, Workload
    >>> work = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
    >>> found = solve(Cluster.load("dgx-h100", nodes=32), work)
    >>> found.best[0].strategy.context, found.gap < 1e-3
    (256, True)
    """
    check_plannable(workload.model)
    space = Space(cluster=cluster, workload=workload, pins=dict(fixed or {}))
    samples = samples_for(profile, cluster)
    found = Search(space, Tree(space, objective, samples)).run(runners=keep + 1)
    if not np.isfinite(found.incumbent):
        raise NothingFits(*remedies(space, samples))
    column, answer, bound = _program(found, objective, time_limit_s)
    picked = [(column, answer.layers), *_runners_up(found, column, objective, keep - 1, time_limit_s)]
    best: list[Choice] = []
    for index, layers in picked:
        strategy, placement = found.laid.strategy(index, layers), found.laid.placements[index]
        cost = price(cluster, workload, strategy, placement, profile)
        why = reason(cost, best[0].cost, objective) if best else ""
        best.append(Choice(strategy=strategy, placement=placement, cost=cost, reason=why))
    value = _value(best[0].cost, objective)
    _agree(value, answer.value, best[0])
    lost = []
    for strategy in notable(space, best[0].strategy, [choice.strategy for choice in best]):
        placement = Placement.in_order(cluster, strategy.ranks)
        cost = price(cluster, workload, strategy, placement, profile)
        why = reason(cost, best[0].cost, objective)
        lost.append(Choice(strategy=strategy, placement=placement, cost=cost, reason=why))
    bound = min(bound, value)
    return Solution(
        best=tuple(best),
        lost=tuple(lost),
        bound=bound,
        gap=(value - bound) / value,
        reproducible=answer.optimal,
        considered=found.considered,
        pruned=found.pruned,
    )


def _value(cost: StepCost, objective: Objective) -> float:
    if objective == "memory":
        return float(cost.memory_bytes)
    return cost.gpu_hours if objective == "gpu-hours" else cost.step_s


def _program(found: SearchResult, objective: Objective, time_limit_s: float) -> tuple[int, Answer, float]:
    """Column and answer of the integer program over all columns that can still win, and the overall bound."""
    limit = found.incumbent * (1 + EQUAL)
    alive = [i for i in np.flatnonzero(found.bound <= limit).tolist() if np.isfinite(found.value[i])]
    if objective == "memory":
        alive.sort(key=lambda i: (found.bound[i], _seconds(found, i), found.laid.tie_key(i)))
    else:
        alive.sort(
            key=lambda i: (_digits(float(found.bound[i])), _digits(float(found.value[i])), found.laid.tie_key(i))
        )
    alive, beyond = alive[:MOST_COLUMNS], alive[MOST_COLUMNS:]
    first = int(found.value.argmin())
    if first not in alive:
        alive[-1] = first
    answer = _choose(found, alive, objective, time_limit_s) or _unproven(found, alive, first)
    open_bounds = [found.open_bound, *(float(found.bound[i]) for i in beyond)]
    chosen = alive[answer.column]
    if objective != "memory":
        best = min(answer.value, found.incumbent)
        equal = [i for i in alive if found.value[i] <= best * (1 + EQUAL)]
        if equal:
            chosen = min(equal, key=found.laid.tie_key)
            layers = tuple(int(n) for n in found.layers[chosen])
            answer = replace(answer, layers=layers, value=float(found.value[chosen]))
    programmed = max(answer.bound, float(found.bound[alive].min()))  # at a time limit the relaxed columns may say more
    return chosen, answer, min(programmed, *open_bounds)


def _unproven(found: SearchResult, alive: list[int], first: int) -> Answer:
    """The search's mix for a column, where the time limit left the program without an answer."""
    return Answer(
        column=alive.index(first),
        layers=tuple(int(count) for count in found.layers[first]),
        value=float(found.value[first]),
        bound=float(found.bound[alive].min()),
        optimal=False,
    )


def _digits(value: float) -> float:
    return float(f"{value:.11e}")


def _seconds(found: SearchResult, column: int) -> float:
    one = found.laid.prices.take(np.array([column]))
    return float(one.seconds_of(found.layers[column][None])[0])


def _choose(found: SearchResult, chosen: list[int], objective: Objective, time_limit_s: float) -> Answer | None:
    laid = found.laid.take(np.array(chosen))
    ranks = np.array([layout.strategy.ranks for layout in laid.layouts], dtype=np.float64)
    weight = ranks / 3600.0 if objective == "gpu-hours" else np.ones(len(chosen))
    return choose(
        laid.prices, laid.capacity_bytes, weight, memory_first=objective == "memory", time_limit_s=time_limit_s
    )


def _runners_up(
    found: SearchResult, best: int, objective: Objective, count: int, time_limit_s: float
) -> list[tuple[int, tuple[int, ...]]]:
    """The best column of each other (data, ulysses) with its optimal layers, best first."""
    seen = {_kind(found, best)}
    order = sorted(range(len(found.value)), key=lambda i: (_digits(float(found.value[i])), found.laid.tie_key(i)))
    picked: list[tuple[float, int, tuple[int, ...]]] = []
    for index in order:
        if len(picked) == count or not np.isfinite(found.value[index]):
            break
        if _kind(found, index) in seen:
            continue
        seen.add(_kind(found, index))
        layers: tuple[int, ...] = tuple(int(n) for n in found.layers[index])
        value = float(found.value[index])
        if layers[0] != found.laid.prices.layers and len(layers) > 1:
            answer = _choose(found, [index], objective, time_limit_s) or _unproven(found, [index], index)
            layers, value = answer.layers, answer.value
        picked.append((value, index, layers))
    return [(index, layers) for _, index, layers in sorted(picked)]


def _kind(found: SearchResult, column: int) -> tuple[Any, ...]:
    strategy = found.laid.layouts[column].strategy
    return strategy.data, strategy.ulysses


def _agree(priced: float, programmed: float, choice: Choice) -> None:
    if abs(priced - programmed) > AGREES * abs(priced) + 16 * (programmed > 1e6) or not choice.cost.fits:
        raise AssertionError(
            f"the program says {programmed!r} and the price {priced!r} for {choice.strategy.describe()}"
        )
