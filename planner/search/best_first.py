"""Best-first search: from bounds to the few priced columns that the integer program chooses from.

    1  bound the whole space (ranges of rings where it is large)
    2  lay and price the most promising layouts: the incumbent
    3  split every range, then price every layout, whose bound is below the incumbent, in ascending order

What a budget left undone, and layouts of which only families of placements were priced, are in `open_bound`: the
reported bound holds for every placement. Budgets count work (rows, ranks),
not seconds: the same input gives the same answer. Left out: no clock is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.strategy import Strategy
from planner.search.branch import Branches, Tree
from planner.search.columns import Layout, PricedLayouts, Pricer, join
from planner.search.policy_prices import EQUAL
from planner.search.space import Space

MOST_ROWS = 12_000
"""Rows of bounds: ranges are not split beyond."""
MOST_LAID_RANKS = 250_000
"""Ranks of all placements that are read: what remains stays in the bound."""
FIRST_BATCH = 6
_Key = tuple[int, int, int, int]  # family, ring, shard, zero


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What the search hands to the program."""

    laid: PricedLayouts
    value: NDArray[np.float64]  # of each column with its best two-policy mix; infinite if nothing fits
    layers: NDArray[np.int64]  # of that mix
    bound: NDArray[np.float64]  # of each column, layers relaxed
    open_bound: float  # of everything of which not every placement was priced; infinite if nothing is left
    considered: int  # layouts in the space, sharding counted
    pruned: int  # of these, never laid out

    @property
    def incumbent(self) -> float:
        return float(self.value.min()) if len(self.value) else np.inf


class Search:
    def __init__(self, space: Space, floors: Tree) -> None:
        self.space, self.floors = space, floors
        self.pricer = Pricer(floors)
        self.laid: PricedLayouts | None = None
        self.done: set[_Key] = set()
        self.complete: set[_Key] = set()  # every placement of these was priced
        self.incumbent = np.inf
        self.laid_ranks = 0

    def run(self, runners: int) -> SearchResult:
        """Search; also prices the most promising layout of `runners` other families, for comparison."""
        nodes = self.floors.start()
        self._lay_best(nodes, FIRST_BATCH)
        while True:
            best = nodes.bound.min(axis=1, initial=np.inf)
            open_ranges = ~nodes.single & (best < self._limit())
            if not open_ranges.any() or len(nodes.family) > MOST_ROWS:
                break
            parts = self.floors.split(nodes.take(open_ranges))
            nodes = nodes.take(~open_ranges).join(parts)
            self._lay_best(parts, FIRST_BATCH)
        nodes = self._refine(nodes)
        self._lay_all(nodes)
        self._lay_runners(nodes, runners)
        return self._found(self._open_bound(nodes))

    def _limit(self) -> float:
        return self.incumbent * (1 + EQUAL)

    def _refine(self, nodes: Branches) -> Branches:
        """Bounds with recompute priced, for single rings that could still win."""
        again = nodes.single & (nodes.bound.min(axis=1, initial=np.inf) < self._limit())
        if not again.any() or len(self.space.policies) == 1:
            return nodes
        table = np.stack([nodes.family, nodes.first, nodes.last], axis=1)[again]
        return nodes.take(~again).join(self.floors.nodes([tuple(row) for row in table.tolist()], quick=False))

    def _entries(self, nodes: Branches) -> list[tuple[float, int, int]]:
        """(bound, node, sharding) of single rings that are not laid out yet, best first."""
        row, column = np.nonzero(np.isfinite(nodes.bound) & nodes.single[:, None])
        value = nodes.bound[row, column]
        keys = (nodes.zero[row, column], nodes.shard[row, column], nodes.first[row], nodes.family[row], value)
        order = np.lexsort(keys)
        return [(float(value[i]), int(row[i]), int(column[i])) for i in order]

    def _lay_best(self, nodes: Branches, count: int) -> None:
        picked = [entry for entry in self._entries(nodes)[: 4 * count] if entry[0] < self._limit()]
        self._lay(nodes, picked[:count])

    def _lay_all(self, nodes: Branches) -> None:
        """Price everything that could still win, as far as the budget goes."""
        entries = [e for e in self._entries(nodes) if e[0] < self._limit() and self._key(nodes, e) not in self.done]
        size, at = FIRST_BATCH, 0
        while at < len(entries) and entries[at][0] < self._limit() and self.laid_ranks <= MOST_LAID_RANKS:
            batch = [entry for entry in entries[at : at + size] if entry[0] < self._limit()]
            self._lay(nodes, batch)
            at, size = at + size, min(32, 2 * size)

    def _open_bound(self, nodes: Branches) -> float:
        """The least bound of ranges left, layouts not laid out, and layouts of which only families were priced."""
        ranges = float(nodes.bound[~nodes.single].min(initial=np.inf))
        unproven = (e[0] for e in self._entries(nodes) if self._key(nodes, e) not in self.complete)
        return min(ranges, next(unproven, np.inf))

    def _lay_runners(self, nodes: Branches, count: int) -> None:
        seen: set[int] = set()
        picked = []
        for entry in self._entries(nodes):
            family = int(nodes.family[entry[1]])
            if family not in seen and len(seen) < count:
                seen.add(family)
                picked.append(entry)
        self._lay(nodes, picked)

    def _key(self, nodes: Branches, entry: tuple[float, int, int]) -> _Key:
        _, row, column = entry
        ring, shard, zero = nodes.first[row], nodes.shard[row, column], nodes.zero[row, column]
        return int(nodes.family[row]), int(ring), int(shard), int(zero)

    def _lay(self, nodes: Branches, entries: list[tuple[float, int, int]]) -> None:
        layouts = []
        for entry in entries:
            key = self._key(nodes, entry)
            if key not in self.done:
                self.done.add(key)
                layouts.append(Layout(family=key[0], strategy=self._strategy(*key)))
        if not layouts:
            return
        laid = self.pricer.price(layouts)
        self.complete.update(
            (one.family, one.strategy.ring, one.strategy.shard, one.strategy.zero) for one in laid.complete
        )
        self.laid_ranks += sum(len(placement.slot_of_rank) for placement in laid.placements)
        self.laid = join(self.laid, laid)
        if len(laid.layouts):
            self.incumbent = min(self.incumbent, float(self._values(laid)[0].min()))

    def _strategy(self, family: int, ring: int, shard: int, zero: int) -> Strategy:
        floors = self.floors
        return replace(
            self.space.base,
            data=int(floors.data[family]),
            microbatches=int(floors.microbatches[family]),
            ulysses=int(floors.ulysses[family]),
            ring=ring,
            shard=shard,
            zero=zero,
        )

    def _values(self, laid: PricedLayouts) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The objective of each column with its best mix of at most two policies."""
        seconds, layers = laid.prices.mixed(laid.capacity_bytes)
        if self.floors.objective != "memory":
            return seconds * self._weight(laid), layers
        count = len(laid.prices.policies)
        whole = laid.prices.layers * np.eye(count, dtype=np.int64)
        used = np.stack([laid.prices.bytes_of(np.broadcast_to(row, layers.shape)) for row in whole], axis=1)
        least = used.argmin(axis=1) if len(used) else np.zeros(0, dtype=np.int64)
        value = used.min(axis=1)
        return np.where(value <= laid.capacity_bytes, value, np.inf), whole[least]

    def _weight(self, laid: PricedLayouts) -> Any:
        return self.floors.weight(np.array([layout.strategy.ranks for layout in laid.layouts], dtype=np.float64))

    def _found(self, left: float) -> SearchResult:
        if self.laid is None:
            self.laid = self.pricer.price([])
        value, layers = self._values(self.laid)
        if self.floors.objective == "memory":
            bound = value
        else:
            bound = self.laid.prices.relaxed_s(self.laid.capacity_bytes) * self._weight(self.laid)
        considered = _count(self.floors, self.space.pins)
        return SearchResult(
            laid=self.laid,
            value=value,
            layers=layers,
            bound=bound,
            open_bound=left,
            considered=considered,
            pruned=max(0, considered - len(self.done)),
        )


def _count(floors: Tree, pins: Mapping[str, Any]) -> int:
    """Layouts of the space, every ring with at most four ways of sharding and their ZeRO stages."""
    rings = sum(family.most_ring - family.first_ring + 1 for family in floors.families)
    return rings * (1 if "shard" in pins else 7)
