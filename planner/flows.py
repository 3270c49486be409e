"""The flows that a collective really sends, as arrays over all ranks: who sends to whom which share of the bytes.

    all_to_all                    to each other member directly, 1/P each
    send                          to the next member of the group, all of it; the last sends to the first
    all_gather, reduce_scatter    rings over all members; each hop carries (P - 1)/P of the buffer
    all_reduce                    the same twice: 2 (P - 1)/P

The rings of a group enter each scale-up domain once per channel: as many channels as the domain with the fewest NICs
in the group has, each entering at the first GPU of another NIC and leaving at the GPU before it. A channel carries
1/channels of the buffer; channels between the same two GPUs are one flow. A ring's flows start after the latency of
P - 1 steps (2 (P - 1) for all_reduce): the mean hop times the steps; those of a send after the group's longest hop.
Left out: trees, in-switch reduction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cost_models.program import Op
from planner.topology import Floats, Ints, Topology


@dataclass(frozen=True, kw_only=True, eq=False)
class Hops:
    """At most one flow out of each rank: to rank `to`, `share` of the collective's bytes (0 = none)."""

    to: Ints  # (ranks,)
    share: Floats  # (ranks,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pattern:
    """One collective over all groups of an axis."""

    op: Op
    groups: Ints  # (groups, members): rank
    group_of_rank: Ints  # (ranks,)
    hops: tuple[Hops, ...]
    each_share: float = 0.0  # all_to_all: to every other member
    delay_s: Floats | None = None  # (groups,) before the flows start; None = each flow's own latency

    @property
    def members(self) -> int:
        return int(self.groups.shape[1])


def pattern(topology: Topology, groups: Ints, op: Op) -> Pattern:
    """The flows of `op` over `groups`, every rank in one of them."""
    count, members = groups.shape
    group_of_rank = np.empty(topology.ranks, dtype=np.int64)
    group_of_rank[groups.ravel()] = np.repeat(np.arange(count), members)
    if members == 1:
        return Pattern(op=op, groups=groups, group_of_rank=group_of_rank, hops=())
    if op == "all_to_all":
        return Pattern(op=op, groups=groups, group_of_rank=group_of_rank, hops=(), each_share=1 / members)
    if op == "send":
        hop = Hops(to=_next(topology, groups), share=np.ones(topology.ranks))
        longest = topology.latency_s(np.arange(topology.ranks), hop.to)[groups].max(axis=1)
        return Pattern(op=op, groups=groups, group_of_rank=group_of_rank, hops=(hop,), delay_s=longest)
    passes = (members - 1) / members
    hops = _rings(topology, groups, group_of_rank)
    delay = np.zeros(count)
    for hop in hops:
        latency = topology.latency_s(np.arange(topology.ranks), hop.to)
        delay += np.bincount(group_of_rank, hop.share * latency, count) * passes
    scaled = tuple(Hops(to=hop.to, share=hop.share * passes) for hop in hops)
    once = Pattern(op=op, groups=groups, group_of_rank=group_of_rank, hops=scaled, delay_s=delay)
    return twice(once) if op == "all_reduce" else once


def twice(once: Pattern) -> Pattern:
    """The all_reduce over the groups of an all_gather."""
    hops = tuple(Hops(to=hop.to, share=hop.share * 2) for hop in once.hops)
    return replace(once, op="all_reduce", hops=hops, delay_s=None if once.delay_s is None else once.delay_s * 2)


def _next(topology: Topology, groups: Ints) -> Ints:
    to = np.empty(topology.ranks, dtype=np.int64)
    to[groups] = np.roll(groups, -1, axis=1)
    return to


def _rings(topology: Topology, groups: Ints, group_of_rank: Ints) -> tuple[Hops, ...]:
    """Hops inside domains and between them; `share` = of one pass of the whole buffer over all channels."""
    block = _Blocks(topology, group_of_rank)
    channels = block.channels
    inside = np.empty(topology.ranks, dtype=np.int64)
    inside[block.order] = block.order[block.after]
    leaves = np.zeros(topology.ranks)
    between = np.arange(topology.ranks)
    for channel in range(int(channels.max())):
        entry, leave = block.ends(channel)
        exits, entered, used = block.order[leave], block.order[entry[block.next]], channel < channels[block.group]
        several = used & (block.next != np.arange(len(block.next)))
        leaves[exits[several]] += 1.0
        between[exits[several]] = entered[several]
    own = channels[group_of_rank]
    alone = inside == np.arange(topology.ranks)
    within = Hops(to=inside, share=np.where(alone, 0.0, (own - leaves) / own))
    across = Hops(to=between, share=leaves / own)
    return tuple(hop for hop in (within, across) if hop.share.any())


class _Blocks:
    """Ranks sorted by (group, domain, place): a block is one group's members in one domain."""

    def __init__(self, topology: Topology, group_of_rank: Ints) -> None:
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
