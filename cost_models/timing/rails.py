"""What a rail-only fabric adds to the loads of an axis: bytes for another rail leave and enter at other GPUs' cards.

    from a GPU at card i of node A to one at card j of node B, no switch joins the rails:
        A has rail j      A's scale-up link to the GPU at card j, card j out, card j in          (NCCL's PXN)
        else              card i out, card i in, B's scale-up link to the GPU at card j

`Wiring.rail` chooses. Every pair (of a ring: every hop between domains, by channel) is followed over cards, uplinks of
its rail, and the scale-up links that it borrows; an axis costs the larger of this and of what its own cards carry.
Left out: on a PCIe tree, the way to the other card; what a borrowed link carries at that time of the group's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cost_models.hardware.wiring import (
    GPU_IN,
    GPU_OUT,
    LEAF_DOWN,
    LEAF_UP,
    NIC_IN,
    NIC_OUT,
    SPINE_DOWN,
    SPINE_UP,
    TRUNKS,
    Floats,
    Ints,
    LinkRates,
    Seats,
)
from cost_models.timing.rings import Blocks

MOST_PAIRS = 2**21
"""Pairs that are followed at a time."""


def heavier(
    rates: LinkRates, seats: Seats, groups: Ints, patterns: Sequence[str], costs: dict[str, Floats], blocks: Blocks
) -> dict[str, Floats]:
    """`costs` (seconds per byte by pattern, latencies) of an axis, where following the rails gives more."""
    found = dict(costs)
    inside_s = rates.scale_up_latency_s[seats.run].max(axis=1)
    for pattern in patterns:
        follow = {"all_to_all": _pairs, "send": _sends, "gather": _rings}[pattern]
        for name, meter in follow(rates, seats, groups, blocks).items():
            found[f"{name}_s_per_byte"] = np.maximum(costs[f"{name}_s_per_byte"], meter.busiest())
            wait = "ring_latency_s" if pattern == "gather" else "latency_s"
            hops = blocks.domains.reshape(len(seats.slot), -1).max(axis=1) if pattern == "gather" else 1
            found[wait] = np.maximum(found[wait], costs[wait] + hops * inside_s * meter.relays)
    return found


class _Meter:
    """Seconds per byte on every card, uplink and borrowed link, by placement."""

    def __init__(self, rates: LinkRates, seats: Seats) -> None:
        self.rates, self.wiring, self.seats, self.seconds = rates, rates.wiring, seats, dict[int, Floats]()
        self.relays = np.zeros(len(seats.slot), dtype=bool)

    @property
    def trunks(self) -> tuple[tuple[bool, Ints, int, int], ...]:
        """(whether it may limit, switch of each rank, its uplinks, its downlinks) of leaves and spines."""
        fabric, seats = self.wiring.cluster.fabric, self.seats
        return (
            (fabric.leaves_limit, seats.leaf, LEAF_UP, LEAF_DOWN),
            (fabric.spines_limit, seats.spine, SPINE_UP, SPINE_DOWN),
        )

    def follow(self, placement: Ints, source: Ints, to: Ints, share: Floats) -> None:
        """`share[i]` of a buffer from rank `source[i]` to `to[i]` of a placement, which is in another domain."""
        seats, wiring = self.seats, self.wiring
        one, other = (placement, source), (placement, to)
        rail = wiring.rail(seats.run[one], seats.card[one], seats.run[other], seats.card[other])
        for end, nic, out, into in ((one, NIC_OUT, GPU_OUT, GPU_IN), (other, NIC_IN, GPU_IN, GPU_OUT)):
            self.add(nic, placement, seats.slot[end] * wiring.nic_places + rail, share)
            relayed = (seats.card[end] != rail) & wiring.relays[seats.run[end], rail]
            if relayed.any():
                self.relays[placement[relayed]] = True
                at_rail = wiring.seats(seats.slot[end], seats.gpu[end]).at_rail(rail)
                self.add(out, placement[relayed], seats.place[end][relayed], share[relayed])
                self.add(into, placement[relayed], at_rail.place[relayed], share[relayed])
        for limits, level, up, down in self.trunks:
            crosses = (level[one] != level[other]) & limits
            for end, kind in ((one, up), (other, down)):
                self.add(kind, placement[crosses], (level[end] * wiring.rails + rail)[crosses], share[crosses])

    def add(self, kind: int, placement: Ints, unit: Ints, share: Floats) -> None:
        if not len(unit):
            return
        wiring, rates = self.wiring, self.rates
        if kind in TRUNKS:
            units = len(rates.of_leaf if kind in (LEAF_UP, LEAF_DOWN) else rates.of_spine)
        else:
            units = wiring.cluster.slots * wiring.per_slot(kind)
        total = self.seconds.setdefault(kind, np.zeros((len(self.relays), units)))
        weights = share / rates.of(kind, unit)
        total += np.bincount(placement * units + unit, weights, total.size).reshape(total.shape)

    def busiest(self) -> Floats:
        """Of each placement."""
        found = np.zeros(len(self.relays))
        for seconds in self.seconds.values():
            found = np.maximum(found, seconds.max(axis=1))
        return found


def _followed(meter: _Meter, placement: Ints, source: Ints, to: Ints, share: Floats) -> None:
    domain = meter.seats.domain
    away = domain[placement, source] != domain[placement, to]
    meter.follow(placement[away], source[away], to[away], share[away])


def _pairs(rates: LinkRates, seats: Seats, groups: Ints, blocks: Blocks) -> dict[str, _Meter]:
    """Every member to every other: 1 / P each."""
    wiring = rates.wiring
    here = wiring.has_rail[np.unique(seats.run)][:, np.unique(seats.card)]
    first_slot = np.unique(wiring.cluster.domain_of_slot, return_index=True)[1][wiring.cluster.domain_of_slot]
    spread = (wiring.cluster.leaf_of_slot[first_slot] != wiring.cluster.leaf_of_slot).any()
    if here.all() and not spread:
        return {"all_to_all": counted_pairs(rates, seats, groups)}
    return {"all_to_all": followed_pairs(rates, seats, groups)}


def followed_pairs(rates: LinkRates, seats: Seats, groups: Ints) -> _Meter:
    """Every pair on its own."""
    meter, members = _Meter(rates, seats), groups.shape[1]
    together = max(1, MOST_PAIRS // (members * members * len(seats.slot)))
    for first in range(0, len(groups), together):
        some = groups[first : first + together]
        shape = (len(seats.slot), len(some), members, members)
        source, to = np.broadcast_to(some[:, :, None], shape), np.broadcast_to(some[:, None, :], shape)
        placement = np.broadcast_to(np.arange(len(seats.slot))[:, None, None, None], shape)
        share = np.full(source.size, 1 / members)
        _followed(meter, placement.ravel(), source.ravel(), to.ravel(), share)
    return meter


def counted_pairs(rates: LinkRates, seats: Seats, groups: Ints) -> _Meter:
    """As `followed_pairs` where every node has every rail in use, and bytes take the receiver's: by counting members.

    n members in a slot send n (N - d) / P out of its card j, for N members at cards j of which d in the slot's domain.
    What cards receive is what their own members do: the axis counts that anyhow.
    """
    meter, wiring, members = _Meter(rates, seats), rates.wiring, groups.shape[1]
    card = seats.card[:, groups]

    def add(kind: int, unit: Ints, share: Floats) -> None:
        used = share > 0
        meter.add(kind, np.nonzero(used)[0], unit[used], share[used])

    slots = _Members(seats.slot[:, groups], card, wiring.nic_places)
    domains = _Members(seats.domain[:, groups], card, wiring.nic_places)
    rail = np.arange(wiring.nic_places)
    away = domains.all - domains.count  # (placements, groups, domains, rails)
    domain_of = slots.of(domains.index)
    away_slot = np.take_along_axis(away, domain_of[..., None], axis=2)
    add(NIC_OUT, slots.unit[..., None] * wiring.nic_places + rail, slots.size * away_slot / members)
    run = wiring.cluster.run_of_slot[slots.unit]
    relays = wiring.relays[run]  # (placements, groups, slots, rails)
    place = slots.unit[..., None] * wiring.gpu_places + wiring.gpu_of_nic[run]
    add(GPU_IN, place, np.where(relays, (slots.size - slots.count) * away_slot / members, 0.0))
    mine = np.take_along_axis(away, domains.index[..., None], axis=2)  # (placements, groups, members, rails)
    other = wiring.relays[seats.run[:, groups]] & (rail != card[..., None])
    crossing = np.where(other, mine, 0).sum(axis=3) / members
    add(GPU_OUT, seats.place[:, groups], crossing)
    meter.relays = (crossing > 0).any(axis=(1, 2))
    for limits, level, up, down in meter.trunks:
        if limits:
            at = _Members(level[:, groups], card, wiring.nic_places)
            unit = at.unit[..., None] * wiring.rails + rail
            add(up, unit, at.size * (at.all - at.count) / members)
            add(down, unit, at.count * (members - at.size) / members)
    return meter


class _Members:
    """How many members of each group are in each of its units (slots, domains, leaves), by card number."""

    def __init__(self, unit: Ints, card: Ints, cards: int) -> None:
        order = np.argsort(unit, axis=2, kind="stable")
        ordered = np.take_along_axis(unit, order, axis=2)
        fresh = np.zeros(unit.shape, dtype=np.int64)
        fresh[:, :, 1:] = ordered[:, :, 1:] != ordered[:, :, :-1]
        self.index = np.empty_like(unit)  # of a member's unit among those of its group
        np.put_along_axis(self.index, order, np.cumsum(fresh, axis=2), axis=2)
        self.units = int(self.index.max()) + 1
        self.unit = self.of(unit)
        row = np.arange(unit.shape[0] * unit.shape[1]).reshape(*unit.shape[:2], 1) * self.units + self.index
        shape = (*unit.shape[:2], self.units, cards)
        self.count = np.bincount((row * cards + card).ravel(), minlength=int(np.prod(shape))).reshape(shape)
        self.size = self.count.sum(axis=3, keepdims=True)
        self.all = self.count.sum(axis=2, keepdims=True)

    def of(self, value: Ints) -> Ints:
        """A value that members of a unit share, by unit; 0 where a group has fewer units than others."""
        found = np.zeros((*value.shape[:2], self.units), dtype=np.int64)
        np.put_along_axis(found, self.index, value, axis=2)
        return found


def _sends(rates: LinkRates, seats: Seats, groups: Ints, blocks: Blocks) -> dict[str, _Meter]:
    """Every member to the next."""
    meter, shape = _Meter(rates, seats), (len(seats.slot), *groups.shape)
    source, to = np.broadcast_to(groups, shape), np.broadcast_to(np.roll(groups, -1, axis=1), shape)
    placement = np.broadcast_to(np.arange(len(seats.slot))[:, None, None], shape)
    _followed(meter, placement.ravel(), source.ravel(), to.ravel(), np.ones(source.size))
    return {"send": meter}


def _rings(rates: LinkRates, seats: Seats, groups: Ints, blocks: Blocks) -> dict[str, _Meter]:
    part = (groups.shape[1] - 1) / groups.shape[1]
    return {"gather": followed_rings(rates, seats, groups, blocks, np.full(blocks.groups, part))}


def followed_rings(rates: LinkRates, seats: Seats, groups: Ints, blocks: Blocks, sends: Floats) -> _Meter:
    """The hops between domains of every channel of every ring, where each group sends such a share of its buffer."""
    meter = _Meter(rates, seats)
    placement, place = np.divmod(blocks.order, groups.size)
    rank = groups.ravel()[place]
    channels = blocks.channels[blocks.group]
    share = sends[blocks.group] / channels
    for channel in range(int(channels.max())):
        entry, leave = blocks.ends(channel)
        used = (blocks.domains[blocks.group] > 1) & (channel < channels)
        exits, entries = leave[used], entry[blocks.next][used]
        meter.follow(placement[exits], rank[exits], rank[entries], share[used])
    return meter
