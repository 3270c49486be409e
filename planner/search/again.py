"""Layouts that earlier searches priced, priced again on a changed cluster without a search.

    kept      of every search its best layouts, each on its best placement, by space
    priced    these alone on the changed cluster: which is best there if the best one is among them
    left      of every space the branches of a search whose bounds are at most a value; floors of spaces with levers

The first is a guess where the best layout changes, for who then searches at few amounts and not at all of them; its
bound is of the kept layouts alone. The last is a smaller space for clusters that have less of everything than the one
searched: what is bounded above a value with more is above it with less.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct, field, structs

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.room import Room
from cost_models.strategy import Strategy
from cost_models.timing.cluster_costs import ClusterCosts
from planner.search.best_first import Search, SearchResult
from planner.search.branch import Branches
from planner.search.columns import PricedLayouts
from planner.search.objective import Objective
from planner.search.policy_prices import EQUAL
from planner.search.several import SeveralResults
from planner.search.space import Key, Space
from planner.search.with_levers import wanted

MOST_KEPT = 12
"""Layouts of one search that are kept, each on its best placement."""
Found = list[tuple[Space, SearchResult]]
Ranges = list[tuple[int, int, int]]
"""(family of the space, first ring, last ring)"""


class Left(Struct, frozen=True, kw_only=True, eq=False):
    """What a search did not show to be above a value."""

    ranges: dict[Key, Ranges] | None = None  # by space without levers; none of one that is above it altogether
    floors: dict[Key, float] = field(default_factory=dict)  # of spaces with levers a value that no layout is below


ALL = Left()


def left(branches: Mapping[Key, Branches], floors: dict[Key, float], value: float) -> Left:
    """Of a search with these branches and floors, what may be at most a value."""
    ranges = {}
    for key, these in branches.items():
        some = these.take(these.best <= value * (1 + EQUAL))
        ranges[key] = list(zip(some.family.tolist(), some.first.tolist(), some.last.tolist(), strict=True))
    return Left(ranges=ranges, floors=floors)


class Kept(Struct, kw_only=True, eq=False):
    """Columns by space, whatever its cluster and room."""

    spaces: dict[Key, Space] = field(default_factory=dict)
    layouts: dict[Key, dict[Strategy, list[Placement]]] = field(default_factory=dict)
    columns: dict[Key, tuple[int, ClusterCosts, PricedLayouts]] = field(default_factory=dict)
    """(how many layouts, on which cluster, as priced): with another room alone nothing is priced again."""

    def copy(self) -> Kept:
        """Another one to add to."""
        several = {key: {one: [*on] for one, on in layouts.items()} for key, layouts in self.layouts.items()}
        return Kept(spaces={**self.spaces}, layouts=several, columns={**self.columns})

    def add(self, found: Found) -> None:
        """The best columns of a search."""
        columns = [
            (float(value), place, space, result)
            for space, result in found
            for place, value in enumerate(result.value)
            if np.isfinite(value)
        ]
        best: dict[tuple[Key, Strategy], tuple[Space, Placement]] = {}
        for _, place, space, result in sorted(columns, key=lambda one: one[0]):
            layout = (space.key, result.columns.strategies[place])
            best.setdefault(layout, (space, result.columns.placements[place]))
            if len(best) == MOST_KEPT:
                break
        for (key, strategy), (space, placement) in best.items():
            self.spaces.setdefault(key, space)
            several = self.layouts.setdefault(key, {}).setdefault(strategy, [])
            if not any(_same(placement, other) for other in several):
                several.append(placement)

    def priced(self, cluster: Cluster, room: Room, objective: Objective, costs: ClusterCosts) -> SeveralResults:
        """What was kept, on another cluster; layouts with levers where a search would try levers."""
        without = self._priced(
            [key for key in self.layouts if not self.spaces[key].levers.chosen], cluster, room, objective, costs
        )
        with_levers = [key for key in self.layouts if self.spaces[key].levers.chosen]
        spaces = [structs.replace(space, cluster=cluster, room=room) for space in self.spaces.values()]
        if not with_levers or not wanted(spaces, without, objective):
            return without
        found = [*without.found, *self._priced(with_levers, cluster, room, objective, costs).found]
        return structs.replace(without, found=sorted(found, key=lambda pair: pair[1].incumbent))

    def _priced(
        self, keys: list[Key], cluster: Cluster, room: Room, objective: Objective, costs: ClusterCosts
    ) -> SeveralResults:
        found = []
        for key in keys:
            space = structs.replace(self.spaces[key], cluster=cluster, room=room)
            search, layouts = Search(space, objective, costs), self.layouts[key]
            many, known = sum(map(len, layouts.values())), self.columns.get(key)
            if known is None or known[:2] != (many, costs):
                known = self.columns[key] = many, costs, search.pricer.price_each(layouts)
            result = search.among(search.pricer.in_room(known[2]))
            found += [(space, result)] if np.isfinite(result.incumbent) else []
        found.sort(key=lambda pair: pair[1].incumbent)
        return SeveralResults(found=found, bound=np.inf, considered=0, stopped=False)


def _same(one: Placement, other: Placement) -> bool:
    return np.array_equal(one.slot_of_rank, other.slot_of_rank) and np.array_equal(one.gpu_of_rank, other.gpu_of_rank)
