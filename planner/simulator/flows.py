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
ranks, then log2(domains) hops), whichever is shorter; over more domains trees carry as many bytes as rings. Inside one
domain both wait as long as was measured of a call without bytes. Left out: in-switch reduction.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from cost_models.program import Op
from cost_models.timing.protocols import START_S, peer_bytes_per_s
from cost_models.timing.rings import Blocks
from planner.simulator.topology import Floats, Ints, Topology


class Hops(Struct, frozen=True, kw_only=True, eq=False):
    """Hops out of each rank: `count` of them (over channels) to rank `to`; 0 = none."""

    to: Ints  # (ranks,)
    count: Ints  # (ranks,)


class Pattern(Struct, frozen=True, kw_only=True, eq=False):
    """One collective over all groups of an axis."""

    op: Op
    groups: Ints  # (groups, members): rank
    group_of_rank: Ints  # (ranks,)
    hops: tuple[Hops, ...] = ()
    hop_share: Floats  # (groups,): share of the bytes that one hop of one channel carries
    each_share: float = 0.0  # all_to_all: to every other member
    delay_s: Floats  # (groups,) before the hops start; each pair of an all_to_all has its own route's
    tree_s: Floats  # (groups,) the same for a tree from its leaves to its root
    ring_s: Floats  # (groups,) and for a ring
    domains: Ints  # (groups,)
    reduced: Floats  # (groups,) how often an all_reduce sends as much: 2 by rings, less by trees over two domains
    card_share: Floats  # (ranks,) of what a rank's card reaches, what one hop gets there
    slowed: Floats  # (ranks,) how much less a hop out of it gets of its card, by the channels of a peer

    @property
    def members(self) -> int:
        return int(self.groups.shape[1])


def pattern(topology: Topology, groups: Ints, op: Op) -> Pattern:
    """The flows of `op` over `groups`, every rank in one of them."""
    count, members = groups.shape
    made = silent(topology, groups, op)
    group_of_rank = made.group_of_rank
    if members == 1:
        return made
    if op == "all_to_all":
        return replace(made, each_share=1 / members, card_share=topology.rates.all_to_all_share[topology.run])
    seats = topology.seats
    blocks = Blocks(seats.place[groups], seats.domain[groups], seats.nic[groups])
    if op == "send":
        return _sends(topology, made, blocks)
    hops = _rings(topology, groups, blocks)
    share = (members - 1) / members / blocks.channels
    delay = np.zeros(count)
    for hop in hops:
        delay += np.bincount(group_of_rank, hop.count * topology.latency_s(np.arange(topology.ranks), hop.to), count)
    passed = topology.rates.tree_bytes_per_s[topology.run[groups]]
    ring_share = topology.rates.ring_share[topology.run]
    reduced = blocks.all_reduce_times(topology.card_rate[groups], ring_share[groups], passed)
    ring_s, tree_s = delay * share, _tree_s(topology, group_of_rank, blocks, hops)
    if topology.inside is not None:
        alone = blocks.domains == 1
        ring_s = np.where(alone, topology.inside.intra_s("all_gather", members, 1.0), ring_s)
        tree_s = np.where(alone, topology.inside.intra_s("all_reduce", members, 1.0) / 2, tree_s)
    once = replace(
        made, hops=hops, hop_share=share, delay_s=ring_s, ring_s=ring_s, tree_s=tree_s, reduced=reduced,
        domains=blocks.domains, card_share=ring_share,
    )  # fmt: skip
    return twice(once) if op == "all_reduce" else once


def silent(topology: Topology, groups: Ints, op: Op) -> Pattern:
    """Groups of ranks that send nothing yet."""
    count, members = groups.shape
    group_of_rank = np.empty(topology.ranks, dtype=np.int64)
    group_of_rank[groups.ravel()] = np.repeat(np.arange(count), members)
    nothing = np.zeros(count)
    return Pattern(
        op=op, groups=groups, group_of_rank=group_of_rank, hop_share=nothing, delay_s=nothing, tree_s=nothing,
        ring_s=nothing, domains=np.ones(count, dtype=np.int64),
        reduced=np.full(count, 2.0), card_share=np.ones(topology.ranks), slowed=np.ones(topology.ranks),
    )  # fmt: skip


def twice(once: Pattern) -> Pattern:
    """The all_reduce over the groups of an all_gather: rings twice, or a tree where members are in two domains."""
    delay_s = np.minimum(once.delay_s, once.tree_s) * 2
    hops, card_share = once.hops, once.card_share
    if len(hops) == 2:
        inside, across = hops
        tree = ((once.reduced < 2) & (np.bincount(once.group_of_rank, across.count) > 0))[once.group_of_rank]
        hops, card_share = (replace(inside, count=np.where(tree, 2, 1) * inside.count), across), card_share + tree
    return replace(
        once, op="all_reduce", hops=hops, hop_share=once.hop_share * once.reduced, delay_s=delay_s,
        card_share=np.minimum(card_share, 1.0),
    )  # fmt: skip


def _sends(topology: Topology, made: Pattern, blocks: Blocks) -> Pattern:
    """Each rank to the next, over the channels that NCCL gives a peer: all that leave one card share it, but none gets
    more than the least of these channels carry."""
    ranks, rates, nic = np.arange(topology.ranks), topology.rates, topology.seats.nic
    hop = Hops(to=_next(topology, made.groups), count=np.ones(topology.ranks, dtype=np.int64))
    crosses = topology.domain != topology.domain[hop.to]
    latency = topology.latency_s(ranks, hop.to) + np.where(crosses, rates.has_protocols * START_S, 0.0)
    slowed = made.slowed.copy()
    if rates.has_protocols:
        run = topology.run[made.groups]
        slowest, doubled = rates.card_line[run].min(axis=1), np.asarray(rates.doubled[run].all(axis=1))
        channel, release = rates.channel[run].min(axis=1), rates.wiring.cluster.fabric.nccl_minor
        each = peer_bytes_per_s(made.members, blocks.channels, slowest, doubled, release, channel)[made.group_of_rank]
        at, least = nic[crosses], np.full(int(nic.max()) + 1, np.inf)
        np.minimum.at(least, at, each[crosses])
        together = np.bincount(at, minlength=len(least))[at] * least[at]
        slowed[crosses] = np.maximum((rates.ring_share[topology.run] * topology.card_rate)[crosses] / together, 1.0)
    longest = latency[made.groups].max(axis=1)
    return replace(
        made, hops=(hop,), hop_share=np.ones(len(longest)), delay_s=longest,
        card_share=rates.ring_share[topology.run], slowed=slowed,
    )  # fmt: skip


def _tree_s(topology: Topology, group_of_rank: Ints, blocks: Blocks, hops: tuple[Hops, ...]) -> Floats:
    """Latency of a chain through each group's largest block and of a binary tree over its blocks."""
    longest = []
    for far in (False, True):
        most = np.zeros(blocks.groups)
        for hop in hops:
            used = (hop.count > 0) & ((topology.domain != topology.domain[hop.to]) == far)
            latency = np.where(used, topology.latency_s(np.arange(topology.ranks), hop.to), 0.0)
            np.maximum.at(most, group_of_rank, latency)
        longest.append(most)
    size = np.zeros(blocks.groups)
    np.maximum.at(size, blocks.group, blocks.size)
    return np.asarray((size - 1) * longest[0] + np.log2(blocks.domains) * longest[1])


def _next(topology: Topology, groups: Ints) -> Ints:
    to = np.empty(topology.ranks, dtype=np.int64)
    to[groups] = np.roll(groups, -1, axis=1)
    return to


def _rings(topology: Topology, groups: Ints, blocks: Blocks) -> tuple[Hops, ...]:
    """Hops inside domains and between them."""
    channels = blocks.channels[blocks.group]
    rank = groups.ravel()[blocks.order]
    inside, between = np.empty(topology.ranks, dtype=np.int64), np.arange(topology.ranks)
    stays, leaves = np.zeros(topology.ranks, dtype=np.int64), np.zeros(topology.ranks, dtype=np.int64)
    inside[rank] = rank[blocks.after]
    stays[rank] = np.repeat(channels, blocks.size)
    several = blocks.domains[blocks.group] > 1
    for channel in range(int(channels.max())):
        entry, leave = blocks.ends(channel)
        used = several & (channel < channels)
        exits = rank[leave][used]
        leaves[exits] += 1
        between[exits] = rank[entry[blocks.next]][used]
    within = Hops(to=inside, count=np.where(inside == np.arange(topology.ranks), 0, stays - leaves))
    across = Hops(to=between, count=leaves)
    return tuple(hop for hop in (within, across) if hop.count.any())
