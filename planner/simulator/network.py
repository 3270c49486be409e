"""One flow for every class of equal flows, and how many of them each link of a class carries.

    count[link class, flow class] = crossings of the link class by all flows of the class / links in the class

With classes from an equitable partition this is a whole number for every link, and max-min rates of the classes are
the rates of the flows. With single ranks as classes it is the plain network. The hops of a group's ring are one flow;
its links are collected rank by rank, from the sender's side of each hop and the receiver's.
Units: bytes, bytes/s, seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cost_models.number import distinct
from planner.simulator.flows import Pattern
from planner.simulator.folding import Bags, Partition
from planner.simulator.link_classes import LinkClasses
from planner.simulator.maxmin import Sharing
from planner.simulator.topology import NEARNESSES, Floats, Ints, Routes, Topology


class Batch(Struct, frozen=True, kw_only=True, eq=False):
    """Flows of one group's collective that start together: `latency_s` after the collective does."""

    latency_s: float
    flows: Ints
    share: Floats  # of the collective's bytes


class Collective(Struct, frozen=True, kw_only=True, eq=False):
    """A pattern on the folded network, by group class."""

    group_of_class: Ints  # (classes,): group class of each rank class
    members: tuple[Ints, ...]  # rank classes of each group class
    batches: tuple[tuple[Batch, ...], ...]  # of each group class


class Network(Struct, frozen=True, kw_only=True, eq=False):
    partition: Partition
    sharing: Sharing
    collectives: tuple[Collective, ...]  # one for each pattern, then host memory out and in
    copies: Floats  # (flows,): how many equal senders the class stands for
    link_copies: Floats  # (links,)
    link_names: tuple[str, ...]  # of the first link of each class


class _Table:
    """Flow classes collected pattern by pattern, and what each crosses how often (by all its copies)."""

    def __init__(self, topology: Topology, partition: Partition) -> None:
        self.topology, self.partition = topology, partition
        self.links = LinkClasses(topology, partition)
        self.copies: list[Floats] = []
        self.flows = 0
        self.crossings: list[tuple[Ints, Ints, Floats]] = []  # flow, number of the link class, how often

    def add(self, copies: NDArray[np.number[Any]]) -> Ints:
        """Numbers of new flow classes."""
        first, self.flows = self.flows, self.flows + len(copies)
        self.copies.append(copies.astype(np.float64))
        return np.arange(first, self.flows)

    def cross(self, flow: Ints, routes: Routes, times: Floats, *, arriving: bool | None = None) -> None:
        """`flow[i]` takes route i `times[i]` times: all of it, or only the sender's or the receiver's side."""
        for step, kind in enumerate(routes.kind):
            if arriving is None or routes.arriving[step] == arriving:
                crossed = np.flatnonzero(routes.unit[:, step] >= 0)
                link = self.links.number(kind, routes.unit[crossed, step])
                self.crossings.append((flow[crossed], link, times[crossed]))


def network(topology: Topology, partition: Partition, patterns: Sequence[Pattern]) -> Network:
    """The folded network of all `patterns`, which may be in flight together; each pattern has flows of its own."""
    table = _Table(topology, partition)
    collectives = [_collective(table, pattern) for pattern in patterns]
    collectives += [_host_memory(table, inwards=inwards) for inwards in (False, True)]
    flow, link, times = (np.concatenate(column) for column in zip(*table.crossings, strict=True))
    used, number = np.unique(link, return_inverse=True)
    capacity, link_copies, names = table.links.describe(used)
    count = times / link_copies[number]
    return Network(
        partition=partition,
        sharing=Sharing(flow=flow, link=number, count=count, capacity=capacity, flows=table.flows),
        collectives=tuple(collectives),
        copies=np.concatenate(table.copies),
        link_copies=link_copies,
        link_names=names,
    )


def _host_memory(table: _Table, *, inwards: bool) -> Collective:
    """Copies between each GPU and its host: a group for each rank."""
    partition = table.partition
    alone = np.arange(partition.classes)
    size = partition.size.astype(np.float64)
    flows = table.add(size)
    table.cross(flows, table.topology.host_routes(partition.representative, inwards=inwards), size)
    batches = tuple((Batch(latency_s=0.0, flows=flows[c : c + 1], share=np.ones(1)),) for c in alone)
    return Collective(group_of_class=alone, members=tuple(np.array([c]) for c in alone), batches=batches)


def _collective(table: _Table, pattern: Pattern) -> Collective:
    """Group classes of a pattern and their flows."""
    partition = table.partition
    lowest = Bags(pattern.group_of_rank).lowest(partition.class_of_rank)[partition.representative]
    _, group = np.unique(lowest, return_inverse=True)
    groups = int(group.max()) + 1
    order = np.argsort(group, kind="stable")
    members = tuple(np.split(order, np.cumsum(np.bincount(group))[:-1]))
    batches: tuple[tuple[Batch, ...], ...] = ((),) * groups
    if pattern.each_share:
        batches = _pairs(table, pattern, group, groups)
    elif pattern.hops:
        batches = _ring(table, pattern, group, members)
    return Collective(group_of_class=group, members=members, batches=batches)


def _ring(table: _Table, pattern: Pattern, group: Ints, members: tuple[Ints, ...]) -> tuple[tuple[Batch, ...], ...]:
    """One flow for each group class over the links of all its hops."""
    reps, size, topology = table.partition.representative, table.partition.size, table.topology
    sent = sum((hop.count[reps] * size for hop in pattern.hops), size * 0)
    flows = table.add(np.bincount(group, sent))
    for hop in pattern.hops:
        source = np.full(topology.ranks, -1)
        sending = np.flatnonzero(hop.count)
        source[hop.to[sending]] = sending
        out, into = hop.count[reps] > 0, source[reps] >= 0
        leaving = topology.routes(reps[out], hop.to[reps[out]])
        table.cross(flows[group[out]], leaving, (hop.count[reps] * size)[out].astype(np.float64), arriving=False)
        sender = source[reps[into]]
        coming = topology.routes(sender, reps[into])
        table.cross(flows[group[into]], coming, (hop.count[sender] * size[into]).astype(np.float64), arriving=True)
    first = pattern.group_of_rank[reps[[ranks[0] for ranks in members]]]
    delay, share = pattern.delay_s[first], pattern.hop_share[first]
    return tuple(
        (Batch(latency_s=float(delay[g]), flows=flows[g : g + 1], share=share[g : g + 1]),) for g in range(len(members))
    )


def _pairs(table: _Table, pattern: Pattern, group: Ints, groups: int) -> tuple[tuple[Batch, ...], ...]:
    """A flow for each class of pairs: of one sender's class, to one class, equally near."""
    topology, partition = table.topology, table.partition
    reps = partition.representative
    source = np.repeat(reps, pattern.members)
    to = pattern.groups[pattern.group_of_rank[reps]].ravel()
    source, to = source[source != to], to[source != to]
    ends = partition.class_of_rank[source] * partition.classes + partition.class_of_rank[to]
    _, first, each = np.unique(ends * NEARNESSES + topology.nearness(source, to), return_index=True, return_counts=True)
    source, to = source[first], to[first]
    copies = (each * partition.size[partition.class_of_rank[source]]).astype(np.float64)
    routes, flows = topology.routes(source, to), table.add(copies)
    table.cross(flows, routes, copies)
    owner = group[partition.class_of_rank[source]]
    latencies = distinct(routes.latency_s)
    batches: list[list[Batch]] = [[] for _ in range(groups)]
    key = owner * len(latencies) + np.searchsorted(latencies, routes.latency_s)
    order = np.argsort(key, kind="stable")
    for chosen in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        share = np.full(len(chosen), pattern.each_share)
        batch = Batch(latency_s=float(routes.latency_s[chosen[0]]), flows=flows[chosen], share=share)
        batches[int(owner[chosen[0]])].append(batch)
    return tuple(tuple(of_group) for of_group in batches)
