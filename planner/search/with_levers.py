"""The search over levers of memory: nothing fits without them, or the best layout pays for memory with its time.

    a layout that recomputes nothing is never faster with a lever, so levers are tried where the best one spends more
    than WORTH of its step on recompute, or where there is none

    branches that could win if memory had no end              all others cost too much with any lever
    parts of each choice alone, as if memory had no end       a part of a bundle costs at least the most of its choices'
    bundles in ascending order of that floor                  all from the incumbent on are cut at once
    a space for each bundle that is left                      its own floor over those branches, then its search

A bundle with inputs on the host has all layouts of the one without (no layer need wait there), which is not searched.
Nothing of a space without levers is done again; floors that are known of a cluster with as much of everything hold.
Where nothing fits, the strongest bundles are asked first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from cost_models.errors import InputError
from cost_models.room import Room
from cost_models.timing.cluster_costs import ClusterCosts
from planner.search.best_first import Search
from planner.search.branch import Branches, Tree
from planner.search.levers import VALUES, WORTH, Bundle, bundles, strongest
from planner.search.objective import Objective, weight
from planner.search.policy_prices import EQUAL
from planner.search.several import SeveralResults
from planner.search.space import Family, Key, Space

NO_FLOORS: Mapping[Key, float] = MappingProxyType({})
FEW = 64
"""Of so few branches the bounds count the time of recomputing at once."""


class _Queued(NamedTuple):
    """A space with levers, and what no layout of it is below."""

    floor: float
    of: _Bounds
    space: Space

    @classmethod
    def of_bundle(cls, of: _Bounds, bundle: Bundle, known: Mapping[Key, float]) -> _Queued:
        space = structs.replace(of.space, levers=bundle)
        floor = known.get(space.key, 0.0)
        return cls(floor if floor > of.limit else max(floor, of.endless(bundle)), of, space)


class _Endless(Room):
    """Room for everything."""

    def limit_bytes(self, capacity_bytes: float) -> float:
        return float("inf")


def search_levers(
    spaces: Sequence[Space],
    without: SeveralResults,
    objective: Objective,
    costs: ClusterCosts,
    deadline: float | None,
    at_most: float = np.inf,
    known: Mapping[Key, float] = NO_FLOORS,
) -> tuple[SeveralResults, list[Space]]:
    """(what was found without and with levers, the spaces with levers that the bound covers). `at_most`: a value that
    some layout with levers is known to have. `known`: floors of the spaces with levers on a cluster with as much of
    everything, which hold here."""
    if not wanted(spaces, without, objective):
        return without, []
    if without.found and deadline is not None and time.monotonic() > deadline:
        return structs.replace(without, stopped=True), []
    if not without.found and np.isinf(at_most) and holding(spaces, costs) is None:
        return without, []
    incumbent = min(without.found[0][1].incumbent if without.found else np.inf, at_most)
    found, bound, stopped, considered = [*without.found], without.bound, without.stopped, without.considered
    floors = {}
    bounds = [_Bounds(space, objective, costs, incumbent) for space in spaces]
    within = [structs.replace(one.space, levers=bundle) for one in bounds for bundle in one.within_another]
    queue = [_Queued.of_bundle(one, bundle, known) for one in bounds for bundle in one.bundles]
    queue.sort(key=lambda one: (one.floor, len(one.space.levers.chosen)))
    for floor, of, space in queue:
        late = bool(found) and deadline is not None and time.monotonic() > deadline
        if floor <= incumbent * (1 + EQUAL) and not late:
            held = bool(without.found) or of.holds(space)  # where memory is that tight, few bundles hold anything
            floor = max(floor, of.floor(space, incumbent) if held else of.beyond)
        floors[space.key] = floor
        if floor > incumbent * (1 + EQUAL) or np.isinf(floor) or late:
            bound, stopped = min(bound, floor), stopped or late
            continue
        search = Search(space, objective, costs, deadline)
        considered += search.layouts
        search.incumbent = incumbent
        result = search.run(runners=0)
        bound, stopped = min(bound, result.open_bound), stopped or result.stopped
        found += [(space, result)] if np.isfinite(result.incumbent) else []
        incumbent = min(incumbent, result.incumbent)
    found.sort(key=lambda pair: pair[1].incumbent)
    results = structs.replace(
        without, found=found, bound=float(bound), considered=considered, stopped=stopped, floors=floors
    )
    return results, [*(one.space for one in queue), *within]


class _Bounds:
    """Floors of a space's bundles, over the branches that could win if memory had no end; the others cost too much
    with any lever."""

    def __init__(self, space: Space, objective: Objective, costs: ClusterCosts, incumbent: float) -> None:
        self.space, self.objective, self.costs = space, objective, costs
        self.alone: dict[Bundle, NDArray[np.float64]] = {}
        self.bundles, self.within_another = _apart(_levers(space))
        self.limit = incumbent * (1 + EQUAL)

    @cached_property
    def start(self) -> tuple[Tree, Branches]:
        tree = Tree(structs.replace(self.space, room=_Endless()), self.objective, self.costs)
        return tree, tree.start()

    @cached_property
    def beyond(self) -> float:
        best = self.start[1].best
        return float(best[best > self.limit].min(initial=np.inf))

    @cached_property
    def rows(self) -> list[tuple[Family, int, int]]:
        tree, start = self.start
        some = start.take(start.best <= self.limit)
        return [
            (tree.families[family], int(first), int(last))
            for family, first, last in zip(some.family, some.first, some.last, strict=True)
        ]

    @cached_property
    def weight(self) -> Any:
        ranks = [one.data * one.ulysses * first * self.start[0].model_parallel for one, first, _ in self.rows]
        return weight(self.objective, np.array(ranks, dtype=np.int64))[:, None]

    def endless(self, bundle: Bundle) -> float:
        """A value that no layout with these levers is below, whatever memory there is."""
        if self.objective == "memory" or not self.rows:
            return 0.0 if self.objective == "memory" else self.beyond
        for one in bundle.alone:
            if one not in self.alone:
                self.alone[one] = self._parts_s(one)
        several = np.stack([self.alone[one] for one in bundle.alone])
        kinds = self.space.workload.model.layer_kinds
        many = np.array([kinds.count(kind) for kind in dict.fromkeys(kinds)])

        def step_s(parts: NDArray[np.float64]) -> NDArray[np.float64]:
            whole: NDArray[np.float64] = parts[..., 0] + parts[..., 1:] @ many
            return whole

        seconds = step_s(several.max(axis=0))
        # One rank is sharded with states on the host and not with other levers: no sharding is common to both.
        apart = np.isinf(seconds).all(axis=1)
        seconds[apart] = step_s(several[:, apart]).min(axis=-1).max(axis=0)[:, None]
        return min(float((seconds * self.weight).min(initial=np.inf)), self.beyond)

    def _parts_s(self, alone: Bundle) -> NDArray[np.float64]:
        """`Tree.parts_s` of the branches with these levers; infinite where there is none."""
        parts = np.full(
            (len(self.rows), len(self.space.shardings), 1 + len(set(self.space.workload.model.layer_kinds))), np.inf
        )
        try:
            tree = Tree(structs.replace(self.space, levers=alone), self.objective, self.costs)
            where, table = self._table(tree)
        except InputError:
            return parts
        if table:
            parts[where] = tree.parts_s(table)
        return parts

    def _table(self, tree: Tree) -> tuple[list[int], list[tuple[int, int, int]]]:
        """(which of the branches a tree has, these as its ranges)."""
        places = {(one.data, one.microbatches, one.ulysses): at for at, one in enumerate(tree.families)}
        where, table = [], []
        for row, (family, first, last) in enumerate(self.rows):
            place = places.get((family.data, family.microbatches, family.ulysses))
            if place is not None and first <= (most := tree.families[place].most_ring):
                where.append(row)
                table.append((place, first, min(last, most)))
        return where, table

    def holds(self, space: Space) -> bool:
        """Whether any of the branches may fit: a tenth of the work of `floor`."""
        try:
            tree = Tree(space, "memory", self.costs)
            _, table = self._table(tree)
        except InputError:
            return False
        return bool(table) and bool(np.isfinite(tree.branches(table).bound).any())

    def floor(self, space: Space, incumbent: float) -> float:
        """A value that no layout of a space with levers is below; what is below the incumbent counts the time of
        recomputing."""
        try:
            tree = Tree(space, self.objective, self.costs)
            _, table = self._table(tree)
        except InputError:
            return self.beyond
        if not table:
            return self.beyond
        few = len(table) <= FEW
        found = tree.branches(table, quick=not few)
        again = found.single & (found.best <= incumbent * (1 + EQUAL))
        if again.any() and not few:
            rows = [row for row, open_ in zip(table, again.tolist(), strict=True) if open_]
            found = found.take(~again).join(tree.branches(rows, quick=False))
        return min(float(found.best.min(initial=np.inf)), self.beyond)


def wanted(spaces: Sequence[Space], without: SeveralResults, objective: Objective) -> bool:
    """Whether a lever could pay."""
    if not any(_levers(space) for space in spaces) or spaces[0].workload.mode != "train":
        return False
    if not without.found:
        return True
    _, result = without.found[0]
    best = int(result.value.argmin())
    prices, layers = result.columns.prices.take(np.array([best])), result.layers[best]
    if objective == "memory":
        return False
    fastest = sum(many * float(prices.layer_s[0, list(choices)].min()) for choices, many in prices.choices_of)
    spent = float((layers * prices.layer_s[0]).sum()) - fastest
    return spent > WORTH * float(prices.seconds_of(layers[None])[0])


def _levers(space: Space) -> list[Bundle]:
    return [one for one in bundles(space.target.levers, space.pins) if space.has(one)]


def _apart(several: list[Bundle]) -> tuple[list[Bundle], list[Bundle]]:
    """(bundles to look at, those whose layouts another one has, too: the same with inputs on the host)."""
    known = set(several)
    within = [one for one in several if not one.inputs and Bundle(chosen=(*VALUES["inputs"], *one.chosen)) in known]
    return [one for one in several if one not in set(within)], within


def strongest_of(spaces: Sequence[Space]) -> Iterator[Space]:
    """Each space with the bundles of its target's levers of which one needs least memory."""
    if spaces[0].workload.mode != "train":
        return
    for space in spaces:
        for bundle in strongest(space.target.levers, space.pins):
            if space.has(bundle):
                yield structs.replace(space, levers=bundle)


def holding(spaces: Sequence[Space], costs: ClusterCosts) -> Space | None:
    """A space with a layout that its GPUs and hosts hold: of those without levers, or with the strongest. `None`: there
    is none."""
    return next((space for space in itertools.chain(spaces, strongest_of(spaces)) if holds(space, costs)), None)


def holds(space: Space, costs: ClusterCosts) -> bool:
    """Whether a space has a layout that its GPUs hold and, on placements, its hosts."""
    try:
        search = Search(space, "memory", costs, timed=False)
        fits = bool(np.isfinite(search.start.bound).any())
    except InputError:
        return False
    return fits and (not space.uses_host or bool(np.isfinite(search.run(runners=0).incumbent)))
