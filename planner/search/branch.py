"""Branch and bound over ring degrees: which layouts could still beat the best one found.

    a node is a family (data, microbatches, ulysses) with rings first … last, and every way to shard beside each other
    its bound is priced with the work of `last`, the hops of `first` and optimistic paths (see optimistic_paths.py)

Small spaces are single rings from the start; large ones start as ranges that grow geometrically and are split where
their bound is below the incumbent. Values are the objective's: seconds, bytes, or GPU-hours. Left out: nothing is
dropped silently; what was not split or priced in time stays in `least_open`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cost_models.curves.samples import Sample
from cost_models.either import smaller
from cost_models.errors import InputError
from cost_models.layer.sizes import Degrees
from cost_models.memory.components import GROUP_BYTES
from cost_models.timing.cluster_costs import costs_of
from planner.search.optimistic_paths import Reach
from planner.search.policy_prices import policy_prices
from planner.search.space import SHARDINGS, Space, divisors

Objective = Literal["time", "memory", "gpu-hours"]
SINGLE_ROWS = 1500
"""Spaces of up to so many layouts (without sharding) are listed ring by ring."""
GROWTH = 1.3
"""Ratio of neighbouring breakpoints of the first ranges."""
PIECES = 8
"""Into so many ranges one is split."""
_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Branches:
    """Layouts side by side; the second axis of shard, zero and bound is the sharding."""

    family: _Ints
    first: _Ints
    last: _Ints
    shard: _Ints
    zero: _Ints
    bound: _Floats  # infinite where the sharding is not legal or cannot fit
    least_bytes: _Floats

    @property
    def single(self) -> NDArray[np.bool_]:
        alone: NDArray[np.bool_] = self.first == self.last
        return alone

    def take(self, where: Any) -> Branches:
        return Branches(**{name: value[where] for name, value in vars(self).items()})

    def join(self, other: Branches) -> Branches:
        mine, theirs = vars(self), vars(other)
        return Branches(**{name: np.concatenate([mine[name], theirs[name]]) for name in mine})


class Tree:
    """Bounds of nodes in one space."""

    def __init__(self, space: Space, objective: Objective, samples: tuple[Sample, ...]) -> None:
        self.space, self.objective, self.samples = space, objective, samples
        self.reach = Reach(costs=costs_of(space.cluster, samples))
        self.families = space.families
        self.data = np.array([family.data for family in self.families])
        self.microbatches = np.array([family.microbatches for family in self.families])
        self.ulysses = np.array([family.ulysses for family in self.families])

    @cached_property
    def capacities(self) -> list[tuple[int, int]]:
        """(GPUs with at least this memory, bytes), most memory first."""
        gpus: dict[int, int] = {}
        for run in self.space.cluster.runs:
            memory = run.node.device.memory_bytes
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
        total = sum(family.most_ring - family.first_ring + 1 for family in self.families)
        found: list[tuple[int, int, int]] = []
        for index, family in enumerate(self.families):
            first, most = family.first_ring, family.most_ring
            if total <= SINGLE_ROWS:
                cuts: Sequence[int] = range(first, most + 1)
            else:
                cuts = _breakpoints(first, most)
            found += _between(index, cuts)
        nodes = self.nodes(found)
        if total <= SINGLE_ROWS and np.isinf(nodes.least_bytes).all():
            ranks = self.data[nodes.family] * self.ulysses[nodes.family] * nodes.first
            legal = sorted({divisor for count in np.unique(ranks) for divisor in divisors(int(count))})
            shard = self.space.pins.get("shard", 1)
            raise InputError(
                f"shard={shard} with these pins is not possible: it divides data x context; "
                f"legal: {', '.join(map(str, legal))}"
            )
        return nodes

    def split(self, nodes: Branches) -> Branches:
        """Ranges as shorter ranges and the single rings between them."""
        found: list[tuple[int, int, int]] = []
        for family, first, last in zip(nodes.family, nodes.first, nodes.last, strict=True):
            step = max(1, (int(last) - int(first)) // PIECES)
            cuts = sorted({*range(int(first), int(last) + 1, step), int(last)})
            found += _between(int(family), cuts)
        return self.nodes(found)

    def nodes(self, ranges: list[tuple[int, int, int]], quick: bool = True) -> Branches:
        """Price (family, first ring, last ring) at their least; `quick` leaves out what recomputing costs."""
        table = np.array(ranges, dtype=np.int64).reshape(-1, 3)
        family, first, last = table[:, 0], table[:, 1], table[:, 2]
        context = last * self.ulysses[family]
        shard, zero, legal = self.space.shards(self.data[family], context)
        legal |= self._in_range(family, first, last)
        bound, least = np.full(shard.shape, np.inf), np.full(shard.shape, np.inf)
        model_parallel = self.space.base.tensor * self.space.base.pipeline
        ranks = self.data[family] * self.ulysses[family] * first * model_parallel
        tiers = self.reach.tiers
        for index, (above, _) in enumerate(tiers):
            below = tiers[index + 1][0] if index + 1 < len(tiers) else np.inf
            mine = np.flatnonzero((ranks > above) & (ranks <= below))
            if len(mine):
                bound[mine], least[mine] = self._floor(index, table[mine], shard[mine], zero[mine], quick)
        bound[~legal], least[~legal] = np.inf, np.inf
        return Branches(family=family, first=first, last=last, shard=shard, zero=zero, bound=bound, least_bytes=least)

    def _in_range(self, family: _Ints, first: _Ints, last: _Ints) -> NDArray[np.bool_]:
        """Shardings that some ring of a range may have where the last one does not."""
        possible = np.ones((len(family), len(SHARDINGS)), dtype=bool)
        if "zero" in self.space.pins or "shard" in self.space.pins:
            possible[:, 1::2] = False
        whole = [name == "context" for name, _ in SHARDINGS]
        possible[:, whole] &= (self.data[family] > 1)[:, None]
        return possible & (first < last)[:, None]

    def degrees(self, family: _Ints, ring: _Ints, shard: _Ints, zero: _Ints) -> Degrees:
        """The layouts as one batch; `ring` and the family broadcast against the shardings."""
        base = self.space.base
        return Degrees(
            data=self.data[family],
            ring=ring,
            ulysses=self.ulysses[family],
            shard=shard,
            zero=zero,
            microbatches=self.microbatches[family],
            tensor=base.tensor,
            pipeline=base.pipeline,
            virtual=base.virtual,
            ring_kind=base.ring_kind,
            grad_ring_dtype=base.grad_ring_dtype,
            loss_chunk_tokens=base.loss_chunk_tokens,
            schedule=base.schedule,
            mlp_chunk_tokens=base.mlp_chunk_tokens,
        )

    def weight(self, ranks: Any) -> Any:
        """From seconds to the objective's unit."""
        return ranks / 3600.0 if self.objective == "gpu-hours" else ranks * 0.0 + 1.0

    def _floor(self, tier: int, table: _Ints, shard: _Ints, zero: _Ints, quick: bool) -> tuple[_Floats, _Floats]:
        """(bound, least bytes) of nodes that need a device of this tier."""
        family, first, last = table[:, 0], table[:, 1], table[:, 2]
        ranks = self.data[family] * self.ulysses[family] * first
        degrees = self.degrees(
            family[:, None, None], last[:, None, None], shard[:, :, None], zero[:, :, None]
        )  # layouts x shardings x crowdings of a domain
        kernels, single = self.reach.costs.kernels(self.reach.tiers[tier][1], choose=smaller), first == last
        context = self.ulysses[family] * first
        share = np.stack([_least_shard(name, ranks, context) for name, _ in SHARDINGS], axis=1)
        share = np.where(single[:, None] | ("shard" in self.space.pins), shard, share)
        sizes = {
            "ulysses": self.ulysses[family][:, None, None],
            "ring": first[:, None, None],
            "shard": share[:, :, None],
            "replicate": np.maximum(1, ranks[:, None] // shard)[:, :, None],
        }
        paths = self.reach.paths(sizes, ranks[:, None, None])
        workload, policies = self.space.workload, self.space.policies
        priced = policy_prices(workload, degrees, kernels, paths, policies, kernels.device, first[:, None, None], quick)
        model_parallel = self.space.base.tensor * self.space.base.pipeline
        room = self.capacity_bytes(ranks * model_parallel)[:, None]
        spare = np.where(single, 0, 2 * GROUP_BYTES["gpu"])[:, None]  # a range may hold groups of one rank
        least = priced.least_bytes().min(axis=-1) - spare
        if self.objective == "memory":
            return np.where(least <= room, least, np.inf), least
        seconds = priced.relaxed_s((room + spare)[:, :, None]).min(axis=-1)
        return seconds * self.weight((ranks * model_parallel)[:, None]), least


def _least_shard(name: str, ranks: _Ints, context: _Ints) -> _Ints:
    """The smallest shard group anywhere in a range of rings."""
    return {"ranks": ranks, "context": context, "domain": np.ones_like(ranks), "one": np.ones_like(ranks)}[name]


def _breakpoints(first: int, most: int) -> list[int]:
    """Rings 1 to 4, powers of two, the largest and its halves, and a geometric sequence between them."""
    cuts = {first, most, most // 2, most // 4, *range(1, 5)}
    power = 1
    while power <= most:
        cuts.add(power)
        power *= 2
    ring = 4.0
    while ring < most:
        cuts.add(round(ring))
        ring *= GROWTH
    return sorted(cut for cut in cuts if first <= cut <= most)


def _between(family: int, cuts: Sequence[int]) -> list[tuple[int, int, int]]:
    """Single rings at the cuts and the ranges between them."""
    found = [(family, cut, cut) for cut in cuts]
    found += [(family, a + 1, b - 1) for a, b in itertools.pairwise(cuts) if b - a > 1]
    return found
