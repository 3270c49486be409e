"""One flow for every class of equal flows, and how many of them each link of a class carries.

    count[link class, flow class] = flows in the class x times each crosses the link class / links in the class

With classes from an equitable partition this is a whole number for every link, and max-min rates of the classes are
the rates of the flows. With single ranks as classes it is the plain network. Units: bytes, bytes/s, seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.flows import Pattern
from planner.folding import Bags, Hashes, Partition, mix
from planner.maxmin import Sharing
from planner.topology import KINDS, LEAF_DOWN, LEAF_UP, NIC_IN, NIC_OUT, OF_GPU, Floats, Ints, Routes, Topology


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Flows of one group's collective that start together: `latency_s` after the collective does."""

    latency_s: float
    flows: Ints
    share: Floats  # of the collective's bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Collective:
    """A pattern on the folded network, by group class."""

    group_of_class: Ints  # (classes,): group class of each rank class
    members: tuple[Ints, ...]  # rank classes of each group class
    batches: tuple[tuple[Batch, ...], ...]  # of each group class


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    partition: Partition
    sharing: Sharing
    collectives: tuple[Collective, ...]  # one for each pattern, then host memory out and in
    copies: Floats  # (flows,): how many flows the class stands for
    link_copies: Floats  # (links,)
    link_names: tuple[str, ...]  # of one link of each class


class _Table:
    """Flow classes collected pattern by pattern: where they start, whither they go, by which routes."""

    def __init__(self, topology: Topology, partition: Partition) -> None:
        self.topology, self.partition = topology, partition
        self.routes: list[tuple[Routes, Ints, Ints, Floats]] = []  # with source, to, copies
        self.flows = 0

    def add(self, routes: Routes, source: Ints, to: Ints, each: Ints) -> Ints:
        """Flow numbers of new classes: `each` equal flows out of every rank of `source`'s class."""
        copies = each * self.partition.size[self.partition.class_of_rank[source]]
        self.routes.append((routes, source, to, copies.astype(np.float64)))
        first, self.flows = self.flows, self.flows + len(source)
        return np.arange(first, self.flows)


def network(topology: Topology, partition: Partition, patterns: Sequence[Pattern]) -> Network:
    """The folded network of all `patterns`, which may be in flight together; each pattern has flows of its own."""
    table = _Table(topology, partition)
    collectives = [_collective(table, pattern) for pattern in patterns]
    alone = np.arange(partition.classes)
    each = tuple(np.array([c]) for c in alone)
    for inwards in (False, True):
        ranks = partition.representative
        routes = topology.host_routes(ranks, inwards=inwards)
        flows = table.add(routes, ranks, ranks, np.ones(len(ranks), dtype=np.int64))
        batches = tuple((Batch(latency_s=0.0, flows=flows[c : c + 1], share=np.ones(1)),) for c in alone)
        collectives.append(Collective(group_of_class=alone, members=each, batches=batches))
    sharing, link_copies, names = _links(table)
    copies = np.concatenate([copies for _, _, _, copies in table.routes])
    return Network(
        partition=partition,
        sharing=sharing,
        collectives=tuple(collectives),
        copies=copies,
        link_copies=link_copies,
        link_names=names,
    )


def _collective(table: _Table, pattern: Pattern) -> Collective:
    partition = table.partition
    bags = Bags(pattern.group_of_rank)
    colour = bags.sums(mix(partition.class_of_rank.astype(np.uint64)))[partition.representative]
    if partition.classes == len(pattern.group_of_rank):
        colour = pattern.group_of_rank.astype(np.uint64)
    _, first, group = np.unique(colour, return_index=True, return_inverse=True)
    members = tuple(np.flatnonzero(group == g) for g in range(len(first)))
    source, to, share, each = _flows(pattern, partition, table.topology)
    routes = table.topology.routes(source, to)
    flows = table.add(routes, source, to, each)
    owner = group[partition.class_of_rank[source]]
    latency = routes.latency_s
    if pattern.delay_s is not None:
        latency = pattern.delay_s[pattern.group_of_rank[source]]
    batches = tuple(_batches(flows, latency, share, np.flatnonzero(owner == g)) for g in range(len(first)))
    return Collective(group_of_class=group, members=members, batches=batches)


def _flows(pattern: Pattern, partition: Partition, topology: Topology) -> tuple[Ints, Ints, Floats, Ints]:
    """Source, destination, share and number of equal ones of the flows that the representatives send."""
    reps = partition.representative
    parts = []
    for hop in pattern.hops:
        sends = reps[hop.share[reps] > 0]
        parts.append((sends, hop.to[sends], hop.share[sends], np.ones(len(sends), dtype=np.int64)))
    if pattern.each_share:
        row = pattern.groups[pattern.group_of_rank[reps]]
        source = np.repeat(reps, pattern.members)
        to = row.ravel()
        source, to = source[source != to], to[source != to]
        like = partition.class_of_rank[to] * 32 + _nearness(topology, source, to)
        like += partition.class_of_rank[source] * (32 * partition.classes)
        _, first, each = np.unique(like, return_index=True, return_counts=True)
        parts.append((source[first], to[first], np.full(len(first), pattern.each_share), each))
    none = np.zeros(0, dtype=np.int64)
    columns = list(zip(*parts, strict=True)) or [(none,), (none,), (np.zeros(0),), (none,)]
    source, to, share, each = (np.concatenate(column) for column in columns)
    return source, to, share, each


def _nearness(topology: Topology, source: Ints, to: Ints) -> Ints:
    levels = (topology.pair, topology.switch, topology.slot, topology.domain, topology.leaf)
    return sum(((level[source] != level[to]).astype(np.int64) << i for i, level in enumerate(levels)), source * 0)


def _batches(flows: Ints, latency: Floats, share: Floats, own: Ints) -> tuple[Batch, ...]:
    """Flows `own` by latency."""
    return tuple(
        Batch(latency_s=float(wait), flows=flows[chosen], share=share[chosen])
        for wait in np.unique(latency[own])
        for chosen in (own[latency[own] == wait],)
    )


def _links(table: _Table) -> tuple[Sharing, Floats, tuple[str, ...]]:
    """Number the link classes that any flow crosses; count flows on them."""
    classes = _LinkClasses(table.topology, table.partition)
    flow, link, crossing = [], [], []
    first = 0
    for routes, _, _, copies in table.routes:
        for step, kind in enumerate(routes.kind):
            crossed = np.flatnonzero(routes.unit[:, step] >= 0)
            flow.append(first + crossed)
            link.append(classes.number(kind, routes.unit[crossed, step]))
            crossing.append(copies[crossed])
        first += len(copies)
    flows, links, crossings = np.concatenate(flow), np.concatenate(link), np.concatenate(crossing)
    used, number = np.unique(links, return_inverse=True)
    capacity, copies, names = classes.describe(used)
    sharing = Sharing(flow=flows, link=number, count=crossings / copies[number], capacity=capacity, flows=first)
    return sharing, copies, names


class _LinkClasses:
    """Classes of links from classes of ranks: a GPU's links go with its rank, other units with all ranks they serve."""

    def __init__(self, topology: Topology, partition: Partition) -> None:
        self.topology, self.partition = topology, partition
        self.known: dict[int, tuple[Ints, Ints, Ints]] = {}

    def of_kind(self, kind: int) -> tuple[Ints, Ints, Ints]:
        """(class of each unit, units in each class, lowest unit of each class) of one kind of link."""
        family = 0 if kind in OF_GPU else kind - kind % 2
        if family not in self.known:
            self.known[family] = self._gpu_units() if kind in OF_GPU else self._shared_units(kind)
        return self.known[family]

    def _gpu_units(self) -> tuple[Ints, Ints, Ints]:
        place, of_rank = self.topology.place, self.partition.class_of_rank
        of_unit = np.full(int(place.max()) + 1, -1)
        of_unit[place] = of_rank
        lowest = np.full(self.partition.classes, len(of_unit))
        np.minimum.at(lowest, of_rank, place)
        return of_unit, self.partition.size, lowest

    def _shared_units(self, kind: int) -> tuple[Ints, Ints, Ints]:
        t = self.topology
        colour = mix(self.partition.class_of_rank.astype(np.uint64))
        if kind in (LEAF_UP, LEAF_DOWN):
            units, of_rank, around = len(t.leaf_rate), t.leaf, np.zeros(len(t.leaf_rate), dtype=np.uint64)
        else:
            per_slot = t.per_slot(kind)
            units, of_rank = t.cluster.slots * per_slot, t.nic if kind in (NIC_OUT, NIC_IN) else t.switch
            around = np.repeat(_sums(t.slot, colour, t.cluster.slots), per_slot)
        with np.errstate(over="ignore"):
            whole = mix(_sums(of_rank, colour, units)) + mix(around)
            if kind not in (LEAF_UP, LEAF_DOWN, NIC_OUT, NIC_IN) and t.reaches_nic_across.any():
                whole = whole + mix(_sums(t.nic_switch, mix(colour), units))
            if self.partition.classes == t.ranks:
                whole = np.arange(units, dtype=np.uint64)
        _, lowest, of_unit, size = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
        return of_unit, size, lowest

    def number(self, kind: int, unit: Ints) -> Ints:
        """A number for the class of each unit; unique over kinds."""
        return np.asarray(self.of_kind(kind)[0][unit] * len(KINDS) + kind, dtype=np.int64)

    def describe(self, used: Ints) -> tuple[Floats, Floats, tuple[str, ...]]:
        """Rate, number of links and a name for each class in `used`."""
        which, kinds = np.divmod(used, len(KINDS))
        units = np.empty(len(used), dtype=np.int64)
        rate, copies = np.empty(len(used)), np.empty(len(used))
        for kind in np.unique(kinds).tolist():
            these = kinds == kind
            _, size, lowest = self.of_kind(kind)
            units[these] = lowest[which[these]]
            copies[these] = size[which[these]]
            rate[these] = self.topology.rate(kind, units[these])
        names = tuple(self.topology.link_name(k, u) for k, u in zip(kinds.tolist(), units.tolist(), strict=True))
        return rate, copies, names


def _sums(bag: Ints, value: Hashes, bags: int) -> Hashes:
    total = np.zeros(bags, dtype=np.uint64)
    np.add.at(total, bag, value)
    return total
