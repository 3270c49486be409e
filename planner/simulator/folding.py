"""Which ranks behave alike: `equitable` for groups, flows and links, or `coarse`, to be proved while it is played.

    start:  the node, how long it computes, how many hops leave it and reach it, of what kind, and with what delay
    colour(rank) <- mix(colour, as multisets the colours in its NIC, PCIe switch, node, leaf and in each of its groups)

repeated until no class splits (colour refinement). Ranks of one class then load the same links in the same way for
groups of the same classes: one rank of each class stands for all, exactly. Who the next one in a ring is does not
matter, as all hops of a ring are one flow; in an all_to_all every pair is a flow, so there colours are counted by how
near the members are. Colours are 64-bit mixed sums: multisets compare by one number. `singletons` folds nothing;
`averaged` folds what is alike only nearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from cost_models.hardware.wiring import NIC_OUT
from planner.simulator.flows import Pattern
from planner.simulator.topology import NEARNESSES, Floats, Ints, Topology

Hashes = NDArray[np.uint64]
Flags = NDArray[np.bool_]


class Partition(Struct, frozen=True, kw_only=True, eq=False):
    """Ranks in classes that behave alike."""

    class_of_rank: Ints  # (ranks,)
    representative: Ints  # (classes,): lowest rank of each
    size: Ints  # (classes,): ranks in each
    equitable: bool = True  # else groups of one class may differ in members
    averaged: bool = False  # then links of a class carry the mean of what each of them would

    @property
    def classes(self) -> int:
        return len(self.representative)


def singletons(ranks: int) -> Partition:
    """Every rank a class of its own."""
    each = np.arange(ranks)
    return Partition(class_of_rank=each, representative=each, size=np.ones(ranks, dtype=np.int64))


def equitable(topology: Topology, patterns: Sequence[Pattern], scale: Floats, most: float = float("inf")) -> Partition:
    """The classes of ranks; `scale` (per rank) is what else tells ranks apart: how long they compute.

    Beyond `most` classes it stops: they are at least as many as the partition has.
    """
    bags, rings = _bags(topology, patterns)
    return _refined(_partition(_start(topology, patterns, scale)), bags, rings, most)


def coarse(topology: Topology, patterns: Sequence[Pattern], scale: Floats) -> Partition:
    """Classes of ranks told apart by the weakest members of their rings, not by all: the rest may not matter.

    Weakest are those with the least of a network card; whoever computes longest counts too. Equitable for all that is
    not a ring, so that the links of a class carry the same. `proof.py` finds out whether that is enough.
    """
    bags, rings = _bags(topology, patterns)
    partition = _partition(_start(topology, patterns, scale))
    if partition.classes == 1 or not rings:
        return _refined(partition, bags, rings)
    power = topology.rate(NIC_OUT, topology.nic) / np.bincount(topology.nic)[topology.nic]
    colour = mix(partition.class_of_rank.astype(np.uint64))
    with np.errstate(over="ignore"):
        total = mix(colour)
        for i, ring in enumerate(rings):
            weakest = np.where(power == ring.lowest(power), colour, np.uint64(0))
            total = total + mix(ring.sums_of_different(weakest) + _bits(ring.lowest(-scale)) + np.uint64(i))
    return replace(_refined(_partition(total), bags, []), equitable=False)


def averaged(topology: Topology, patterns: Sequence[Pattern], scale: Floats) -> Partition:
    """Classes of ranks by what they are and share inside a node alone: for layouts that hardly fold.

    Replicas that begin at another place of their node or leaf are one, each with the weakest members that any has.
    """
    bags = _several([topology.nic, topology.nic_switch, topology.switch, *_sockets(topology)])
    found = _refined(_partition(_start(topology, patterns, scale)), bags, [])
    return replace(found, equitable=False, averaged=True)


def split(topology: Topology, patterns: Sequence[Pattern], partition: Partition, apart: Sequence[Flags]) -> Partition:
    """`partition` with ranks in each of `apart` told from those that are not."""
    bags, _ = _bags(topology, patterns)
    colour = mix(partition.class_of_rank.astype(np.uint64))
    with np.errstate(over="ignore"):
        for i, those in enumerate(apart):
            colour = colour + those * mix(np.array([i], dtype=np.uint64))
    return replace(_refined(_partition(colour), bags, []), equitable=False)


def _refined(partition: Partition, bags: list[Bags], rings: list[Bags], most: float = float("inf")) -> Partition:
    """Split until classes are the same all over bags and rings, or more than `most`."""
    while partition.classes <= most:
        colour = mix(partition.class_of_rank.astype(np.uint64))
        with np.errstate(over="ignore"):
            total = mix(colour)
            for i, bag in enumerate(bags):
                total = total + mix(bag.sums(colour) + np.uint64(i))
            for i, ring in enumerate(rings, len(bags)):
                total = total + mix(ring.sums_of_different(colour) + np.uint64(i))
        finer = _partition(total)
        if finer.classes == partition.classes:
            return finer
        partition = finer
    return partition


def _start(topology: Topology, patterns: Sequence[Pattern], scale: Floats) -> Hashes:
    """What tells ranks apart whoever their partners are."""
    node_kind = _first_equal(topology.nodes)[topology.run]
    across = topology.reaches_nic_across + 2 * (topology.crosses_socket & (topology.socket != topology.nic_socket))
    parts = [node_kind * 4 + across, _bits(scale)]
    if (topology.wiring.card_share != 1).any():
        parts.append(_bits(topology.card_rate))
    rails = topology.wiring.rails
    for level, rate in _trunks(topology, patterns):
        parts.append(_bits(rate)[level * rails])
    if topology.rail_only:  # bytes cross links of other GPUs of the node, by their number
        parts.append(topology.gpu)
    here = np.arange(topology.ranks)
    for pattern in patterns:
        of_group = (pattern.delay_s, pattern.hop_share, pattern.tree_s, pattern.reduced)
        parts += [_bits(value)[pattern.group_of_rank] for value in of_group]
        for hop in pattern.hops:
            near = topology.nearness(here, hop.to)
            if not topology.leaves_limit:
                near &= ~16  # whether leaves differ is then in the delay alone
            if not topology.spines_limit:
                near &= ~64
            if topology.rail_only:
                near = near + NEARNESSES * topology.rail(here, hop.to)
            like = np.where(hop.count > 0, near + NEARNESSES * topology.wiring.rails * hop.count, 0)
            arriving = np.zeros_like(like)
            sending = hop.count > 0
            arriving[hop.to[sending]] = like[sending]
            parts += [like, arriving]
    colour = np.zeros(topology.ranks, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for i, part in enumerate(parts):
            if (part != part[0]).any():
                colour = colour + mix(part.astype(np.uint64, copy=False) + mix(np.array([i], dtype=np.uint64)))
    return colour


def _bags(topology: Topology, patterns: Sequence[Pattern]) -> tuple[list[Bags], list[Bags]]:
    """Everything that ranks meet in, each once, without what holds one rank each; and the groups that are rings."""
    bags = [topology.nic, topology.nic_switch, topology.switch, topology.slot]
    sockets = _sockets(topology)
    bags += [*sockets, *(level for level, _ in _trunks(topology, patterns))]
    near = [topology.pair, topology.switch, *sockets[:1], topology.slot, topology.domain, topology.leaf, topology.spine]
    for pattern in patterns:
        if pattern.each_share:
            bags.append(pattern.group_of_rank)
            bags += [level * len(pattern.groups) + pattern.group_of_rank for level in near]
    rings = [pattern.group_of_rank for pattern in patterns if not pattern.each_share]
    return _several(bags), _several(rings)


def _sockets(topology: Topology) -> list[Ints]:
    """The sockets of GPUs and of their cards, where bytes cross between sockets."""
    return [topology.socket, topology.nic_socket] if topology.crosses_socket.any() else []


def _several(bags: list[Ints]) -> list[Bags]:
    different = {bag.tobytes(): bag for bag in bags}.values()
    return [made for made in (Bags(bag) for bag in different) if made.size.max() > 1]


def _trunks(topology: Topology, patterns: Sequence[Pattern]) -> list[tuple[Ints, Floats]]:
    """Leaves and spines, each with the rates of uplinks, where any flow crosses some that could limit it."""
    levels = (
        (topology.leaves_limit, topology.leaf, topology.leaf_rate),
        (topology.spines_limit, topology.spine, topology.spine_rate),
    )
    return [(level, rate) for limits, level, rate in levels if limits and _crosses(topology.domain, level, patterns)]


def _crosses(domain: Ints, level: Ints, patterns: Sequence[Pattern]) -> bool:
    for pattern in patterns:
        for hop in pattern.hops:
            if np.any((hop.count > 0) & (level != level[hop.to]) & (domain != domain[hop.to])):
                return True
        if pattern.each_share and np.any(level[pattern.groups] != level[pattern.groups[:, :1]]):
            return True
    return False


def _bits(value: Floats) -> Hashes:
    return np.ascontiguousarray(value, dtype=np.float64).view(np.uint64)


def _partition(colour: Hashes) -> Partition:
    """Classes numbered by their lowest rank."""
    if colour.size and not (colour != colour[0]).any():
        zero = np.zeros(1, dtype=np.int64)
        return Partition(
            class_of_rank=np.zeros(len(colour), dtype=np.int64), representative=zero, size=zero + len(colour)
        )
    _, first, inverse, size = np.unique(colour, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    return Partition(class_of_rank=number[inverse], representative=first[order], size=size[order])


def _first_equal(nodes: Sequence[object]) -> Ints:
    """For each node kind, the index of the first one equal to it."""
    return np.array([next(j for j, other in enumerate(nodes) if other == node) for node in nodes])


def mix(value: Hashes) -> Hashes:
    """A fixed scrambling of 64-bit numbers (splitmix64), so that sums of colours stand for multisets."""
    with np.errstate(over="ignore"):
        value = (value + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(32))


class Bags:
    """Ranks in numbered bags; a number over each bag is handed back to every rank in it."""

    def __init__(self, bag: Ints) -> None:
        self.order = None if np.all(bag[1:] >= bag[:-1]) else np.argsort(bag, kind="stable")
        ordered = bag if self.order is None else bag[self.order]
        fresh = np.ones(len(ordered), dtype=bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        self.start = np.flatnonzero(fresh)
        self.size = np.diff(np.append(self.start, len(ordered)))

    def sums(self, value: Hashes) -> Hashes:
        """The sum over each bag."""
        return self._spread(np.add.reduceat(self._ordered(value), self.start))

    def sums_of_different(self, value: Hashes) -> Hashes:
        """The sum over each bag of the values in it, each counted once."""
        ordered = self._ordered(value)
        total = ordered[self.start]
        mixed = np.logical_or.reduceat(ordered != np.repeat(total, self.size), self.start)
        if mixed.any():
            several = np.repeat(mixed, self.size)
            bag = np.repeat(np.arange(len(self.start)), self.size)[several]
            ordered = ordered[several]
            order = np.lexsort((ordered, bag))
            bag, ordered = bag[order], ordered[order]
            again = (bag[1:] == bag[:-1]) & (ordered[1:] == ordered[:-1])
            ordered[1:][again] = 0
            total[mixed] = np.add.reduceat(ordered, np.flatnonzero(np.diff(bag, prepend=-1)))
        return self._spread(total)

    def lowest(self, value: NDArray[Any]) -> NDArray[Any]:
        """The smallest value in each bag."""
        ordered = value if self.order is None else value[self.order]
        return self._spread(np.minimum.reduceat(ordered, self.start))

    def _ordered(self, value: Hashes) -> Hashes:
        return value if self.order is None else value[self.order]

    def _spread(self, total: NDArray[Any]) -> NDArray[Any]:
        spread = np.repeat(total, self.size)
        if self.order is None:
            return spread
        back = np.empty_like(spread)
        back[self.order] = spread
        return back
