"""The tree of branch and bound over ring degrees: which layouts could still beat the best one so far.

    branch   a family (data, microbatches, ulysses), its rings first … last, and every way to shard them
    bound    the work of `last`, the hops of `first`, and paths that no placement beats (optimistic_paths.py)

Small spaces are listed ring by ring. Large ones start as ranges that grow geometrically; a range is split where its
bound is below the incumbent. Bounds are in the objective's unit: seconds, bytes or GPU-hours. Nothing is left out: what
was not split or priced in time counts into the reported bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from cost_models.errors import InputError
from cost_models.memory.buffers import most_ring_and_shard_bytes
from cost_models.number import distinct, smaller
from cost_models.strategy import Axis, Strategy
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.kernels import Kernels
from planner.search.layout_prices import parts_s, policy_prices
from planner.search.objective import Objective, weight
from planner.search.optimistic_paths import FloorPaths, Reach
from planner.search.space import Space, divisors

SINGLE_ROWS = 1500
"""Spaces of up to so many layouts (without sharding) are listed ring by ring."""
GROWTH = 4
"""Ratio of neighbouring breakpoints of the first ranges."""
PIECES = 8
"""A range is split into so many."""
_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


class Branches(Struct, frozen=True, kw_only=True, eq=False):
    """Branches of the tree, one a row; the second axis of `shard`, `zero`, `bound`, `least_bytes` is the sharding."""

    family: _Ints
    first: _Ints
    last: _Ints
    shard: _Ints
    zero: _Ints
    bound: _Floats  # infinite where the sharding is not legal or cannot fit
    least_bytes: _Floats

    @property
    def single(self) -> NDArray[np.bool_]:
        """Branches of one ring."""
        single: NDArray[np.bool_] = self.first == self.last
        return single

    @property
    def best(self) -> _Floats:
        """Of each branch the least bound."""
        least: _Floats = self.bound.min(axis=1, initial=np.inf)
        return least

    def take(self, where: Any) -> Branches:
        return Branches(**{name: value[where] for name, value in structs.asdict(self).items()})

    def join(self, other: Branches) -> Branches:
        mine, theirs = structs.asdict(self), structs.asdict(other)
        return Branches(**{name: np.concatenate([mine[name], theirs[name]]) for name in mine})


class Tree:
    """Bounds of the branches of one space.

    Pricing is relaxed in three ways, so that no layout of a branch on any placement can be below its bound: the fastest
    devices that so many ranks can have, optimistic paths, and layers in fractions.
    """

    def __init__(self, space: Space, objective: Objective, costs: ClusterCosts) -> None:
        self.space, self.objective, self.costs = space, objective, costs
        self.reach = Reach(costs=costs)
        self.families = space.families
        self.data = np.array([family.data for family in self.families])
        self.microbatches = np.array([family.microbatches for family in self.families])
        self.ulysses = np.array([family.ulysses for family in self.families])

    @cached_property
    def layouts(self) -> int:
        """Layouts of the space without sharding."""
        return sum(family.most_ring - family.first_ring + 1 for family in self.families)

    @cached_property
    def model_parallel(self) -> int:
        """Ranks that hold one copy of the model together without sharding."""
        return self.space.base.tensor * self.space.base.pipeline

    @cached_property
    def capacities(self) -> list[tuple[int, float]]:
        """(GPUs with at least this room, bytes), most room first."""
        gpus: dict[float, int] = {}
        for run in self.space.cluster.runs:
            memory = self.space.room.limit_bytes(run.node.device.allocatable_bytes)
            gpus[memory] = gpus.get(memory, 0) + run.count * run.node.gpus
        sizes = sorted(gpus, reverse=True)
        return [(sum(gpus[other] for other in sizes if other >= size), size) for size in sizes]

    def capacity_bytes(self, ranks: _Ints) -> _Floats:
        """The most that the smallest GPU of so many can have."""
        room = np.zeros(ranks.shape)
        for gpus, size in self.capacities:
            room = np.where((room == 0) & (ranks <= gpus), size, room)
        return room

    def start(self) -> Branches:
        """Every layout of a small space; ranges and single rings between them of a large one."""
        ranges: list[tuple[int, int, int]] = []
        for index, family in enumerate(self.families):
            first, most = family.first_ring, family.most_ring
            small = self.layouts <= SINGLE_ROWS
            ranges += _between(index, range(first, most + 1) if small else _breakpoints(first, most))
        branches = self.branches(ranges)
        if self.layouts <= SINGLE_ROWS and np.isinf(branches.least_bytes).all():
            ranks = self.data[branches.family] * self.ulysses[branches.family] * branches.first
            legal = sorted({divisor for count in distinct(ranks) for divisor in divisors(int(count))})
            shard = self.space.pins.get("shard", 1)
            raise InputError(
                f"shard={shard} with these pins is not possible: it divides data x context; "
                f"legal: {', '.join(map(str, legal))}"
            )
        return branches

    def split(self, branches: Branches) -> Branches:
        """Ranges as shorter ranges and the single rings between them."""
        ranges: list[tuple[int, int, int]] = []
        for family, first, last in zip(branches.family, branches.first, branches.last, strict=True):
            step = max(1, (int(last) - int(first)) // PIECES)
            cuts = sorted({*range(int(first), int(last) + 1, step), int(last)})
            ranges += _between(int(family), cuts)
        return self.branches(ranges)

    def branches(self, ranges: list[tuple[int, int, int]], quick: bool = True) -> Branches:
        """Branches (family, first ring, last ring) with their bounds; `quick` ignores the time of recomputing."""
        branches, legal = self.unbounded(ranges)
        for tier, mine, possible in self._by_tier(branches, legal):
            bound, least = self._bounds(tier, branches.take(mine), possible, quick)
            there = np.ix_(mine, possible)
            branches.bound[there], branches.least_bytes[there] = bound, least
        branches.bound[~legal], branches.least_bytes[~legal] = np.inf, np.inf
        return branches

    def parts_s(self, ranges: list[tuple[int, int, int]]) -> _Floats:
        """Seconds that no layout of a branch is below, whatever memory there is, shape (branches, shardings, parts):
        outside the layers, and of one layer of each kind. Infinite where the sharding is not legal."""
        branches, legal = self.unbounded(ranges)
        found = np.full((*legal.shape, 1 + len(set(self.space.workload.model.layer_kinds))), np.inf)
        for tier, mine, possible in self._by_tier(branches, legal):
            some, kernels, layouts = self._layouts(tier, branches.take(mine), possible)
            found[np.ix_(mine, possible)] = parts_s(
                self.space.workload, layouts, kernels, self._paths(some, possible), self.space.policies[0],
                some.first[:, None, None], self.space.target.code,
            ).min(axis=2)  # fmt: skip
        found[~legal] = np.inf
        return found

    def unbounded(self, ranges: list[tuple[int, int, int]]) -> tuple[Branches, NDArray[np.bool_]]:
        """(branches, which of their shardings are legal)."""
        table = np.array(ranges, dtype=np.int64).reshape(-1, 3)
        family, first, last = table[:, 0], table[:, 1], table[:, 2]
        shard, zero, legal = self.space.shards(self.data[family], last * self.ulysses[family])
        legal &= self.space.allows(self.ulysses[family], last)[:, None]
        legal |= self._legal_within(family, first, last)
        nothing = np.full(shard.shape, np.inf)
        branches = Branches(
            family=family, first=first, last=last, shard=shard, zero=zero, bound=nothing, least_bytes=nothing.copy()
        )
        return branches, legal

    def _by_tier(self, branches: Branches, legal: NDArray[np.bool_]) -> Iterator[tuple[int, _Ints, _Ints]]:
        """(tier of the fastest devices that so many ranks cannot do without, its branches, shardings that are legal
        somewhere)."""
        ranks = self.data[branches.family] * self.ulysses[branches.family] * branches.first * self.model_parallel
        tier = np.searchsorted(np.array([above for above, _ in self.reach.tiers]), ranks) - 1
        possible = np.flatnonzero(legal.any(axis=0))
        for index in distinct(tier) if len(possible) else ():
            yield int(index), np.flatnonzero(tier == index), possible

    def _legal_within(self, family: _Ints, first: _Ints, last: _Ints) -> NDArray[np.bool_]:
        """Shardings that some ring of a range may have where the last one does not."""
        shardings = self.space.shardings
        possible = np.ones((len(family), len(shardings)), dtype=bool)
        if "zero" in self.space.pins:
            possible[:, self.space.again] = False
        if self.space.frees:
            possible[:, [stage != 3 for _, stage in shardings]] = False
        over_context = [name == "context" for name, _ in shardings]
        possible[:, over_context] &= (self.data[family] > 1)[:, None]
        return possible & (first < last)[:, None]

    def strategies(self, family: _Ints, ring: _Ints, shard: _Ints, zero: _Ints) -> Strategy:
        """Layouts as one strategy of arrays."""
        return self.space.base.varied(
            data=self.data[family],
            ring=ring,
            ulysses=self.ulysses[family],
            shard=shard,
            zero=zero,
            microbatches=self.microbatches[family],
        )

    def strategy(self, branches: Branches, row: int, sharding: int) -> Strategy:
        """The layout of one single ring under one sharding."""
        family = branches.family[row]
        return replace(
            self.space.base,
            data=int(self.data[family]),
            microbatches=int(self.microbatches[family]),
            ulysses=int(self.ulysses[family]),
            ring=int(branches.first[row]),
            shard=int(branches.shard[row, sharding]),
            zero=int(branches.zero[row, sharding]),
        )

    def _bounds(self, tier: int, some: Branches, shardings: _Ints, quick: bool) -> tuple[_Floats, _Floats]:
        """(bound, least bytes) of branches that need a device of this tier, under some of `Space.shardings`.

        Arrays are branches x shardings x crowdings of a domain.
        """
        some, kernels, layouts = self._layouts(tier, some, shardings)
        code, single = self.space.target.code, some.single
        priced = policy_prices(
            self.space.workload,
            layouts,
            kernels,
            self._paths(some, shardings),
            self.space.policies,
            kernels.device,
            some.first[:, None, None],
            quick,
            code,
            self._host_limit(some),
            timed=self.objective != "memory",
        )
        ranks = self.data[some.family] * self.ulysses[some.family] * some.first * self.model_parallel
        room = self.capacity_bytes(ranks)[:, None]
        most = most_ring_and_shard_bytes(kernels.device, self.space.workload.model.ssd is not None)
        spare = np.where(single, 0, most)[:, None]  # groups may be of one rank
        least = priced.least_bytes().min(axis=-1) - spare
        if self.objective == "memory":
            return np.where(least <= room, least, np.inf), least
        seconds = priced.relaxed_s((room + spare)[:, :, None]).min(axis=-1)
        return seconds * weight(self.objective, ranks)[:, None], least

    def _layouts(self, tier: int, some: Branches, shardings: _Ints) -> tuple[Branches, Kernels, Strategy]:
        """(branches under these shardings alone, kernels of a tier, the layouts of their last rings)."""
        some = structs.replace(some, shard=some.shard[:, shardings], zero=some.zero[:, shardings])
        measured = self.space.target.code.measured_attention(self.space.workload)
        kernels = self.costs.kernels(self.reach.tiers[tier][1], measured, choose=smaller)
        layouts = self.strategies(
            some.family[:, None, None], some.last[:, None, None], some.shard[:, :, None], some.zero[:, :, None]
        )
        return some, kernels, layouts

    def _host_limit(self, some: Branches) -> Any:
        """The most host memory that a rank can have: so many ranks lie at least on the node that has most of them."""
        nodes = [run.node.host_memory_bytes for run in self.space.cluster.runs if run.node.gpus]
        if not self.space.uses_host or not all(nodes):
            return np.inf
        ranks = self.data[some.family] * self.ulysses[some.family] * some.first * self.model_parallel
        return (max(nodes) / -(-ranks // self.space.cluster.slots))[:, None, None]

    def _paths(self, some: Branches, shardings: _Ints) -> FloorPaths:
        """Paths that no placement of any ring of a branch beats: groups are as small as its first ring makes them."""
        context = self.ulysses[some.family] * some.first
        ranks, base = self.data[some.family] * context, self.space.base
        one = np.ones_like(ranks)
        smallest = {"ranks": ranks, "context": context, "domain": one, "one": one, "alone": one}
        within = np.stack([smallest[self.space.shardings[i][0]] for i in shardings], axis=1)
        shard = np.where(some.single[:, None] | ("shard" in self.space.pins), some.shard, within)
        sizes: dict[Axis, _Ints] = {
            "ulysses": self.ulysses[some.family][:, None, None],
            "ring": some.first[:, None, None],
            "context": context[:, None, None],
            "shard": shard[:, :, None],
            "replicate": np.maximum(1, ranks[:, None] // some.shard)[:, :, None],
        }
        held: dict[Axis, int] = {"tensor": base.tensor, "pipeline": base.pipeline}
        sizes |= {axis: np.full((1, 1, 1), degree) for axis, degree in held.items() if degree > 1}
        return self.reach.paths(sizes, (ranks * self.model_parallel)[:, None, None])


def _breakpoints(first: int, most: int) -> list[int]:
    """Rings 1 to 4, the largest and its halves, and a geometric sequence between them."""
    cuts, ring = {first, most, most // 2, most // 4, *range(1, 5)}, 4
    while ring < most:
        cuts.add(ring)
        ring *= GROWTH
    return sorted(cut for cut in cuts if first <= cut <= most)


def _between(family: int, cuts: Sequence[int]) -> list[tuple[int, int, int]]:
    """Single rings at the cuts and the ranges between them."""
    gaps = [(family, a + 1, b - 1) for a, b in itertools.pairwise(cuts) if b - a > 1]
    return [*((family, cut, cut) for cut in cuts), *gaps]
