"""The links of a cluster and the route between any two ranks, as arrays over all ranks at once.

    inside a domain   switch: gpu out > gpu in · pairs: the bridge, else PCIe · pcie: pcie out > [switch out > [socket
                      out > socket in >] switch in >] pcie in, through host memory without peer-to-peer (host out > in)
    between domains   [pcie out > switch out > … > switch in >] nic out > [leaf up > [spine up > spine down >] leaf
                      down >] nic in [> … > pcie in]
    to another rail   of a rail-only fabric: gpu out > gpu in (of the GPU at that rail's card) > nic out > …
    offload           [pcie out >] host out, and the same inwards

A link is (kind, unit) of the cluster's wiring (`hardware/wiring.py`), and carries what the given rates say, by default
those of the data sheets. Without oversubscription a leaf's or spine's uplinks can never be what limits (its NICs do)
and are not on any route.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.hardware.wiring import (
    GPU_IN,
    GPU_OUT,
    HOST_IN,
    HOST_OUT,
    KINDS,
    LEAF_DOWN,
    LEAF_UP,
    NIC_IN,
    NIC_OUT,
    OF_GPU,
    PCIE_IN,
    PCIE_OUT,
    SOCKET_IN,
    SOCKET_OUT,
    SPINE_DOWN,
    SPINE_UP,
    SWITCH_IN,
    SWITCH_OUT,
    TRUNKS,
    LinkRates,
    Wiring,
)
from cost_models.hardware.wiring import Floats as Floats
from cost_models.hardware.wiring import Ints as Ints
from cost_models.timing.collectives import Collectives

LEAVING_STEPS = 11
"""Steps of a route on the sender's side, up to its spine; the rest belong to the receiver."""
NEARNESSES = 128
"""Values of `Topology.nearness`."""


class Routes(Struct, frozen=True, kw_only=True, eq=False):
    """Flows' links in order: `kind[i]` and `unit[:, i]`, unit -1 where a flow does not take step i."""

    kind: tuple[int, ...]
    arriving: tuple[bool, ...]  # whether step i is a link of the receiver's side
    unit: Ints  # (flows, steps)
    latency_s: Floats  # (flows,)


class Way(Struct, frozen=True, eq=False):
    """Where bytes leave or enter a node."""

    nic: Ints
    place: Ints  # of the first GPU at that card
    switch: Ints  # that the card hangs on
    socket: Ints


class Topology:
    """Where every rank of a placement sits, and what it crosses to reach another.

    >>> cluster = Cluster.load("dgx-h100", nodes=2)
    >>> topology = Topology(cluster, Placement.in_order(cluster, 16))
    >>> routes = topology.routes(np.array([0, 0]), np.array([1, 9]))
    >>> [topology.link_names(routes, flow) for flow in (0, 1)]
    [['slot 0 gpu 0 out', 'slot 0 gpu 1 in'], ['slot 0 nic 0 out', 'slot 1 nic 1 in']]
    """

    def __init__(
        self,
        cluster: Cluster,
        placement: Placement,
        rates: LinkRates | None = None,
        inside: Collectives | None = None,  # how long one takes inside a domain; None: as its hops do
    ) -> None:
        self.inside = inside
        self.rates = Wiring(cluster).line if rates is None else rates
        self.wiring = wiring = self.rates.wiring
        self.cluster, self.nodes = cluster, wiring.nodes
        self.ranks = len(placement.slot_of_rank)
        self.seats = seats = wiring.seats(
            np.asarray(placement.slot_of_rank, dtype=np.int64), np.asarray(placement.gpu_of_rank, dtype=np.int64)
        )
        self.slot, self.gpu, self.run, self.domain, self.leaf = (
            seats.slot, seats.gpu, seats.run, seats.domain, seats.leaf
        )  # fmt: skip
        self.place, self.pair, self.nic, self.switch, self.nic_switch = (
            seats.place, seats.pair, seats.nic, seats.switch, seats.nic_switch
        )  # fmt: skip
        self.spine, self.card, self.rail_only = seats.spine, seats.card, wiring.rail_only
        self.leaves_limit, self.spines_limit = cluster.fabric.leaves_limit, cluster.fabric.spines_limit
        self.leaf_rate, self.spine_rate, self.card_rate = (
            self.rates.of_leaf,
            self.rates.of_spine,
            self.rates.cards(seats),
        )
        self.scale_up_latency_s = self.rates.scale_up_latency_s[self.run]
        self.nic_latency_s = self.rates.nic_latency_s[self.run]
        self.on_pcie, self.in_pairs = wiring.on_pcie[self.run], seats.bridged
        self.through_host, self.crosses_switch = wiring.through_host[self.run], wiring.crosses_switch[self.run]
        several = bool((self.domain != self.domain[0]).any())
        self.socket, self.nic_socket, self.crosses_socket = (
            seats.socket, seats.at_nic.socket, wiring.crosses_socket[self.run]
        )  # fmt: skip
        self.reaches_nic_across = self.crosses_switch & (self.switch != self.nic_switch) & several

    def rate(self, kind: int, unit: Ints) -> Floats:
        """Bytes/s of links of one kind."""
        return self.rates.of(kind, unit)

    def per_slot(self, kind: int) -> int:
        """Units of this kind in one slot (leaves: not in a slot)."""
        return self.wiring.per_slot(kind)

    def routes(self, source: Ints, to: Ints) -> Routes:
        """Links and latency of each flow from rank `source[i]` to rank `to[i]`."""
        network = self.domain[source] != self.domain[to]
        none = np.zeros(len(to), dtype=bool)
        up = network & (self.leaf[source] != self.leaf[to]) if self.leaves_limit else none
        over = network & (self.spine[source] != self.spine[to]) if self.spines_limit else none
        trunk, relays, relayed = None, none, none
        if self.rail_only:
            trunk = self.rail(source, to)
            relays = network & (self.card[source] != trunk) & self.wiring.relays[self.run[source], trunk]
            relayed = network & (self.card[to] != trunk) & self.wiring.relays[self.run[to], trunk]
        leave, enter = self._ways(source, trunk), self._ways(to, trunk)
        pcie = ~network & self.on_pcie[source]
        bridge = pcie & self.in_pairs[source] & (self.pair[source] == self.pair[to])
        pcie &= ~bridge
        host = self.staged(source, to)
        out_bus, in_bus = network & self.on_pcie[source], network & self.on_pcie[to]
        out_cross = out_bus & self.crosses_switch[source] & (self.switch[source] != leave.switch)
        in_cross = in_bus & self.crosses_switch[to] & (self.switch[to] != enter.switch)
        cross = pcie & self.crosses_switch[source] & (self.switch[source] != self.switch[to])
        between = cross & self.crosses_socket[source] & (self.socket[source] != self.socket[to])
        out_socket = out_cross & self.crosses_socket[source] & (self.socket[source] != leave.socket)
        in_socket = in_cross & self.crosses_socket[to] & (self.socket[to] != enter.socket)
        inside = ~network & ~pcie
        steps = (
            (GPU_OUT, inside | relays, self.place[source]),
            (GPU_IN, relays, leave.place),
            (PCIE_OUT, pcie | out_bus, self.place[source]),
            (HOST_OUT, host, self.place[source]),
            (SWITCH_OUT, cross | out_cross, self.switch[source]),
            (SOCKET_OUT, between | out_socket, self.socket[source]),
            (SOCKET_IN, out_socket, leave.socket),
            (SWITCH_IN, out_cross, leave.switch),
            (NIC_OUT, network, leave.nic),
            (LEAF_UP, up, self._trunk(self.leaf[source], trunk)),
            (SPINE_UP, over, self._trunk(self.spine[source], trunk)),
            (SOCKET_IN, between, self.socket[to]),
            (SWITCH_IN, cross, self.switch[to]),
            (SPINE_DOWN, over, self._trunk(self.spine[to], trunk)),
            (LEAF_DOWN, up, self._trunk(self.leaf[to], trunk)),
            (NIC_IN, network, enter.nic),
            (SWITCH_OUT, in_cross, enter.switch),
            (SOCKET_OUT, in_socket, enter.socket),
            (SOCKET_IN, in_socket, self.socket[to]),
            (SWITCH_IN, in_cross, self.switch[to]),
            (HOST_IN, host, self.place[to]),
            (PCIE_IN, pcie | in_bus, self.place[to]),
            (GPU_OUT, relayed, enter.place),
            (GPU_IN, inside | relayed, self.place[to]),
        )
        used = [(i, kind, np.where(mask, unit, -1)) for i, (kind, mask, unit) in enumerate(steps) if mask.any()]
        units = [unit for _, _, unit in used]
        return Routes(
            kind=tuple(kind for _, kind, _ in used),
            arriving=tuple(i >= LEAVING_STEPS for i, _, _ in used),
            unit=np.stack(units, axis=1) if used else np.zeros((len(source), 0), dtype=np.int64),
            latency_s=self.latency_s(source, to),
        )

    def staged(self, source: Ints, to: Ints) -> NDArray[np.bool_]:
        """Whether bytes go through host memory inside a node."""
        pcie = (self.domain[source] == self.domain[to]) & self.on_pcie[source] & self.through_host[source]
        bridge = self.in_pairs[source] & (self.pair[source] == self.pair[to])
        joined = self.wiring.joined_by_switch[self.run[source]] & (self.switch[source] == self.switch[to])
        return np.asarray(pcie & ~bridge & ~joined)

    def _ways(self, ranks: Ints, rail: Ints | None) -> Way:
        """The cards that ranks use: their own, or those of a rail."""
        if rail is None:
            return Way(self.nic[ranks], self.place[ranks], self.nic_switch[ranks], self.nic_socket[ranks])
        seats = self.wiring.seats(self.slot[ranks], self.gpu[ranks]).at_rail(rail)
        return Way(self.slot[ranks] * self.wiring.nic_places + rail, seats.place, seats.switch, seats.socket)

    def _trunk(self, number: Ints, rail: Ints | None) -> Ints:
        """The unit of a leaf or spine, or of its part for a rail."""
        return number if rail is None else number * self.wiring.rails + rail

    def rail(self, source: Ints, to: Ints) -> Ints:
        """The card, at either end, that a flow takes in a rail-only fabric."""
        return self.wiring.rail(self.run[source], self.card[source], self.run[to], self.card[to])

    def nearness(self, source: Ints, to: Ints) -> Ints:
        """A number that tells routes of different kinds apart: what the two ranks share."""
        levels = [self.pair, self.switch, self.slot, self.domain, self.leaf, self.socket, self.spine]
        return sum(((level[source] != level[to]).astype(np.int64) << i for i, level in enumerate(levels)), source * 0)

    def latency_s(self, source: Ints, to: Ints) -> Floats:
        """Seconds before the first byte of a flow arrives."""
        network, across = self.domain[source] != self.domain[to], self.leaf[source] != self.leaf[to]
        fabric = self.cluster.fabric
        further = np.where(self.spine[source] != self.spine[to], 2, 1) * fabric.spine_hops
        switches = fabric.hop_latency_s * np.where(across, 1 + further, 1)
        outside = np.maximum(self.nic_latency_s[source], self.nic_latency_s[to]) + switches
        inside = self.scale_up_latency_s[source] * np.where(self.through_host[source], 2.0, 1.0)
        if self.rail_only:
            rail = self.rail(source, to)
            for end in (source, to):
                relays = (self.card[end] != rail) & self.wiring.relays[self.run[end], rail]
                outside = outside + np.where(relays, self.scale_up_latency_s[end], 0.0)
        return np.where(network, outside, inside)

    def host_routes(self, ranks: Ints, *, inwards: bool) -> Routes:
        """Between a rank's GPU and its host's memory: one copy, at the host's link's own rate where messages between
        GPUs take two."""
        kinds = (HOST_IN, PCIE_IN) if inwards else (PCIE_OUT, HOST_OUT)
        bus = self.on_pcie[ranks] & ~self.through_host[ranks]
        unit = [np.where(bus | (k in (HOST_IN, HOST_OUT)), self.place[ranks], -1) for k in kinds]
        return Routes(
            kind=kinds, arriving=(inwards, inwards), unit=np.stack(unit, axis=1), latency_s=np.zeros(len(ranks))
        )

    def link_name(self, kind: int, unit: int) -> str:
        if kind in TRUNKS:
            what, way = KINDS[kind].split()
            number, rail = divmod(unit, self.wiring.rails)
            return f"{what} {number}{f' rail {rail}' if self.rail_only else ''} {way}"
        slot, inside = divmod(unit, self.per_slot(kind))
        what, way = KINDS[kind].split()
        if kind in OF_GPU and what != "gpu":
            return f"slot {slot} gpu {inside} {what} {way}"
        return f"slot {slot} {what} {inside} {way}"

    def link_names(self, routes: Routes, flow: int) -> list[str]:
        """The links of one flow, in order."""
        units = zip(routes.kind, routes.unit[flow].tolist(), strict=True)
        return [self.link_name(kind, unit) for kind, unit in units if unit >= 0]
