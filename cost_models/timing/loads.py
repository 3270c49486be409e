"""What all groups of an axis, acting at once, load on the links that they share: seconds per byte on the busiest one.

    all_to_all   a member with b of P members in its domain sends (P - b) / P of its buffer out, and receives as much
    send         all of it out if the next member is in another domain, and in at that one's card
    gather       (P - 1) / P into and out of each domain of the group, spread over the cards of its members there; a
                 group with few channels needs at least 1 / channels on one card (`rings.py`)
    all_reduce   the same twice, or by trees, or once where switches sum

Between PCIe switches, sockets and bridged pairs of a node the same counting holds for what leaves a unit for another
one of its domain. A ring leaves each unit once; one that also leaves the domain ends there, and spares one of u units.
In a rail-only fabric the cards of other GPUs count too (`rails.py`).
Left out: the way to a card under another switch, and traffic inside a unit that goes through its host bridge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from cost_models.hardware.wiring import PCIE_OUT, SOCKET_OUT, SWITCH_OUT, Bools, Floats, Ints, LinkRates
from cost_models.number import Array
from cost_models.strategy import AXIS_GROUPS, Axis, Strategy, rank_groups
from cost_models.timing.paths import Path
from cost_models.timing.protocols import peer_bytes_per_s
from cost_models.timing.rails import followed_rings, heavier
from cost_models.timing.rings import Blocks

_NETWORK = ("all_to_all", "send", "gather", "all_reduce")
_BUSES = ("all_to_all", "send", "gather")


class Loads:
    """Seats of all ranks of several placements (first axis), and the loads of patterns of traffic among them."""

    def __init__(self, rates: LinkRates, slots: Ints, gpus: Ints) -> None:
        self.rates, self.wiring, self.seats = rates, rates.wiring, rates.wiring.seats(slots, gpus)
        self.several = len(slots)
        self.fabric = rates.wiring.cluster.fabric
        self.card_rate = rates.cards(self.seats)

    def paths(self, strategy: Strategy, axes: Iterable[Axis]) -> dict[Axis, Path]:
        """Axes of a strategy; arrays over the placements."""
        return {axis: self.path(rank_groups(strategy, axis), AXIS_GROUPS[axis].patterns) for axis in axes}

    @cached_property
    def buses(self) -> list[tuple[Ints, Floats, bool]]:
        """Unit, what leaves it, and whether that may pass host memory, of every rank; only such as limit."""
        seats, levels = self.seats, []
        if self.wiring.in_pairs.any():
            pair_rate = np.where(self.wiring.in_pairs, self.rates.of_run[:, PCIE_OUT], np.inf)[seats.run]
            levels.append((seats.pair, pair_rate * np.where(seats.bridged, 2, 1), False))
        if self.wiring.crosses_switch.any():
            switch_rate = np.where(self.wiring.crosses_switch, self.rates.of_run[:, SWITCH_OUT], np.inf)
            levels.append((seats.switch, switch_rate[seats.run], True))
        if self.wiring.crosses_socket.any():
            socket_rate = np.where(self.wiring.crosses_socket, self.rates.of_run[:, SOCKET_OUT], np.inf)
            levels.append((seats.socket, socket_rate[seats.run], True))
        return levels

    @cached_property
    def trunks(self) -> list[tuple[Ints, Floats]]:
        """Leaf and spine of every rank, and what the uplinks of each carry; only such as limit."""
        fabric, rates, levels = self.fabric, self.rates, []
        if fabric.leaves_limit:
            levels.append((self.seats.leaf, rates.of_leaf.reshape(-1, self.wiring.rails).sum(axis=1)))
        if fabric.spines_limit:
            levels.append((self.seats.spine, rates.of_spine.reshape(-1, self.wiring.rails).sum(axis=1)))
        return levels

    def path(self, groups: Ints, patterns: Sequence[str]) -> Path:
        """One axis whose groups (groups, members) all act at once, for `patterns` of traffic."""
        members, zeros = groups.shape[1], np.zeros(self.several)
        ranks, none = np.full(self.several, members), np.zeros(self.several, dtype=np.int64)
        costs: dict[str, Floats] = {f"{pattern}_s_per_byte": zeros for pattern in _NETWORK}
        costs |= {f"bus_{pattern}_s_per_byte": zeros for pattern in _BUSES}
        costs |= dict.fromkeys(
            ("ring_latency_s", "tree_latency_s", "chain_latency_s", "latency_s", "protocols", "message_s", "slower"),
            zeros,
        )
        if members == 1:
            return Path(ranks=ranks, local=ranks, hops_out=none, **costs)
        costs["chain_latency_s"] = members * self.rates.scale_up_latency_s[self.seats.run].max(axis=1)
        domain = self.seats.domain[:, groups]
        away = domain != domain[:, :, :1]
        crosses = bool(away.any())
        if not crosses and not self.buses:
            return Path(ranks=ranks, local=ranks, hops_out=none, **costs)
        local, place = alike(domain), self.seats.place[:, groups]
        flat = (-1, members)
        blocks = Blocks(place.reshape(flat), domain.reshape(flat), self.seats.nic[:, groups].reshape(flat))
        for pattern in patterns:
            costs[f"bus_{pattern}_s_per_byte"] = self._busiest_bus(pattern, groups, domain, local, blocks)
        if not crosses:
            return Path(ranks=ranks, local=ranks, hops_out=none, **costs)
        costs |= self._network(groups, patterns, domain, local, blocks)
        domains = blocks.domains.reshape(self.several, -1).max(axis=1)
        levels = (self.seats.leaf[:, groups], self.seats.spine[:, groups])
        above = sum((away.any(axis=2) & (unit != unit[:, :, :1]).any(axis=2)).any(axis=1) * 1 for unit in levels)
        most = local.max(axis=(1, 2))
        costs |= self._waits(members, most, domains, above)
        if self.wiring.rail_only:
            costs = heavier(self.rates, self.seats, groups, patterns, costs, blocks)
        return Path(ranks=ranks, local=most, hops_out=np.where(domains > 1, domains, 0), **costs)

    @cached_property
    def _latencies(self) -> tuple[Floats, Floats]:
        """(out of a domain under one leaf, inside a domain), of the slowest node in use."""
        run = self.seats.run
        card_s = self.rates.nic_latency_s[run].max(axis=1) + self.fabric.hop_latency_s
        return card_s, self.rates.scale_up_latency_s[run].max(axis=1)

    def _waits(self, members: int, most: Ints, domains: Ints, above: Ints) -> dict[str, Floats]:
        """Latency of one message out of a domain, of all hops of a ring, and of a tree from its leaves to its root.

        `above`: levels of switches above the leaves that groups cross.
        """
        card_s, inside_s = self._latencies
        out_s = card_s + above * self.fabric.spine_hops * self.fabric.hop_latency_s
        ring_s = domains * out_s + (members - domains) * inside_s
        tree_s = np.log2(domains) * out_s + (most - 1) * inside_s
        waits = {"latency_s": out_s, "ring_latency_s": ring_s, "tree_latency_s": tree_s}
        waits["protocols"] = np.full(self.several, float(self.rates.has_protocols))
        waits["message_s"] = np.full(self.several, self.rates.message_s)
        waits["slower"] = np.full(self.several, self.rates.slower)
        chain_s = members * np.where(domains > 1, out_s, inside_s)
        return {"chain_latency_s": chain_s, **{name: np.where(domains > 1, wait, 0.0) for name, wait in waits.items()}}

    def _network(
        self, groups: Ints, patterns: Sequence[str], domain: Ints, local: Ints, blocks: Blocks
    ) -> dict[str, Floats]:
        """Seconds per byte on the busiest card or uplink, by pattern; not a number where it is not asked for."""
        members, unread = groups.shape[1], np.full(self.several, np.nan)
        costs = {f"{pattern}_s_per_byte": unread for pattern in _NETWORK}
        if "all_to_all" in patterns:
            out = (members - local) / members
            sent = out / self.rates.all_to_all_share[self.seats.run[:, groups]]
            up = [(members - np.maximum(local, alike(unit[:, groups]))) / members for unit, _ in self.trunks]
            costs["all_to_all_s_per_byte"] = self._busiest(groups, sent, sent, up)
        if "send" in patterns:
            out = np.roll(domain, -1, axis=2) != domain
            ends = ((unit[:, groups], unit[:, np.roll(groups, -1, axis=1)]) for unit, _ in self.trunks)
            up = [out & (one != other) for one, other in ends]
            share = self.rates.ring_share[self.seats.run[:, groups]]
            busiest = self._busiest(groups, out / share, np.roll(out, 1, axis=2) / share, up)
            costs["send_s_per_byte"] = np.maximum(busiest, self._peer_s_per_byte(groups, blocks))
        if "gather" in patterns:
            costs["gather_s_per_byte"], costs["all_reduce_s_per_byte"] = self._rings(groups, blocks)
        return costs

    def _peer_s_per_byte(self, groups: Ints, blocks: Blocks) -> Floats:
        """Of a send out of a domain, by the channels that a peer has in the group with fewest."""
        if not self.rates.has_protocols:
            return np.zeros(self.several)
        run = self.seats.run[:, groups].reshape(-1, groups.shape[1])
        slowest, doubled = self.rates.card_line[run].min(axis=1), np.asarray(self.rates.doubled[run].all(axis=1))
        channel, release = self.rates.channel[run].min(axis=1), self.fabric.nccl_minor
        each = peer_bytes_per_s(groups.shape[1], blocks.channels, slowest, doubled, release, channel)
        return np.asarray(np.where(blocks.domains > 1, 1 / each, 0.0).reshape(self.several, -1).max(axis=1))

    def _busiest(self, groups: Ints, out: Array, into: Array, up: Sequence[Array]) -> Floats:
        """On cards and uplinks: the shares of a buffer that each member sends, receives, and sends up from `trunks`."""
        nic, rate = self.seats.nic[:, groups], self.card_rate[:, groups]
        busiest = self._most(nic, out / rate)
        if into is not out:
            busiest = np.maximum(busiest, self._most(nic, into / rate))
        for (unit, carried), share in zip(self.trunks, up, strict=True):
            if share.any():
                at = unit[:, groups]
                busiest = np.maximum(busiest, self._most(at, share / carried[at]))
        return busiest

    def _rings(self, groups: Ints, blocks: Blocks) -> tuple[Floats, Floats]:
        """(gather, all_reduce): the latter twice, or with trees in those groups that are the better for it.

        A tree loads no link more than rings do, but passes no more on inside a domain than `tree_bytes_per_s`. So the
        best choice of all groups is that of those which pass a rate or more, for one of the rates.
        """
        members, several = groups.shape[1], self.several
        part = np.where(blocks.domains > 1, (members - 1) / members, 0.0)
        gather = self._ring_load(groups, blocks, part, np.zeros(blocks.groups, dtype=bool))
        reduced = 2 * gather
        passed = self.rates.tree_bytes_per_s[self.seats.run[:, groups]].min(axis=2).ravel()
        for rate in np.unique(passed[blocks.may_be_trees]):
            trees = blocks.may_be_trees & (passed >= rate)
            by_trees = self._ring_load(groups, blocks, np.where(trees, 1.0, 2 * part), trees)
            passing = np.where(trees, 1 / passed, 0.0).reshape(several, -1).max(axis=1)
            reduced = np.minimum(reduced, np.maximum(by_trees, passing))
        return gather, reduced

    def _ring_load(self, groups: Ints, blocks: Blocks, sends: Floats, trees: Bools) -> Floats:
        """Where each group sends such a share of its buffer out of each domain, every card of a block an equal part of
        it, and one channel fits through one card; `trees` do without a ring's losses."""
        members, order = groups.shape[1], blocks.order
        rates = self.card_rate[:, groups].ravel()[order]
        shares = self.rates.ring_share[self.seats.run[:, groups]].ravel()[order]
        rates = np.where(np.repeat(trees, members), rates, rates * shares)
        block = np.repeat(np.arange(len(blocks.start)), blocks.entry_count)
        entry, placement = blocks.entries, blocks.entries // groups.size
        sent = (sends[blocks.group] / blocks.entry_count)[block]
        nic = self.seats.nic[:, groups].ravel()[order][entry]
        busiest = self._most_of(placement, nic, sent / rates[entry])
        channel = (sends / blocks.channels)[blocks.group] / np.maximum.reduceat(rates, blocks.start)
        np.maximum.at(busiest, blocks.start // groups.size, channel)
        last, first = blocks.start + blocks.size - 1, blocks.start[blocks.next]
        for unit_of_rank, carried in self.trunks:
            unit = unit_of_rank[:, groups].ravel()[order]
            up = (unit[last] != unit[first])[block]
            if up.any():
                over = sent * up / carried[unit[entry]]
                busiest = np.maximum(busiest, self._most_of(placement, unit[entry], over))
        return (
            np.maximum(busiest, followed_rings(self.rates, self.seats, groups, blocks, sends).busiest())
            if self.wiring.rail_only
            else busiest
        )

    def _busiest_bus(self, pattern: str, groups: Ints, domain: Ints, local: Ints, blocks: Blocks) -> Floats:
        """Seconds per byte on the busiest pair, switch or socket."""
        members, busiest = groups.shape[1], np.zeros(self.several)
        for unit_of_rank, rate_of_rank, staged in self.buses:
            unit, rate = unit_of_rank[:, groups], rate_of_rank[:, groups]
            if staged:
                rate = rate * self.rates.staged_share(pattern)[self.seats.run[:, groups]]
            near = alike(unit)
            if pattern == "send":
                out = (np.roll(domain, -1, axis=2) == domain) & (np.roll(unit, -1, axis=2) != unit)
                cards = 1 if staged else np.where(self.seats.bridged[:, groups], 2, 1)  # one message by one card
                ends = (out * cards / rate, np.roll(out, 1, axis=2) * cards / rate)
                at = unit if staged else self.seats.place[:, groups]
                loads = [self._most(at, share) for share in ends]
            elif pattern == "all_to_all":
                loads = [self._most(unit, (local - near) / members / rate)]
            else:
                share = np.where(near < local, (members - 1) / members, 0.0) * _passes(near, blocks)
                if staged:
                    loads = [self._most(unit, share / near / rate)]
                else:  # a ring leaves a pair by one card, and another ring by the other one
                    cards = np.where(self.seats.bridged[:, groups], 2, 1)
                    loads = [(share * cards / rate).max(axis=(1, 2))]
            busiest = np.maximum(busiest, np.max(loads, axis=0))
        return busiest

    def _most(self, unit: Ints, seconds: Array) -> Floats:
        """The largest sum over a unit, by placement (first axis)."""
        placement = np.repeat(np.arange(self.several), unit[0].size)
        return self._most_of(placement, unit.ravel(), seconds.ravel())

    def _most_of(self, placement: Ints, unit: Ints, seconds: Array) -> Floats:
        bins = int(unit.max()) + 1
        sums = np.bincount(placement * bins + unit, weights=seconds, minlength=self.several * bins)
        return np.asarray(sums.reshape(self.several, bins).max(axis=1))


def _passes(near: Ints, blocks: Blocks) -> Floats:
    """How often, per channel, a ring leaves each unit of a domain for another one; at each member, as `near`.

    One that leaves the domain spares a unit; channels spare them in turn, where there are as many as units.
    """
    units = np.rint(np.add.reduceat((1.0 / near).ravel()[blocks.order], blocks.start))
    channels, several = blocks.channels[blocks.group], blocks.domains[blocks.group] > 1
    passes = np.where(several & (channels >= units), (units - 1) / units, 1.0)
    at_member = np.empty(near.size)
    at_member[blocks.order] = np.repeat(passes, blocks.size)
    return at_member.reshape(near.shape)


def alike(unit: Ints) -> Ints:
    """For each member (last axis) of each group, how many members of its group share its unit; shape as the input."""
    if np.any(unit[..., 1:] < unit[..., :-1]):
        order = np.argsort(unit, axis=-1, kind="stable")
        counted = _run_lengths(np.take_along_axis(unit, order, axis=-1))
        back = np.empty_like(counted)
        np.put_along_axis(back, order, counted, axis=-1)
        return back
    return _run_lengths(unit)


def _run_lengths(unit: Ints) -> Ints:
    """Length of the run of equal neighbours (last axis) that each entry is in."""
    starts = np.ones(unit.shape, dtype=bool)
    np.not_equal(unit[..., 1:], unit[..., :-1], out=starts[..., 1:])
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=unit.size)
    return np.repeat(lengths, lengths).reshape(unit.shape)
