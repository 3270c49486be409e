"""The flows that a collective really sends, as arrays over all ranks: who sends to whom which share of the bytes.

    all_to_all                    to each other member directly, 1/P each, every pair a flow of its own
    send                          to the next member of the group, all of it; the last sends to the first
    all_gather, reduce_scatter    rings over all members; each hop carries (P - 1)/P of the buffer
    all_reduce                    the same twice: 2 (P - 1)/P; over two domains by trees, if those carry less: all of it
                                  out of each domain once, and along the ranks inside twice

The rings of a group enter each scale-up domain once per channel: as many channels as the domain with the fewest NICs
in the group has, each entering at the first GPU of another NIC and leaving at the GPU before it. A channel carries
1/channels of the buffer. The hops of a ring (and of a round of sends) go at one pace, that of the slowest: they are
one flow that crosses the links of all hops, a link as often as hops do. It starts after the latency of its P - 1 steps
(mean hop), a send after the group's longest hop. An all_reduce waits twice for these or for a tree's (along a domain's
ranks, then log2(domains) hops), whichever is shorter; over more domains trees carry as many bytes as rings. Left out:
in-switch reduction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cost_models.hardware.wiring import NIC_OUT
from cost_models.program import Op
from planner.simulator.topology import Floats, Ints, Topology


@dataclass(frozen=True, kw_only=True, eq=False)
class Hops:
    """Hops out of each rank: `count` of them (over channels) to rank `to`; 0 = none."""

    to: Ints  # (ranks,)
    count: Ints  # (ranks,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pattern:
    """One collective over all groups of an axis."""

    op: Op
    groups: Ints  # (groups, members): rank
    group_of_rank: Ints  # (ranks,)
    hops: tuple[Hops, ...] = ()
    hop_share: Floats  # (groups,): share of the bytes that one hop of one channel carries
    each_share: float = 0.0  # all_to_all: to every other member
    delay_s: Floats  # (groups,) before the hops start; each pair of an all_to_all has its own route's
    tree_s: Floats  # (groups,) the same for a tree from its leaves to its root
    reduced: Floats  # (groups,) how often an all_reduce sends as much: 2 by rings, less by trees over two domains

    @property
    def members(self) -> int:
        return int(self.groups.shape[1])


def pattern(topology: Topology, groups: Ints, op: Op) -> Pattern:
    """The flows of `op` over `groups`, every rank in one of them."""
    count, members = groups.shape
    group_of_rank = np.empty(topology.ranks, dtype=np.int64)
    group_of_rank[groups.ravel()] = np.repeat(np.arange(count), members)
    nothing = np.zeros(count)
    made = Pattern(
        op=op, groups=groups, group_of_rank=group_of_rank, hop_share=nothing, delay_s=nothing, tree_s=nothing,
        reduced=np.full(count, 2.0),
    )  # fmt: skip
    if members == 1:
        return made
    if op == "all_to_all":
        return replace(made, each_share=1 / members)
    if op == "send":
        hop = Hops(to=_next(topology, groups), count=np.ones(topology.ranks, dtype=np.int64))
        longest = topology.latency_s(np.arange(topology.ranks), hop.to)[groups].max(axis=1)
        return replace(made, hops=(hop,), hop_share=np.ones(count), delay_s=longest)
    block = _Blocks(topology, group_of_rank)
    hops, channels = _rings(topology, block)
    share = (members - 1) / members / channels
    delay = np.zeros(count)
    for hop in hops:
        delay += np.bincount(group_of_rank, hop.count * topology.latency_s(np.arange(topology.ranks), hop.to), count)
    tree_s = _tree_s(topology, block, hops)
    domains, whole = np.bincount(block.group, minlength=count), members / (members - 1)
    reduced = np.where(domains == 2, np.minimum(_tree_times(topology, channels) * whole, 2.0), 2.0)
    if np.isinf(topology.rates.tree_bytes_per_s).all():
        reduced = np.where(domains == 1, whole, reduced)
    once = replace(made, hops=hops, hop_share=share, delay_s=delay * share, tree_s=tree_s, reduced=reduced)
    return twice(once) if op == "all_reduce" else once


def twice(once: Pattern) -> Pattern:
    """The all_reduce over the groups of an all_gather: rings twice, or a tree where members are in two domains."""
    delay_s = np.minimum(once.delay_s, once.tree_s) * 2
    tree, hops = once.reduced < 2, once.hops
    if tree.any() and len(hops) == 2:
        inside = hops[0]
        hops = (replace(inside, count=np.where(tree[once.group_of_rank], 2, 1) * inside.count), hops[1])
    return replace(once, op="all_reduce", hops=hops, hop_share=once.hop_share * once.reduced, delay_s=delay_s)


def _tree_times(topology: Topology, channels: Ints) -> Floats:
    """What a group's cards could send while a tree inside its domains passes on a byte; at least that byte."""
    passed = topology.rates.tree_bytes_per_s.min()
    sent = channels * topology.rates.of_run[:, NIC_OUT].max()
    times: Floats = np.maximum(1.0, sent / passed)
    return times


def _tree_s(topology: Topology, block: _Blocks, hops: tuple[Hops, ...]) -> Floats:
    """Latency of a chain through each group's largest block and of a binary tree over its blocks."""
    groups = int(block.group.max()) + 1
    longest = []
    for far in (False, True):
        most = np.zeros(groups)
        for hop in hops:
            used = (hop.count > 0) & ((topology.domain != topology.domain[hop.to]) == far)
            latency = np.where(used, topology.latency_s(np.arange(topology.ranks), hop.to), 0.0)
            np.maximum.at(most, block.group_of_rank, latency)
        longest.append(most)
    size = np.zeros(groups)
    np.maximum.at(size, block.group, block.size)
    result: Floats = (size - 1) * longest[0] + np.log2(np.bincount(block.group)) * longest[1]
    return result


def _next(topology: Topology, groups: Ints) -> Ints:
    to = np.empty(topology.ranks, dtype=np.int64)
    to[groups] = np.roll(groups, -1, axis=1)
    return to


def _rings(topology: Topology, block: _Blocks) -> tuple[tuple[Hops, ...], Ints]:
    """Hops inside domains and between them, and the channels of each group."""
    channels = block.channels
    inside = np.empty(topology.ranks, dtype=np.int64)
    inside[block.order] = block.order[block.after]
    leaves = np.zeros(topology.ranks, dtype=np.int64)
    between = np.arange(topology.ranks)
    several = block.next != np.arange(len(block.next))
    for channel in range(int(channels.max())):
        entry, leave = block.ends(channel)
        used = several & (channel < channels[block.group])
        exits = block.order[leave][used]
        leaves[exits] += 1
        between[exits] = block.order[entry[block.next]][used]
    alone = inside == np.arange(topology.ranks)
    within = Hops(to=inside, count=np.where(alone, 0, channels[block.group_of_rank] - leaves))
    across = Hops(to=between, count=leaves)
    return tuple(hop for hop in (within, across) if hop.count.any()), channels


class _Blocks:
    """Ranks sorted by (group, domain, place): a block is one group's members in one domain."""

    def __init__(self, topology: Topology, group_of_rank: Ints) -> None:
        self.group_of_rank = group_of_rank
        self.order = np.lexsort((topology.place, topology.domain, group_of_rank))
        group, domain = group_of_rank[self.order], topology.domain[self.order]
        fresh = np.ones(len(self.order), dtype=bool)
        fresh[1:] = (group[1:] != group[:-1]) | (domain[1:] != domain[:-1])
        self.start = np.flatnonzero(fresh)
        self.size = np.diff(np.append(self.start, len(fresh)))
        self.group: Ints = group[self.start]
        self.after = np.arange(1, len(fresh) + 1)  # position of the next member, cyclic in the block
        self.after[self.start + self.size - 1] = self.start
        first = np.ones(len(self.start), dtype=bool)
        first[1:] = self.group[1:] != self.group[:-1]
        self.next = np.arange(1, len(self.start) + 1)  # block after this one in its group, cyclic
        self.next[np.append(np.flatnonzero(first)[1:], len(first)) - 1] = np.flatnonzero(first)
        self._entries(topology.nic[self.order])

    def _entries(self, nic: Ints) -> None:
        """Where a channel can enter a block: at each member whose NIC is not the one of the member before it."""
        new = np.empty(len(nic), dtype=bool)
        new[self.after] = nic[self.after] != nic
        none = np.add.reduceat(new, self.start) == 0
        new[self.start[none]] = True
        self.entries = np.flatnonzero(new)
        self.entry_count = np.add.reduceat(new.astype(np.int64), self.start)
        self.entry_start = np.cumsum(self.entry_count) - self.entry_count
        self.channels = np.full(int(self.group.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(self.channels, self.group, self.entry_count)
        blocks = np.bincount(self.group)
        self.channels[blocks == 1] = 1

    def ends(self, channel: int) -> tuple[Ints, Ints]:
        """Positions in `order` where `channel` enters and leaves each block (unused channels: some valid one)."""
        own = self.channels[self.group]
        which = np.minimum(channel, own - 1) * self.entry_count // own
        entry = self.entries[self.entry_start + which]
        leave = np.where(entry == self.start, self.start + self.size, entry) - 1
        return entry, leave
