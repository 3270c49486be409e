"""The placements of a layout in regions: which kinds of scale-up domains are in use, and what lies inside one.

    region   a set of kinds, at least one domain of each in use and of no other; and for ulysses groups, rings and shard
             groups: all inside domains, none crossing at the slowest kind, or some that cross there
    program  ranks of each domain, n_d = multiple x an integer <= its free GPUs, sum n_d = ranks, max min n_d:
             a transport program of one commodity, solved by filling the roomiest domains first     (`Regions._fullest`)

Every placement of a layout is in one of its regions: the least of their bounds bounds the layout (`region_loads.py`).
Where the program has no solution the region is empty. Left out: racks of nodes that span leaves, PCIe inside a node.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cost_models.hardware.wiring import NIC_OUT
from cost_models.timing.cluster_costs import ClusterCosts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MOST_KINDS = 6
"""Clusters of more kinds of domains are not cut into regions: their subsets are too many."""
MOST_RATE = 1e15
"""Bytes/s of a card where no card is needed."""
INSIDE, ELSEWHERE, SLOWEST = range(3)
"""Of the groups of an axis: all inside domains; some cross, but none at the slowest kind in use; some cross there."""


class Kinds(Struct, frozen=True, kw_only=True, eq=False, dict=True):
    """Domains that no bound tells apart, an entry for each kind."""

    runs: tuple[tuple[int, ...], ...]  # of the nodes in them
    slots: tuple[Ints, ...]  # the first one of each domain
    count: Ints  # domains
    gpus: Ints
    cards: Ints  # that its GPUs send through
    rate: Floats  # of its best card, bytes/s
    ring_rate: Floats  # that rings and sends get of it
    all_to_all_rate: Floats
    uplink: Floats  # of its leaf; infinite where leaves do not limit
    leaf: Ints  # -1 where they do not
    shares: tuple[Floats, ...]  # of `rate`, each GPU's card, best first; (domains, GPUs)

    @cached_property
    def _ascending(self) -> list[tuple[Floats, Floats]]:
        """Of each kind the shares of all GPUs, and of each place in a domain those of all domains, slowest first."""
        return [(np.sort(of.ravel()), np.sort(of, axis=0)) for of in self.shares]

    def slowest_share(self, idle: Ints) -> Floats:
        """Of `rate`, the slowest card in use of each kind where no more than `idle` GPUs are free; (rows, kinds)."""
        return np.stack([every[np.minimum(idle, len(every) - 1)] for every, _ in self._ascending], axis=1)

    def slowest(self, used: Bools, idle: Ints) -> tuple[Floats, Floats]:
        """(ring rate, all-to-all rate) of the slowest card in use of all kinds together, at most; (rows,)."""
        several = [np.unique(every, return_counts=True) for every, _ in self._ascending]
        found = []
        for rates in (self.ring_rate, self.all_to_all_rate):
            rate = np.concatenate([share * most for (share, _), most in zip(several, rates, strict=True)])
            kind = np.repeat(np.arange(len(several)), [len(share) for share, _ in several])
            order = np.argsort(rate, kind="stable")
            total = np.cumsum(used[:, kind[order]] * np.concatenate([many for _, many in several])[order], axis=1)
            first = (total > idle[:, None]).argmax(axis=1)  # idle is below the GPUs in use
            found.append(rate[order][first])
        return found[0], found[1]

    def exit_share(self, leaving: Ints, idle: Ints) -> Floats:
        """As `slowest_share`, of so many GPUs (rows, kinds) of a domain where the best leave, in the worst domain."""
        found = np.empty(leaving.shape)
        for kind, (_, by_place) in enumerate(self._ascending):
            empty = np.minimum(idle // by_place.shape[1], len(by_place) - 1)
            found[:, kind] = by_place[empty, np.clip(leaving[:, kind], 1, by_place.shape[1]) - 1]
        return found

    @classmethod
    def of(cls, costs: ClusterCosts) -> Kinds:
        wiring, rates = costs.wiring, costs.rates
        shares = np.array([wiring.card_share[r, : max(n.nics.count, 1)].max() for r, n in enumerate(wiring.nodes)])
        rate = np.minimum(rates.of_run[:, NIC_OUT] * shares, MOST_RATE)
        cards = np.array([len(set(wiring.nic_of[r, : n.gpus].tolist())) for r, n in enumerate(wiring.nodes)])
        uplinks = rates.of_leaf.reshape(-1, wiring.rails).sum(axis=1)
        numbers = np.stack([rate, rate * rates.ring_share, rate * rates.all_to_all_share, cards], axis=1).tolist()
        alike = [(node.device, node.scale_up, node.gpus, of) for node, of in zip(wiring.nodes, numbers, strict=True)]
        first = [alike.index(one) for one in alike]
        seen: dict[tuple[tuple[int, ...], int], list[int]] = {}
        several: dict[tuple[tuple[int, ...], int], set[int]] = {}
        cards_of: dict[tuple[tuple[int, ...], int], list[Floats]] = {}
        of_gpu = [
            np.minimum(rates.of_run[r, NIC_OUT] * wiring.card_share[r, wiring.nic_of[r, : node.gpus]], MOST_RATE)
            for r, node in enumerate(wiring.nodes)
        ]
        domains = list(_domains(costs))
        anywhere = len({(tuple(first[run] for run in runs), leaf) for _, (runs, leaf) in domains}) > MOST_KINDS
        for slot, (runs, leaf) in domains:
            leaf = int(uplinks.argmax()) if anywhere and leaf >= 0 else leaf  # whichever, with the best one's uplinks
            key = tuple(sorted(first[run] for run in runs)), leaf
            seen.setdefault(key, []).append(slot)
            several.setdefault(key, set()).update(runs)
            cards_of.setdefault(key, []).append(np.sort(np.concatenate([of_gpu[run] for run in runs]))[::-1])
        keys = list(seen)

        def best(of_run: Floats) -> Floats:
            return np.array([max(of_run[r] for r in runs) for runs, _ in keys])

        def total(of_run: Ints) -> Ints:
            return np.array([sum(int(of_run[r]) for r in runs) for runs, _ in keys])

        return cls(
            runs=tuple(tuple(sorted(several[key])) for key in keys),
            slots=tuple(np.array(slots) for slots in seen.values()),
            count=np.array([len(slots) for slots in seen.values()]),
            gpus=total(np.array([node.gpus for node in wiring.nodes])),
            cards=total(cards),
            rate=best(rate),
            ring_rate=best(rate * rates.ring_share),
            all_to_all_rate=best(rate * rates.all_to_all_share),
            uplink=np.array([uplinks[leaf] if leaf >= 0 else np.inf for _, leaf in keys]),
            leaf=np.array([leaf for _, leaf in keys]),
            shares=tuple(np.stack(of) / most for of, most in zip(cards_of.values(), best(rate), strict=True)),
        )


def _domains(costs: ClusterCosts) -> Iterator[tuple[int, tuple[tuple[int, ...], int]]]:
    """(first slot, (runs of its nodes with free GPUs, leaf or -1)) of each domain that has some."""
    cluster = costs.cluster
    leaf, domain = cluster.leaf_of_slot, cluster.domain_of_slot
    nodes = [one.node for one in cluster.runs]
    run = np.array([nodes.index(node) for node in nodes])[cluster.run_of_slot]
    first = np.flatnonzero(np.diff(domain, prepend=-1))
    start = np.repeat(first, np.diff(first, append=cluster.slots))
    limits = cluster.fabric.leaves_limit and not (leaf != leaf[start]).any()
    for slots in np.split(np.arange(cluster.slots), first[1:]):
        used = slots[cluster.gpus_of_slot[slots] > 0]
        if len(used):
            yield int(used[0]), (tuple(sorted(run[used].tolist())), int(leaf[slots[0]]) if limits else -1)


class Where(NamedTuple):
    """What lies inside domains: of ulysses groups, rings and shard groups INSIDE, ELSEWHERE or SLOWEST."""

    ulysses: int
    ring: int
    shard: int
    replicate: bool  # all replicate groups inside domains


EVERYWHERE = tuple(itertools.starmap(Where, itertools.product(range(3), range(3), range(3), (True, False))))


class Layouts(Struct, frozen=True, kw_only=True):
    """Degrees of layouts, an entry for each."""

    data: Ints
    ring: Ints
    ulysses: Ints
    shard: Ints

    @property
    def ranks(self) -> Ints:
        return self.data * self.context

    @property
    def context(self) -> Ints:
        return self.ring * self.ulysses

    @property
    def replicate(self) -> Ints:
        return self.ranks // self.shard

    def take(self, where: Any) -> Layouts:
        return Layouts(
            data=self.data[where], ring=self.ring[where], ulysses=self.ulysses[where], shard=self.shard[where]
        )


class Rows(Struct, frozen=True, kw_only=True, eq=False):
    """Regions that are not empty, one a row; the second axis of `most`, `fewest` are the kinds."""

    where: Where
    layout: Ints
    region: Ints
    least: Ints  # ranks of the emptiest domain are at most so many
    most: Ints  # ranks of a domain of each kind are at most so many
    fewest: Ints  # and at least so many


class Regions:
    """Regions of one cluster: `used[region]` are the kinds of which each one is in use."""

    def __init__(self, costs: ClusterCosts, kinds: Kinds) -> None:
        self.costs, self.kinds = costs, kinds
        count = len(kinds.count)
        cluster = costs.cluster
        self.leaf_gpus = int(np.bincount(cluster.leaf_of_slot, weights=cluster.gpus_of_slot).max())
        self.used = np.array(list(itertools.product((False, True), repeat=count)))[1:]
        self.several_leaves = np.array([len(set(kinds.leaf[row].tolist())) > 1 for row in self.used])
        rank = np.lexsort((np.minimum(kinds.gpus, kinds.cards), kinds.ring_rate)).argsort()
        self.slowest = np.where(self.used, rank, count).argmin(axis=1)
        self.domains = (self.used * kinds.count).sum(axis=1)
        self._known: dict[tuple[int, int, int, bool], tuple[Ints, Ints, Ints]] = {}

    def alone(self, ranks: Ints) -> tuple[Ints, Ints]:
        """(layout, region) where all ranks lie in one domain."""
        gpus = np.where(self.used.sum(axis=1) == 1, (self.used * self.kinds.gpus).max(axis=1), 0)
        layout, region = np.nonzero(ranks[:, None] <= gpus)
        return layout, region

    def crossing(self, layouts: Layouts) -> Iterator[Rows]:
        """The regions of at least two domains that layouts can be in, by what lies inside."""
        for where in EVERYWHERE:
            possible, multiple, at_slowest = _multiples(layouts, where)
            several = ELSEWHERE in where[:3]
            chosen = np.flatnonzero(possible & (multiple <= self.kinds.gpus.max()))
            if not len(chosen):
                continue
            found = [self._filled(int(layouts.ranks[i]), int(multiple[i]), int(at_slowest[i]), several) for i in chosen]
            least, most, fewest = (np.stack(each) for each in zip(*found, strict=True))
            at, region = np.nonzero(least)
            yield Rows(
                where=where, layout=chosen[at], region=region, least=least[at, region], most=most[at, region],
                fewest=fewest[at, region],
            )  # fmt: skip

    def _filled(self, ranks: int, multiple: int, at_slowest: int, several: bool) -> tuple[Ints, Ints, Ints]:
        key = ranks, multiple, at_slowest, several
        if key not in self._known:
            most = np.broadcast_to(self.kinds.gpus // multiple * multiple, self.used.shape).copy()
            rows = np.arange(len(self.used))
            most[rows, self.slowest] = self.kinds.gpus[self.slowest] // at_slowest * at_slowest
            least = self._fullest(ranks, multiple, most, several)
            total = (self.used * self.kinds.count * most).sum(axis=1)
            unit = np.full(self.used.shape, multiple)
            unit[rows, self.slowest] = at_slowest
            fewest = np.maximum(unit, -(-(ranks - total[:, None] + most) // unit) * unit)
            self._known[key] = least, most, fewest
        return self._known[key]

    def _fullest(self, ranks: int, multiple: int, most: Ints, several: bool) -> Ints:
        """For each region the most ranks that its emptiest domain can have; 0: the region is empty.

        `several`: groups cross between domains that are not of the slowest kind, so there are two of these.
        """
        kinds, used, rows = self.kinds, self.used, np.arange(len(self.used))
        best = np.zeros(len(used), dtype=np.int64)
        if ranks % multiple:
            return best
        each = used.sum(axis=1)
        enough = self.domains >= 2
        if several:
            enough = enough & (self.domains - kinds.count[self.slowest] >= 2)
        order = np.argsort(-most, axis=1, kind="stable")
        for least in range(multiple, int(kinds.gpus.max()) + 1, multiple):
            domains = np.minimum(self.domains, ranks // least)
            held, left = (used * most).sum(axis=1), np.maximum(domains - each, 0)
            for kind in order.T:
                more = np.where(used[rows, kind], np.minimum(left, kinds.count[kind] - 1), 0)
                held, left = held + more * most[rows, kind], left - more
            possible = ~(used & (most < least)).any(axis=1) & enough & (domains >= np.maximum(each, 2))
            best = np.where(possible & (held >= ranks), least, best)
        return best


def _multiples(layouts: Layouts, where: Where) -> tuple[Bools, Ints, Ints]:
    """(possible, what the ranks of every domain are a multiple of, and those of the slowest kind's domains).

    Where neither ulysses groups nor rings cross at a domain, it hosts whole context groups. Shard groups are neighbours
    in the rank order, so those of a size that ulysses groups divide hold whole ulysses groups, and so on.
    """
    ranks, context, shard, replicate = layouts.ranks, layouts.context, layouts.shard, layouts.replicate
    ulysses = layouts.ulysses
    possible = np.ones(len(ranks), dtype=bool)
    for state, size in ((where.ulysses, ulysses), (where.ring, layouts.ring), (where.shard, shard)):
        possible &= (size > 1) | (state == INSIDE)
        possible &= (size < ranks) | (size == 1) | (state == SLOWEST)
    possible &= (replicate == 1) <= where.replicate
    possible &= ~((replicate == ranks) & (ranks > 1) & where.replicate)
    possible &= ~((shard > 1) & (replicate > 1) & where.replicate & (where.shard != SLOWEST))
    possible &= ~((context == ranks) & (max(where.ulysses, where.ring) < SLOWEST))
    inner, outer = shard % ulysses == 0, ulysses % shard == 0
    possible &= ~(inner & (where.ulysses > where.shard)) & ~(outer & (where.shard > where.ulysses))
    whole = max(where.ulysses, where.ring)
    possible &= ~((shard % context == 0) & (whole > where.shard)) & ~((context % shard == 0) & (where.shard > whole))
    multiple, at_slowest = np.ones_like(ranks), np.ones_like(ranks)
    of_context = np.ones_like(ranks) if whole == SLOWEST else context
    for state, size in (
        (where.ulysses, ulysses), (where.ring, layouts.ring), (whole, of_context), (where.shard, shard),
    ):  # fmt: skip
        if state == INSIDE:
            multiple = np.lcm(multiple, size)
        if state != SLOWEST:
            at_slowest = np.lcm(at_slowest, size)
    if where.replicate:
        multiple = np.lcm(multiple, replicate)
    return possible, multiple, np.lcm(at_slowest, multiple)
