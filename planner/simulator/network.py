"""One flow for every class of equal flows, and how many of them each link of a class carries.

    count[link class, flow class] = crossings of the link class by all flows of the class / links in the class

With classes from an equitable partition this is a whole number for every link, and max-min rates of the classes are
the rates of the flows. With a coarser one a group class may stand for several kinds of group, as long as `proof.py`
finds no difference; its flow crosses the links of all of them. With single ranks as classes it is the plain network.
The hops of a group's ring are one flow; its links are collected rank by rank, from the sender's side of each hop and
the receiver's. Units: bytes, bytes/s, seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from cost_models.curves.samples import COLLECTIVES
from cost_models.hardware.wiring import (
    KINDS,
    NIC_IN,
    NIC_OUT,
    PCIE_IN,
    PCIE_OUT,
    SOCKET_IN,
    SOCKET_OUT,
    SWITCH_IN,
    SWITCH_OUT,
)
from cost_models.number import distinct
from cost_models.program import Op
from cost_models.timing.collectives import wire_bytes
from cost_models.timing.loads import alike
from cost_models.timing.paths import LARGE_BYTES
from cost_models.timing.protocols import PEER_S, SLOWER, START_S, slower_s
from planner.simulator.flows import Pattern
from planner.simulator.folding import Bags, Flags, Hashes, Partition, mix
from planner.simulator.link_classes import LinkClasses
from planner.simulator.maxmin import Sharing
from planner.simulator.proof import Kinds, Variants
from planner.simulator.topology import NEARNESSES, Floats, Ints, Routes, Topology

CARDS = frozenset((NIC_OUT, NIC_IN))
BUSES = frozenset((SWITCH_OUT, SWITCH_IN, SOCKET_OUT, SOCKET_IN))
PCIE = frozenset((PCIE_OUT, PCIE_IN))


class Batch(Struct, frozen=True, kw_only=True, eq=False):
    """Flows of one group's collective that start together: `delay_s` after the collective does."""

    latency_s: float
    flows: Ints
    share: Floats  # of the collective's bytes
    op: Op = "send"
    ring_s: float = 0.0  # latency of all hops of the group's ring
    domains: int = 1
    card_s_per_byte: float = 0.0  # of the collective's bytes, on the busiest card of its pattern, alone
    slower: float = 1.0  # `Network.slower`

    def delay_s(self, size: float) -> float:
        """Latency, and what the protocols of larger messages add."""
        sent_s = size * self.card_s_per_byte
        return self.latency_s + float(slower_s(self.op, self.latency_s, sent_s, self.ring_s, self.domains, self.slower))


class Collective(Struct, frozen=True, kw_only=True, eq=False):
    """A pattern on the folded network, by group class."""

    group_of_class: Ints  # (classes,): group class of each rank class
    members: tuple[Ints, ...]  # rank classes of each group class
    batches: tuple[tuple[Batch, ...], ...]  # of each group class
    kinds: tuple[Kinds | None, ...]  # of the groups of each group class, where it has several


class Network(Struct, frozen=True, kw_only=True, eq=False):
    """Flows and links of a folded step."""

    partition: Partition
    sharing: Sharing
    collectives: tuple[Collective, ...]  # one for each pattern, then host memory out and in
    copies: Floats  # (flows,): how many equal senders the class stands for
    link_copies: Floats  # (links,)
    link_names: tuple[str, ...]  # of the first link of each class
    variants: Variants | None  # of group classes that stand for several kinds of group


class _Table:
    """Flow classes collected pattern by pattern, and what each crosses how often (by all its copies)."""

    def __init__(self, topology: Topology, partition: Partition) -> None:
        self.topology, self.partition = topology, partition
        self.links = LinkClasses(topology, partition)
        self.copies: list[Floats] = []
        self.flows = 0
        self.crossings: list[tuple[Ints, Ints, Floats]] = []  # flow, number of the link class, how often
        self.parts: list[tuple[Ints, Ints, Ints]] = []  # of rings: flow, rank class, link class
        self.kinds: list[tuple[int, Ints, int, int]] = []  # of groups: flow, rank classes, pattern, a rank
        self.colours: list[Hashes] = []  # by pattern: of each rank, the kind of its group

    def add(self, copies: NDArray[np.number[Any]]) -> Ints:
        """Numbers of new flow classes."""
        first, self.flows = self.flows, self.flows + len(copies)
        self.copies.append(copies.astype(np.float64))
        return np.arange(first, self.flows)

    def cross(
        self,
        flow: Ints,
        routes: Routes,
        times: Floats,
        *,
        arriving: bool | None = None,
        part: Ints | None = None,
        shares: Sequence[tuple[frozenset[int], Floats]] = (),
    ) -> None:
        """`flow[i]` takes route i `times[i]` times: all of it, or only the sender's or the receiver's side.

        `part[i]` is the rank class whose hops these are; `shares`: (kinds of links, of what they reach what each
        flow gets).
        """
        for step, kind in enumerate(routes.kind):
            if arriving is None or routes.arriving[step] == arriving:
                crossed = np.flatnonzero(routes.unit[:, step] >= 0)
                link = self.links.number(kind, routes.unit[crossed, step])
                taken = times[crossed]
                for kinds, share in shares:
                    if kind in kinds:
                        taken = taken / share[crossed]
                self.crossings.append((flow[crossed], link, taken))
                if part is not None and not self.partition.equitable and not self.partition.averaged:
                    self.parts.append((flow[crossed], part[crossed], link))

    def variants(self, used: Ints) -> Variants | None:
        """`used`: numbers of the link classes, ascending."""
        if not self.kinds:
            return None
        parts = np.stack([np.concatenate(column) for column in zip(*self.parts, strict=True)])
        flow, owner, link = parts[:, np.isin(parts[0], [number for number, _, _, _ in self.kinds])]
        classes = self.partition.classes
        known, part = np.unique(flow * classes + owner, return_inverse=True)
        kinds = [np.searchsorted(known, number * classes + members) for number, members, _, _ in self.kinds]
        assert all(np.array_equal(known[k], f * classes + m) for k, (f, m, _, _) in zip(kinds, self.kinds, strict=True))
        return Variants(
            first=np.cumsum([0, *(len(kind) for kind in kinds)])[:-1],
            parts=np.concatenate(kinds),
            part=part,
            part_flow=flow,
            part_link=np.searchsorted(used, link),
            colours=tuple(self.colours),
            pattern=np.array([pattern for _, _, pattern, _ in self.kinds]),
            rank=np.array([rank for _, _, _, rank in self.kinds]),
        )


def network(topology: Topology, partition: Partition, patterns: Sequence[Pattern]) -> Network:
    """The folded network of all `patterns`, which may be in flight together; each pattern has flows of its own."""
    table = _Table(topology, partition)
    collectives = [_collective(table, pattern) for pattern in patterns]
    collectives += [_host_memory(table, inwards=inwards) for inwards in (False, True)]
    flow, link, times = (np.concatenate(column) for column in zip(*table.crossings, strict=True))
    used, number = np.unique(link, return_inverse=True)
    capacity, link_copies, names = table.links.describe(used)
    count = times / link_copies[number]
    if topology.rates.has_protocols:
        on_cards = np.isin(link % len(KINDS), sorted(CARDS))
        seconds = np.where(on_cards, count / capacity[number], 0.0)
        of_flow = (flow, number, seconds, table.flows, topology.rates.slower)
        for place, pattern in enumerate(patterns):
            collectives[place] = _with_protocols(collectives[place], pattern.op, *of_flow)
    return Network(
        partition=partition,
        sharing=Sharing(flow=flow, link=number, count=count, capacity=capacity, flows=table.flows),
        collectives=tuple(collectives),
        copies=np.concatenate(table.copies),
        link_copies=link_copies,
        link_names=names,
        variants=table.variants(used),
    )


def _with_protocols(
    one: Collective, op: Op, flow: Ints, link: Ints, seconds: Floats, flows: int, slower: float
) -> Collective:
    """The collective, knowing how long its busiest card takes for a byte of it."""
    if not SLOWER[op]:
        return one
    share = np.zeros(flows)
    for batch in (batch for batches in one.batches for batch in batches):
        share[batch.flows] = batch.share
    most = float(np.bincount(link, seconds * share[flow]).max())
    known = {"op": op, "card_s_per_byte": most, "slower": slower}
    batches = tuple(tuple(replace(batch, **known) for batch in of_group) for of_group in one.batches)
    return replace(one, batches=batches)


def _host_memory(table: _Table, *, inwards: bool) -> Collective:
    """Copies between each GPU and its host: a group for each rank."""
    partition = table.partition
    alone = np.arange(partition.classes)
    size = partition.size.astype(np.float64)
    flows = table.add(size)
    table.cross(flows, table.topology.host_routes(partition.representative, inwards=inwards), size)
    batches = tuple((Batch(latency_s=0.0, flows=flows[c : c + 1], share=np.ones(1)),) for c in alone)
    return Collective(
        group_of_class=alone,
        members=tuple(np.array([c]) for c in alone),
        batches=batches,
        kinds=(None,) * partition.classes,
    )


def _collective(table: _Table, pattern: Pattern) -> Collective:
    """Group classes of a pattern (classes that are in a group together) and their flows."""
    partition, bags = table.partition, Bags(pattern.group_of_rank)
    lowest = bags.lowest(partition.class_of_rank)[partition.representative]
    while not partition.equitable:
        joined = lowest.copy()
        np.minimum.at(joined, partition.class_of_rank, bags.lowest(lowest[partition.class_of_rank]))
        if np.array_equal(joined, lowest):
            break
        lowest = joined
    _, group = np.unique(lowest, return_inverse=True)
    groups = int(group.max()) + 1
    order = np.argsort(group, kind="stable")
    members = tuple(np.split(order, np.cumsum(np.bincount(group))[:-1]))
    batches: tuple[tuple[Batch, ...], ...] = ((),) * groups
    kinds: tuple[Kinds | None, ...] = (None,) * groups
    if pattern.each_share:
        batches = _pairs(table, pattern, group, groups)
    elif pattern.hops:
        if not partition.equitable and not partition.averaged:
            kinds = _kinds(table, pattern, bags, group, members)
        batches = _ring(table, pattern, group, members)
    return Collective(group_of_class=group, members=members, batches=batches, kinds=kinds)


def _kinds(
    table: _Table, pattern: Pattern, bags: Bags, group: Ints, members: tuple[Ints, ...]
) -> tuple[Kinds | None, ...]:
    """Of each group class the kinds of its groups; `None` where everyone is in all of them."""
    partition = table.partition
    colour = bags.sums_of_different(mix(partition.class_of_rank.astype(np.uint64)))
    _, first = np.unique(colour, return_index=True)
    found: list[list[tuple[int, Flags]]] = [[] for _ in members]
    for rank in first.tolist():
        there = np.zeros(partition.classes, dtype=bool)
        there[partition.class_of_rank[pattern.groups[pattern.group_of_rank[rank]]]] = True
        mine = int(group[partition.class_of_rank[rank]])
        found[mine].append((rank, there[members[mine]]))
    kinds: list[Kinds | None] = []
    for g, several in enumerate(found):
        if len(several) == 1:
            kinds.append(None)
            continue
        kinds.append(Kinds(first=len(table.kinds), there=np.stack([there for _, there in several])))
        table.kinds += [(table.flows + g, members[g][there], len(table.colours), rank) for rank, there in several]
    table.colours.append(colour)
    return tuple(kinds)


def _ring(table: _Table, pattern: Pattern, group: Ints, members: tuple[Ints, ...]) -> tuple[tuple[Batch, ...], ...]:
    """One flow for each group class over the links of all its hops; flow `table.flows + g` is that of class g."""
    reps, size, topology = table.partition.representative, table.partition.size, table.topology
    sent = sum((hop.count[reps] * size for hop in pattern.hops), size * 0)
    flows = table.add(np.bincount(group, sent))
    for hop in pattern.hops:
        source = np.full(topology.ranks, -1)
        sending = np.flatnonzero(hop.count)
        source[hop.to[sending]] = sending
        out, into = np.flatnonzero(hop.count[reps]), np.flatnonzero(source[reps] >= 0)
        leaving = topology.routes(reps[out], hop.to[reps[out]])
        left = (hop.count[reps] * size)[out].astype(float)
        shares = _shares(topology, pattern, reps[out], hop.to[reps[out]])
        table.cross(flows[group[out]], leaving, left, part=out, arriving=False, shares=shares)
        sender = source[reps[into]]
        coming = topology.routes(sender, reps[into])
        come, shares = (hop.count[sender] * size[into]).astype(float), _shares(topology, pattern, sender, reps[into])
        table.cross(flows[group[into]], coming, come, part=into, arriving=True, shares=shares)
    first = pattern.group_of_rank[reps[[ranks[0] for ranks in members]]]
    batches = (
        Batch(
            latency_s=float(pattern.delay_s[of]), flows=flows[g : g + 1], share=pattern.hop_share[of : of + 1],
            ring_s=float(pattern.ring_s[of]), domains=int(pattern.domains[of]),
        )
        for g, of in enumerate(first.tolist())
    )  # fmt: skip
    return tuple((batch,) for batch in batches)


def _shares(topology: Topology, pattern: Pattern, source: Ints, to: Ints) -> tuple[tuple[frozenset[int], Floats], ...]:
    """Of the cards at both ends, and of switches and sockets that pass bytes on through host memory, what each flow
    gets."""
    name = {"all_to_all": "all_to_all", "send": "send", "chain": "send", "tree": "send"}.get(pattern.op, "gather")
    staged = np.where(topology.staged(source, to), topology.rates.staged_share(name)[topology.run[source]], 1.0)
    out, into = pattern.card_share[source] / pattern.slowed[source], pattern.card_share[to]
    near = topology.domain[source] == topology.domain[to]
    own = np.where(near, _link_share(topology, pattern)[topology.run[source]], 1.0)
    return (frozenset((NIC_OUT,)), out), (frozenset((NIC_IN,)), into), (BUSES, staged), (PCIE, own)


def _link_share(topology: Topology, pattern: Pattern) -> Floats:
    """Of what a GPU's PCIe link reaches, what the measured curve has for an operation among as many of one domain; by
    run. Of other links that is the same within a few percent."""
    wiring, rates = topology.wiring, topology.rates.of_run[:, PCIE_OUT]
    local = int(alike(topology.domain[pattern.groups]).max())
    if topology.inside is None or local == 1:
        return np.ones(len(rates))
    op = pattern.op if pattern.op in COLLECTIVES else "send_recv"
    sent = float(wire_bytes(op, local, LARGE_BYTES))
    reached = sent / float(topology.inside.intra_s(op, local, sent))
    return np.where(wiring.on_pcie & ~wiring.in_pairs, reached / rates, 1.0)


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
    table.cross(flows, routes, copies, shares=_shares(topology, pattern, source, to))
    owner = group[partition.class_of_rank[source]]
    peers, rates = pattern.members - 1, topology.rates
    starts = rates.has_protocols * (START_S + PEER_S * peers) + rates.message_s * max(peers - 1, 0)
    wait_s = routes.latency_s + np.where(topology.domain[source] != topology.domain[to], starts, 0.0)
    latencies = distinct(wait_s)
    batches: list[list[Batch]] = [[] for _ in range(groups)]
    key = owner * len(latencies) + np.searchsorted(latencies, wait_s)
    order = np.argsort(key, kind="stable")
    for chosen in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        share = np.full(len(chosen), pattern.each_share)
        batch = Batch(latency_s=float(wait_s[chosen[0]]), flows=flows[chosen], share=share)
        batches[int(owner[chosen[0]])].append(batch)
    return tuple(tuple(of_group) for of_group in batches)
