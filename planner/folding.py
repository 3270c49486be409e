"""Which ranks behave alike: the coarsest partition found that is equitable for groups, flows and links.

    colour(rank) <- mix(colour, colours it meets: in its NIC, PCIe switch, node, domain, leaf (as multisets),
                        the next and the previous rank of each hop, the members of each group by how near they are)

repeated until no class splits (colour refinement). Ranks of one class then send the same flows to the same classes
over links that carry the same classes of flows: one rank of each class stands for all, exactly. Colours are 64-bit
mixed sums, so multisets compare by one number. First all ranks of equal nodes start in one colour; if that splits for
several rounds (a ring cut by oversubscribed leaves), nodes start coloured by their position in the leaf: finer, and
sooner stable. `singletons` is the partition that folds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.flows import Pattern
from planner.topology import Floats, Ints, Topology

Hashes = NDArray[np.uint64]
PATIENCE = 3
"""Rounds after which a partition that still splits is started again from positions in the leaf."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    class_of_rank: Ints  # (ranks,)
    representative: Ints  # (classes,): lowest rank of each
    size: Ints  # (classes,): ranks in each

    @property
    def classes(self) -> int:
        return len(self.representative)


def singletons(ranks: int) -> Partition:
    each = np.arange(ranks)
    return Partition(class_of_rank=each, representative=each, size=np.ones(ranks, dtype=np.int64))


def equitable(topology: Topology, patterns: Sequence[Pattern], scale: Floats) -> Partition:
    """The classes of ranks; `scale` (per rank) is what else tells ranks apart: how long they compute."""
    neighbours = _Neighbours(topology, patterns)
    crosses = crosses_leaves(topology, patterns)
    node_kind = _first_equal(topology.nodes)[topology.run]
    with np.errstate(over="ignore"):
        start = mix(node_kind.astype(np.uint64) * np.uint64(2) + topology.reaches_nic_across) + mix(_bits(scale))
        for i, pattern in enumerate(patterns):
            if pattern.delay_s is not None:
                start = start + mix(_bits(pattern.delay_s) + np.uint64(i))[pattern.group_of_rank]
        if crosses:
            start = start + mix(_bits(topology.leaf_rate) + np.uint64(len(patterns)))[topology.leaf]
    found = _refine(neighbours, start, PATIENCE if crosses else topology.ranks + 1)
    if found is None:
        place = topology.slot % topology.cluster.fabric.nodes_per_leaf
        found = _refine(neighbours, start + mix(place.astype(np.uint64) + np.uint64(1)), topology.ranks + 1)
        assert found is not None
    return found


def crosses_leaves(topology: Topology, patterns: Sequence[Pattern]) -> bool:
    """Whether any flow goes over a leaf's uplink that could limit it."""
    if not topology.leaves_limit:
        return False
    leaf, outside = topology.leaf, topology.domain
    for pattern in patterns:
        for hop in pattern.hops:
            if np.any((hop.share > 0) & (leaf != leaf[hop.to]) & (outside != outside[hop.to])):
                return True
        if pattern.each_share and np.any(leaf[pattern.groups] != leaf[pattern.groups[:, :1]]):
            return True
    return False


def _bits(value: Floats) -> Hashes:
    return np.ascontiguousarray(value, dtype=np.float64).view(np.uint64)


def _refine(neighbours: _Neighbours, colour: Hashes, rounds: int) -> Partition | None:
    """Split until stable, or None if `rounds` were not enough."""
    partition = _partition(colour)
    for _ in range(rounds):
        finer = _partition(neighbours.mixed(mix(partition.class_of_rank.astype(np.uint64))))
        if finer.classes == partition.classes:
            return finer
        partition = finer
    return None


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
    """Ranks in numbered bags; `sums` adds up a number over each bag and hands it back to every rank in it."""

    def __init__(self, bag: Ints) -> None:
        self.order = None if np.all(bag[1:] >= bag[:-1]) else np.argsort(bag, kind="stable")
        ordered = bag if self.order is None else bag[self.order]
        fresh = np.ones(len(ordered), dtype=bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        self.start = np.flatnonzero(fresh)
        self.size = np.diff(np.append(self.start, len(ordered)))

    def sums(self, value: Hashes) -> Hashes:
        total = np.add.reduceat(value if self.order is None else value[self.order], self.start)
        spread = np.repeat(total, self.size)
        if self.order is None:
            return spread
        back = np.empty_like(spread)
        back[self.order] = spread
        return back


class _Neighbours:
    """Everything that a rank's colour depends on."""

    def __init__(self, topology: Topology, patterns: Sequence[Pattern]) -> None:
        self.topology = topology
        near = [topology.pair, topology.switch, topology.slot, topology.domain, topology.leaf]
        bags = [topology.nic, topology.nic_switch, topology.switch, topology.slot]
        if crosses_leaves(topology, patterns):
            bags.append(topology.leaf)
        keys: dict[bytes, Pattern] = {}
        for pattern in patterns:
            if pattern.members > 1:
                keys.setdefault(pattern.groups.tobytes(), pattern)
            if pattern.each_share:
                wide = [level * len(pattern.groups) + pattern.group_of_rank for level in near]
                bags += wide
        bags += [pattern.group_of_rank for pattern in keys.values()]
        made = [Bags(bag) for bag in _distinct(bags)]
        self.bags = [bag for bag in made if bag.size.max() > 1]
        self.hops = [(hop.to, hop.share, *self._hop(hop.to, hop.share)) for p in patterns for hop in p.hops]

    def _hop(self, to: Ints, share: Floats) -> tuple[Hashes, Ints]:
        """What a hop is like beside the colours of its ends: its share and how far it goes; who sends here."""
        t, here = self.topology, np.arange(self.topology.ranks)
        far = [level[to] != level for level in (t.pair, t.switch, t.slot, t.domain)]
        if t.leaves_limit:
            far.append(t.leaf[to] != t.leaf)
        code = sum((bits.astype(np.uint64) << np.uint64(i) for i, bits in enumerate(far)), np.zeros(len(to), np.uint64))
        source = here.copy()
        source[to[share > 0]] = here[share > 0]
        return mix(code) + mix(share.view(np.uint64)), source

    def mixed(self, colour: Hashes) -> Hashes:
        """One round."""
        with np.errstate(over="ignore"):
            total = mix(colour)
            for i, bag in enumerate(self.bags):
                total = total + mix(bag.sums(colour) + np.uint64(i))
            for i, (to, share, like, source) in enumerate(self.hops):
                tag = np.uint64(1000 + 2 * i)
                sent = mix(colour[to] + like + tag)
                arrived = mix(colour[source] + like[source] + tag + np.uint64(1))
                total = (
                    total + np.where(share > 0, sent, np.uint64(0)) + np.where(source != np.arange(len(to)), arrived, 0)
                )
            return total


def _distinct(bags: Sequence[Ints]) -> list[Ints]:
    """Without bags that say the same."""
    seen: dict[bytes, Ints] = {}
    for bag in bags:
        seen.setdefault(bag.tobytes(), bag)
    return list(seen.values())
