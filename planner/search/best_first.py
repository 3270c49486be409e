"""Best-first search: from bounds to the few priced columns that the integer program chooses from.

    1  bound all of the space (ranges of rings where it is large)
    2  price the most promising layouts on their placements: the incumbent
    3  split every range, then price every layout, whose bound is below the incumbent, in ascending order

The reported bound holds for every placement: `open_bound` counts what a budget left undone, and layouts of which only
families of placements were priced. Budgets count work (rows, ranks), so that the same input gives the same answer.
A clock is read only where the caller gives a deadline; what it cuts off is left open in the same way.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from cost_models.strategy import Strategy
from cost_models.timing.cluster_costs import ClusterCosts
from planner.search.branch import Branches, Tree
from planner.search.columns import PricedLayouts, Pricer
from planner.search.improve import (
    BATCH,
    HELPS,
    MOST_BLOCK_RANKS,
    MOST_EXCHANGES,
    MOST_FILLS,
    MOST_RANKS,
    MOST_RANKS_READ,
    block_pairs,
    exchanged,
    exchanged_blocks,
    filled,
    fills,
    unmoved,
)
from planner.search.objective import Objective, weight
from planner.search.placements import Placements
from planner.search.policy_prices import EQUAL
from planner.search.region_bounds import RegionBounds
from planner.search.regions import Regions, Rows
from planner.search.space import Space

MOST_ROWS = 12_000
"""Branches that splitting makes: beyond, ranges are left whole."""
MOST_PLACED_RANKS = 250_000
"""Ranks of all placements that are read: what remains stays in the bound."""
FIRST_BATCH = 6
NEAR = 1.05
"""Layouts bounded below this multiple of the best price are worth pricing where near ones are asked for."""
MOST_NEAR = 12
TIGHT = 1.5e-3
"""A gap that is not worth closing further: a price is some percent off."""
MOST_REGIONAL = 2000
"""Layouts whose placements are looked at region by region."""
MOST_EXCHANGED = 3
"""Layouts of which ranks are exchanged."""
_Entry = tuple[float, int, int]  # bound, row of the branches, sharding


class SearchResult(Struct, frozen=True, kw_only=True, eq=False):
    """Priced columns, each with its best mix of recompute policies, for the program to choose from."""

    columns: PricedLayouts
    value: NDArray[np.float64]  # of each column with that mix; infinite if nothing fits
    layers: NDArray[np.int64]  # by choice, of that mix
    bound: NDArray[np.float64]  # of each column, layers in fractions
    open_bound: float  # of everything of which not every placement was priced; infinite if nothing is left
    considered: int  # layouts in the space, sharding counted
    pruned: int  # of these, never priced on a placement
    stopped: bool  # by the deadline

    @property
    def incumbent(self) -> float:
        return float(self.value.min(initial=np.inf))


class Search:
    """One search; `deadline` is a reading of `time.monotonic` or None; past it one layout that fits is priced.
    `timed=False`: columns have no seconds, for who asks what fits. `only`: these ranges of the space, and no others."""

    def __init__(
        self,
        space: Space,
        objective: Objective,
        costs: ClusterCosts,
        deadline: float | None = None,
        timed: bool = True,
        only: Sequence[tuple[int, int, int]] | None = None,
    ) -> None:
        self.space, self.objective, self.deadline = space, objective, deadline
        self.tree = Tree(space, objective, costs)
        self.pricer = Pricer(space, costs, timed)
        self.priced = [self.pricer.price([])]
        self.done: set[Strategy] = set()
        self.incumbent = np.inf  # the best value known, also of another space
        self.placed_ranks = 0
        self.regions: tuple[Regions, dict[Strategy, tuple[Rows, int] | None]] | None = None
        self.stopped = False
        self.only = only
        self.branches: Branches | None = None  # at the end of the search

    @cached_property
    def start(self) -> Branches:
        return self.tree.start() if self.only is None else self.tree.branches([*self.only])

    @property
    def floor(self) -> float:
        """A value that no layout of the space is below."""
        return float(self.start.best.min(initial=np.inf))

    @property
    def layouts(self) -> int:
        """Of the space, sharding counted."""
        return self.tree.layouts * (1 if "shard" in self.space.pins else len(self.space.shardings))

    def run(self, runners: int, near: bool = False) -> SearchResult:
        """Search; also prices the most promising layout of `runners` other families, and what is near the best."""
        branches = self.start
        if self.out_of_time():
            self._price_first(branches)
            split = ~branches.single & (branches.best < self._limit())
            return self._result(branches.take(~split).join(self.tree.split(branches.take(split))))
        wanted = self._near(branches) if near else []
        self._price([*self._promising(branches), *self._runners(branches, runners), *wanted])
        bounded = 0
        while not self.out_of_time():
            split = ~branches.single & (branches.best < self._limit())
            if not split.any() or bounded > MOST_ROWS:
                break
            parts = self.tree.split(branches.take(split))
            bounded += len(parts.family)
            branches = branches.take(~split).join(parts)
            self._price(self._promising(parts))
        for sharper in (self._refined, self._by_region):
            branches = branches if self._tight(branches) else sharper(branches)
        self._price_all(branches)
        self._improve(branches)
        if not self.out_of_time():
            self._price([*self._runners(branches, runners), *(self._near(branches) if near else ())])
        self.branches = branches
        return self._result(branches)

    def among(self, columns: PricedLayouts) -> SearchResult:
        """The answer among these columns alone, without a search; the bound is theirs."""
        self.priced.append(columns)
        return self._priced_result(open_bound=np.inf)

    def _limit(self) -> float:
        """Bounds from here on cannot win."""
        return self.incumbent * (1 + EQUAL)

    def _tight(self, branches: Branches) -> bool:
        """Whether sharper bounds, a third of the search, could only tell what no price does. Unlike nodes want their
        regions for placements, too."""
        return self.space.cluster.uniform and float(branches.best.min(initial=np.inf)) >= self.incumbent * (1 - TIGHT)

    def out_of_time(self) -> bool:
        self.stopped = self.stopped or (self.deadline is not None and time.monotonic() > self.deadline)
        return self.stopped

    def _refined(self, branches: Branches) -> Branches:
        """Bounds that count the time of recomputing, for single rings that could still win."""
        again = branches.single & (branches.best < self._limit())
        if not again.any() or len(self.space.policies) == 1 or self.out_of_time():
            return branches
        table = np.stack([branches.family, branches.first, branches.last], axis=1)[again]
        return branches.take(~again).join(self.tree.branches([tuple(row) for row in table.tolist()], quick=False))

    def _by_region(self, branches: Branches) -> Branches:
        """Bounds by the regions of a layout's placements, for what could still win."""
        entries = [entry for entry in self._entries(branches) if entry[0] < self._limit()][:MOST_REGIONAL]
        regional = None if self.objective == "memory" or not entries else RegionBounds.of(self.space, self.tree.reach)
        if regional is None or self.out_of_time():
            return branches
        strategies = self._strategies(branches, entries)
        found = regional.bounds(strategies)
        paid = weight(self.objective, np.array([strategy.ranks for strategy in strategies]))
        bound = branches.bound.copy()
        for (_, row, sharding), value in zip(entries, found.bound * paid, strict=True):
            bound[row, sharding] = max(bound[row, sharding], value)
        self.regions = regional.regions, dict(zip(strategies, found.rows, strict=True))
        return structs.replace(branches, bound=bound)

    def _improve(self, branches: Branches) -> None:
        """Layouts that could still win on the fills of their best regions; then exchanges of the best ones."""
        cluster = self.space.cluster
        if self.regions is None or cluster.uniform or cluster.nodes_per_domain > 1 or cluster.domains:
            return
        regions, rows = self.regions
        for bound, row, sharding in self._entries(branches):
            strategy = self.tree.strategy(branches, row, sharding)
            if bound >= self._limit() or self.out_of_time():
                break
            best = rows.get(strategy)
            if best is not None and strategy.ranks <= MOST_BLOCK_RANKS:
                self._priced_on(strategy, filled(regions, *best, strategy, self.pricer))
        columns = PricedLayouts.joined(self.priced)
        value = self._values(columns)[0]
        first: dict[Strategy, list[int]] = {}
        for column in np.argsort(value, kind="stable").tolist():
            if np.isfinite(value[column]):
                first.setdefault(columns.strategies[column], []).append(column)
        for strategy, several in itertools.islice(first.items(), MOST_EXCHANGED):
            if strategy.ranks <= MOST_RANKS:
                self._exchange(strategy, columns.take(several[:1]), float(value[several[0]]))
            elif strategy.ranks <= MOST_BLOCK_RANKS:
                for column in fills(columns, several)[:MOST_FILLS]:
                    self._exchange_blocks(strategy, columns.take([column]), float(value[column]))

    def _exchange(self, strategy: Strategy, best: PricedLayouts, value: float) -> None:
        """Makes the best exchange of a placement until none helps."""
        for _ in range(MOST_EXCHANGES):
            if self.out_of_time():
                return
            columns = self.pricer.price_on(strategy, exchanged(strategy, best, 0, self.pricer))
            values = self._values(columns)[0]
            if values.min(initial=np.inf) >= value * (1 - HELPS):
                return
            best, value = columns.take([int(values.argmin())]), float(values.min())
            self._keep(best)

    def _exchange_blocks(self, strategy: Strategy, best: PricedLayouts, value: float) -> None:
        """Makes the best of each batch of exchanges, until none of all helps or the budget is spent."""
        pairs, at, since = block_pairs(strategy), 0, 0
        most = MOST_RANKS_READ // MOST_EXCHANGED // MOST_FILLS // strategy.ranks
        while since < len(pairs) and at < most and not self.out_of_time():
            batch = [pairs[i % len(pairs)] for i in range(at, at + min(BATCH, len(pairs)))]
            at, since = at + len(batch), since + len(batch)
            columns = self.pricer.price_better(strategy, exchanged_blocks(best, 0, batch), unmoved(strategy, batch))
            values = self._values(columns)[0]
            if values.min(initial=np.inf) < value * (1 - HELPS):
                best, value, since = columns.take([int(values.argmin())]), float(values.min()), 0
        self._keep(best)

    def _priced_on(self, strategy: Strategy, placements: Placements) -> None:
        columns = self.pricer.price_on(strategy, placements)
        values = self._values(columns)[0]
        if np.isfinite(values).any():
            self._keep(columns.take([int(values.argmin())]))

    def _keep(self, columns: PricedLayouts) -> None:
        self.priced.append(columns)
        self.incumbent = min(self.incumbent, float(self._values(columns)[0].min(initial=np.inf)))

    def _entries(self, branches: Branches) -> list[_Entry]:
        """Single rings under each legal sharding, best first."""
        row, sharding = np.nonzero(np.isfinite(branches.bound) & branches.single[:, None])
        bound = branches.bound[row, sharding]
        shard, zero = branches.shard[row, sharding], branches.zero[row, sharding]
        order = np.lexsort((zero, shard, branches.first[row], branches.family[row], bound))
        return list(zip(bound[order].tolist(), row[order].tolist(), sharding[order].tolist(), strict=True))

    def _strategies(self, branches: Branches, entries: list[_Entry]) -> list[Strategy]:
        return [self.tree.strategy(branches, row, sharding) for _, row, sharding in entries]

    def _promising(self, branches: Branches) -> list[Strategy]:
        """What may be the first incumbent, or a better one."""
        entries = [entry for entry in self._entries(branches)[:FIRST_BATCH] if entry[0] < self._limit()]
        return self._strategies(branches, entries)

    def _price_first(self, branches: Branches) -> None:
        """The most promising layout that has a placement where it fits."""
        for _, row, sharding in self._entries(branches):
            self._price([self.tree.strategy(branches, row, sharding)])
            if np.isfinite(self.incumbent):
                return

    def _price_all(self, branches: Branches) -> None:
        """Everything that could still win, in growing batches, as far as the budget goes."""
        entries = [entry for entry in self._entries(branches) if entry[0] < self._limit()]
        bounds = np.array([bound for bound, _, _ in entries])
        strategies = self._strategies(branches, entries)
        todo = [i for i, strategy in enumerate(strategies) if strategy not in self.done]
        size, at = FIRST_BATCH, 0
        while at < len(todo) and bounds[todo[at]] < self._limit() and self.placed_ranks <= MOST_PLACED_RANKS:
            if self.out_of_time():
                return
            self._price([strategies[i] for i in todo[at : at + size] if bounds[i] < self._limit()])
            at, size = at + size, min(32, 2 * size)

    def _runners(self, branches: Branches, count: int) -> list[Strategy]:
        """The most promising layout of each of the best families."""
        first: dict[int, _Entry] = {}
        for entry in self._entries(branches) if count else ():
            first.setdefault(int(branches.family[entry[1]]), entry)
            if len(first) == count:
                break
        return self._strategies(branches, list(first.values()))

    def _near(self, branches: Branches) -> list[Strategy]:
        """What the price may not tell from the best: other degrees, and other shardings of the same."""
        entries = self._entries(branches)[:MOST_NEAR]
        limit = min(entries[0][0], self.incumbent) * NEAR if entries else 0.0
        return self._strategies(branches, [entry for entry in entries if entry[0] < limit])

    def _price(self, strategies: list[Strategy]) -> None:
        new = [strategy for strategy in dict.fromkeys(strategies) if strategy not in self.done]
        if not new:
            return
        self.done.update(new)
        columns = self.pricer.price(new)
        self.placed_ranks += int(columns.ranks.sum())
        self._keep(columns)

    def _values(self, columns: PricedLayouts) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The objective of each column with its best mix, and the layers by choice."""
        prices, capacity_bytes = columns.prices, columns.capacity_bytes
        if self.objective != "memory":
            seconds, layers = prices.mixed(capacity_bytes)
            return seconds * weight(self.objective, columns.ranks), layers
        used = np.where(prices.uniform_fits_host(), prices.uniform_bytes().max(axis=1), np.inf)
        value = used.min(axis=1)
        return np.where(value <= capacity_bytes, value, np.inf), prices.uniform[used.argmin(axis=1)]

    def _open_bound(self, branches: Branches, complete: frozenset[Strategy]) -> float:
        """The least bound of ranges left, layouts not priced, and layouts of which only families were priced."""
        left = float(branches.bound[~branches.single].min(initial=np.inf))
        for bound, row, sharding in self._entries(branches):
            if bound >= left:
                break
            if self.tree.strategy(branches, row, sharding) not in complete:
                return bound
        return left

    def _result(self, branches: Branches) -> SearchResult:
        complete = frozenset().union(*(part.complete for part in self.priced))
        return self._priced_result(self._open_bound(branches, complete))

    def _priced_result(self, open_bound: float) -> SearchResult:
        columns = PricedLayouts.joined(self.priced)
        value, layers = self._values(columns)
        relaxed = columns.prices.relaxed_s(columns.capacity_bytes) * weight(self.objective, columns.ranks)
        return SearchResult(
            columns=columns,
            value=value,
            layers=layers,
            bound=value if self.objective == "memory" else relaxed,
            open_bound=open_bound,
            considered=self.layouts,
            pruned=max(0, self.layouts - len(self.done)),
            stopped=self.stopped,
        )
