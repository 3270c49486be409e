"""A scenario is one value of every axis; its outcome is a new plan, and the price of the old plan kept.

    now        the question as asked: its plan is the old plan
    replanned  the best layout of the changed question
    kept       the old plan's degrees and placement, priced on the changed question; or why it cannot run there

What it costs not to plan again is kept / replanned - 1. Both are prices (closed form), so that a thousand scenarios are
answered in a minute. Units: seconds, bytes, dollars. Left out: the time that a change of plan takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from msgspec import structs

from cost_models.bands import LEVEL, Band, memory_band, step_band
from cost_models.cost import StepCost
from cost_models.errors import InputError
from cost_models.hardware.placement import Placement
from cost_models.layer.sizes import RankSizes
from cost_models.memory.peaks import kept_bytes
from cost_models.pricing import price
from cost_models.strategy import RECOMPUTES, LayerRange, Strategy
from cost_models.timing.cluster_costs import cluster_costs
from planner.choosing import ROOM, ties
from planner.question import options
from planner.screens.price_lines import band_words
from planner.search.objective import value_of
from planner.shares import with_any_shares, with_shares
from planner.solve import NothingFits, Solution, solve
from planner.what_if.axes import Axis, Value

MOST_SCENARIOS = 100_000


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is asked: the options of `plan`, the axes, and what stays the same in every scenario."""

    given: Mapping[str, Any]
    axes: tuple[Axis, ...]
    fixed: Mapping[str, Any]
    objective: Any = "time"
    seed: int = 0

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{name!r} is given twice; give its values by commas")
        if not self.axes:
            raise InputError(
                "nothing changes: give --vary, --lose, --degrade, --slow, --gpu, --model or --oversubscribe"
            )
        if self.scenarios > MOST_SCENARIOS:
            raise InputError(f"{self.scenarios} scenarios; at most {MOST_SCENARIOS}: give fewer values or --points")

    @property
    def scenarios(self) -> int:
        return math.prod(len(axis.values) for axis in self.axes)

    def all(self) -> list[tuple[Value, ...]]:
        """One value of every axis, in every combination."""
        return list(itertools.product(*(axis.values for axis in self.axes)))

    def question(self, values: Sequence[Value | None]) -> options.Question:
        """The question with these values; None leaves an axis as it is now."""
        given = dict(self.given)
        for axis, value in zip(self.axes, values, strict=True):
            if value is not None and axis.option is not None:
                given[axis.option] = f"{round(value.number)}" if value.number is not None else value.text
        changed = " ".join(
            f"{axis.name} {value.text}" for axis, value in zip(self.axes, values, strict=True) if value and axis.option
        )
        try:
            asked = options.question(given)
        except InputError as error:
            raise InputError(f"{changed}: {error}" if changed else str(error)) from None
        for axis, value in zip(self.axes, values, strict=True):
            if value is not None and axis.change is not None:
                try:
                    asked = replace(asked, cluster=axis.change(asked.cluster, value, self.seed))
                except InputError as error:
                    raise InputError(f"{axis.name} {value.text}: {error}") from None
        return asked

    def now(self) -> tuple[Value | None, ...]:
        return (None,) * len(self.axes)

    def alone(self, index: int, value: Value) -> tuple[Value | None, ...]:
        """One axis at this value, all others as they are now."""
        return tuple(value if i == index else None for i in range(len(self.axes)))

    def check(self) -> None:
        """Every value must make sense with all else as it is now; else an InputError that names it."""
        for index, axis in enumerate(self.axes):
            for value in axis.values:
                self.question(self.alone(index, value))

    def notes(self) -> list[str]:
        """What a reader of equal rows should know."""
        index = next((i for i, axis in enumerate(self.axes) if axis.name == "oversubscription"), None)
        if index is None:
            return []
        alone: list[tuple[Value | None, ...]] = [self.now()]
        for i, axis in enumerate(self.axes):
            alone += [self.alone(i, value) for value in axis.values]
        leaves = set()
        for values in alone:
            try:
                leaves.add(int(self.question(values).cluster.leaf_of_slot[-1]) + 1)
            except InputError:  # said in its row
                continue
        if leaves != {1}:
            return []
        said = "oversubscription changes nothing here: all nodes are under one leaf, which has no uplinks"
        return [f"{said} (--vary nodes_per_leaf=…, or fabric in a cluster file, says how many nodes share a leaf)"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a scenario comes to. Fields that do not apply are None; `problem` says why nothing runs."""

    values: tuple[str, ...]
    gpus: int = 0
    plan: str = ""  # the degrees, as printed everywhere
    traits: Mapping[str, str] | None = None  # what a cliff is looked for in: see `traits`
    step_s: float | None = None
    step_band_s: tuple[float, float] | None = None  # 80% of steps are expected between these
    tokens: int = 0
    memory_bytes: int | None = None
    memory_band_bytes: tuple[float, float] | None = None
    capacity_bytes: int | None = None
    gap: float | None = None
    problem: str = ""
    possible: bool = True  # whether the question can be asked at all
    kept_s: float | None = None
    kept_problem: str = ""

    @property
    def regret(self) -> float | None:
        """What it costs not to plan again, as a share of the new plan's time."""
        if self.kept_s is None or self.step_s is None:
            return None
        return self.kept_s / self.step_s - 1

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.step_s if self.step_s else None

    def dollars_per_mtok(self, per_gpu_hour: float) -> float | None:
        """Dollars for a million tokens; `per_gpu_hour` dollars for each GPU that the plan uses."""
        rate = self.tokens_per_s
        return None if rate is None else per_gpu_hour * self.gpus / 3600 / rate * 1e6


def outcome(sweep: Sweep, values: Sequence[Value | None], old: Solution | None) -> Outcome:
    """Plan the scenario again, and price the old plan on it."""
    texts = tuple("now" if value is None else value.text for value in values)
    try:
        asked = sweep.question(values)
    except InputError as error:
        return Outcome(values=texts, problem=str(error), possible=False)
    try:
        found = planned(sweep, asked)
    except InputError as error:
        problem = error.problem if isinstance(error, NothingFits) else str(error)
        return Outcome(values=texts, problem=problem)
    best = found.best[0]
    still = kept(asked, old.best[0].strategy, old.best[0].placement) if old else (None, "")
    kept_s, kept_problem = _fitting(asked, *still)
    return Outcome(
        values=texts,
        gpus=best.strategy.ranks,
        plan=best.strategy.describe(),
        traits=traits(asked, best.strategy, best.placement),
        step_s=best.cost.step_s,
        step_band_s=step_band(best.cost).ends,
        tokens=best.cost.tokens,
        memory_bytes=best.cost.memory_bytes,
        memory_band_bytes=memory_band(best.cost).ends,
        capacity_bytes=best.cost.capacity_bytes,
        gap=found.gap,
        kept_s=kept_s,
        kept_problem=kept_problem,
    )


def banded(middle: float, ends: tuple[float, float] | None, show: Callable[[float], str]) -> str:
    """A number of an outcome with its band, in words."""
    if ends is None:
        return show(middle)
    return band_words(Band(low=ends[0], middle=middle, high=ends[1], level=LEVEL), show)


def planned(sweep: Sweep, asked: options.Question) -> Solution:
    """The layout that `plan` chooses before it simulates, without the runners-up that a single plan shows."""
    doubted = sweep.objective != "memory"
    found = solve(
        asked.cluster, asked.workload, fixed=sweep.fixed, objective=sweep.objective, profile=asked.profile, keep=1,
        room=asked.room,
        near=doubted,
    )  # fmt: skip
    if not doubted:
        return found
    costs = cluster_costs(asked.cluster, asked.profile)
    open_ = ties(costs, found)
    best = with_shares(found, sweep.objective, asked.profile, asked.room) or open_.tied[open_.pick()]
    value, bound = value_of(sweep.objective, best.cost), found.bound
    if best.strategy.token_shares and (of_any := with_any_shares(found, costs, value)) is not None:
        bound = of_any
    gap = 1 - bound / value
    gap = gap if best.strategy.token_shares else max(0.0, gap)  # below 0: of equal shares alone
    return structs.replace(found, best=(best,), gap=gap)


def kept(asked: options.Question, strategy: Strategy, placement: Placement) -> tuple[StepCost | None, str]:
    """(price, why there is none) of a plan that is not made again, whether or not it fits."""
    layers = asked.workload.model.layers
    if sum(part.count for part in strategy.layers) not in (0, layers):
        one = {part.recompute for part in strategy.layers}
        if len(one) != 1:
            return None, f"its recompute is for {sum(part.count for part in strategy.layers)} layers, not {layers}"
        strategy = replace(strategy, layers=(LayerRange(recompute=one.pop(), count=layers),))
    slots = placement.slot_of_rank
    if int(slots.max()) >= asked.cluster.slots:
        return None, f"it needs {strategy.ranks} GPUs of {asked.cluster.gpus}"
    lost = sorted({int(slot) for slot, gpu in zip(slots, placement.gpu_of_rank, strict=True)
                   if gpu >= asked.cluster.gpus_of_slot[slot]})  # fmt: skip
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        return None, f"it needs GPUs of slot {lost[0]}{more} that are gone"
    try:
        return price(asked.cluster, asked.workload, strategy, placement, asked.profile), ""
    except InputError as error:
        return None, str(error)


def _fitting(asked: options.Question, cost: StepCost | None, problem: str) -> tuple[float | None, str]:
    """(seconds, why not) of a plan that is not made again."""
    if cost is None:
        return None, problem
    if not asked.room.holds(cost):
        return None, f"it needs {_gib(cost.memory_bytes)} of {_gib(asked.room.limit_bytes(cost.capacity_bytes))} GiB"
    return cost.step_s, ""


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f}"


def traits(asked: options.Question, strategy: Strategy, placement: Placement) -> dict[str, str]:
    """What a plan is like, in words whose change is a cliff."""
    where = {}
    domain = asked.cluster.domain_of_slot[placement.slot_of_rank]
    for axis in ("ulysses", "ring"):
        if getattr(strategy, axis) > 1:
            where[axis] = "inside the node" if _inside(domain, strategy, axis) else "across nodes"
        else:
            where[axis] = "not used"
    return {
        "runs": "fits",
        "ulysses": where["ulysses"],
        "ring": where["ring"],
        "recompute": ", ".join(sorted(_recomputed(asked, strategy))) or "none",
        "sharding": f"zero {strategy.zero}",
        "degrees": degrees(strategy),
    }


def _recomputed(asked: options.Question, strategy: Strategy) -> Iterator[str]:
    """Policies that free more than `ROOM`: two plans that differ in the last GiB of activations are the same plan."""
    sizes, freed = RankSizes(asked.workload, replace(strategy, token_shares=())), dict.fromkeys(RECOMPUTES, 0.0)
    for part in strategy.layer_ranges(asked.workload.model.layers):
        kept, less = kept_bytes(sizes, "none"), kept_bytes(sizes, part.recompute)
        freed[part.recompute] += part.count * float(kept - less)
    yield from (policy for policy, size in freed.items() if size > ROOM)


def degrees(strategy: Strategy) -> str:
    """As `data 1 × ring 32 × ulysses 8`."""
    return f"data {strategy.data} × ring {strategy.ring} × ulysses {strategy.ulysses}"


def _inside(domain: Any, strategy: Strategy, axis: Literal["ring", "ulysses"]) -> bool:
    from cost_models.strategy import rank_groups

    groups = domain[rank_groups(strategy, axis)]
    return bool((groups == groups[:, :1]).all())
