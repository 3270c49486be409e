"""The links of a cluster and the route between any two ranks, as arrays over all ranks at once.

    inside a domain   switch: gpu out > gpu in · pairs: the bridge, else PCIe · pcie: pcie out > [switch out > [socket
                      out > socket in >] switch in >] pcie in, through host memory without peer-to-peer (host out > in)
    between domains   [pcie out > switch out > … > switch in >] nic out > [leaf up > leaf down >] nic in [> … > pcie in]
    offload           [pcie out >] host out, and the same inwards

A link is (kind, unit) of the cluster's wiring (`hardware/wiring.py`), and carries what the given rates say, by default
those of the data sheets. Without oversubscription a leaf's uplinks can never be what limits (its NICs do) and are not
on any route.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

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
    SWITCH_IN,
    SWITCH_OUT,
    LinkRates,
    Wiring,
)
from cost_models.hardware.wiring import Floats as Floats
from cost_models.hardware.wiring import Ints as Ints

LEAVING_STEPS = 9
"""Steps of a route on the sender's side, up to its leaf; the rest belong to the receiver."""


class Routes(Struct, frozen=True, kw_only=True, eq=False):
    """Flows' links in order: `kind[i]` and `unit[:, i]`, unit -1 where a flow does not take step i."""

    kind: tuple[int, ...]
    arriving: tuple[bool, ...]  # whether step i is a link of the receiver's side
    unit: Ints  # (flows, steps)
    latency_s: Floats  # (flows,)


class Topology:
    """Where every rank of a placement sits, and what it crosses to reach another.

    >>> cluster = Cluster.load("dgx-h100", nodes=2)
    >>> topology = Topology(cluster, Placement.in_order(cluster, 16))
    >>> routes = topology.routes(np.array([0, 0]), np.array([1, 9]))
    >>> [topology.link_names(routes, flow) for flow in (0, 1)]
    [['slot 0 gpu 0 out', 'slot 0 gpu 1 in'], ['slot 0 nic 0 out', 'slot 1 nic 1 in']]
    """

    def __init__(self, cluster: Cluster, placement: Placement, rates: LinkRates | None = None) -> None:
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
        self.leaves_limit = cluster.fabric.oversubscription > 1
        self.leaf_rate = self.rates.of_leaf
        self.scale_up_latency_s = self.rates.scale_up_latency_s[self.run]
        self.nic_latency_s = self.rates.nic_latency_s[self.run]
        self.on_pcie, self.in_pairs = wiring.on_pcie[self.run], wiring.in_pairs[self.run]
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
        up = network & (self.leaf[source] != self.leaf[to]) if self.leaves_limit else np.zeros(len(to), dtype=bool)
        pcie = ~network & self.on_pcie[source]
        bridge = pcie & self.in_pairs[source] & (self.pair[source] == self.pair[to])
        pcie &= ~bridge
        host = pcie & self.through_host[source]
        out_bus, in_bus = network & self.on_pcie[source], network & self.on_pcie[to]
        out_cross = out_bus & self.crosses_switch[source] & (self.switch[source] != self.nic_switch[source])
        in_cross = in_bus & self.crosses_switch[to] & (self.switch[to] != self.nic_switch[to])
        cross = pcie & self.crosses_switch[source] & (self.switch[source] != self.switch[to])
        between = cross & self.crosses_socket[source] & (self.socket[source] != self.socket[to])
        out_socket = out_cross & self.crosses_socket[source] & (self.socket[source] != self.nic_socket[source])
        in_socket = in_cross & self.crosses_socket[to] & (self.socket[to] != self.nic_socket[to])
        steps = (
            (GPU_OUT, ~network & ~pcie, self.place[source]),
            (PCIE_OUT, pcie | out_bus, self.place[source]),
            (HOST_OUT, host, self.place[source]),
            (SWITCH_OUT, cross | out_cross, self.switch[source]),
            (SOCKET_OUT, between | out_socket, self.socket[source]),
            (SOCKET_IN, out_socket, self.nic_socket[source]),
            (SWITCH_IN, out_cross, self.nic_switch[source]),
            (NIC_OUT, network, self.nic[source]),
            (LEAF_UP, up, self.leaf[source]),
            (SOCKET_IN, between, self.socket[to]),
            (SWITCH_IN, cross, self.switch[to]),
            (LEAF_DOWN, up, self.leaf[to]),
            (NIC_IN, network, self.nic[to]),
            (SWITCH_OUT, in_cross, self.nic_switch[to]),
            (SOCKET_OUT, in_socket, self.nic_socket[to]),
            (SOCKET_IN, in_socket, self.socket[to]),
            (SWITCH_IN, in_cross, self.switch[to]),
            (HOST_IN, host, self.place[to]),
            (PCIE_IN, pcie | in_bus, self.place[to]),
            (GPU_IN, ~network & ~pcie, self.place[to]),
        )
        used = [(i, kind, np.where(mask, unit, -1)) for i, (kind, mask, unit) in enumerate(steps) if mask.any()]
        units = [unit for _, _, unit in used]
        return Routes(
            kind=tuple(kind for _, kind, _ in used),
            arriving=tuple(i >= LEAVING_STEPS for i, _, _ in used),
            unit=np.stack(units, axis=1) if used else np.zeros((len(source), 0), dtype=np.int64),
            latency_s=self.latency_s(source, to),
        )

    def nearness(self, source: Ints, to: Ints) -> Ints:
        """A number that tells routes of different kinds apart: what the two ranks share."""
        levels = [self.pair, self.switch, self.slot, self.domain, self.leaf, self.socket]
        return sum(((level[source] != level[to]).astype(np.int64) << i for i, level in enumerate(levels)), source * 0)

    def latency_s(self, source: Ints, to: Ints) -> Floats:
        """Seconds before the first byte of a flow arrives."""
        network, across = self.domain[source] != self.domain[to], self.leaf[source] != self.leaf[to]
        fabric = self.cluster.fabric
        switches = fabric.hop_latency_s * np.where(across, 1 + fabric.spine_hops, 1)
        outside = np.maximum(self.nic_latency_s[source], self.nic_latency_s[to]) + switches
        inside = self.scale_up_latency_s[source] * np.where(self.through_host[source], 2.0, 1.0)
        return np.where(network, outside, inside)

    def host_routes(self, ranks: Ints, *, inwards: bool) -> Routes:
        """Between a rank's GPU and its host's memory."""
        kinds = (HOST_IN, PCIE_IN) if inwards else (PCIE_OUT, HOST_OUT)
        unit = [np.where(self.on_pcie[ranks] | (k in (HOST_IN, HOST_OUT)), self.place[ranks], -1) for k in kinds]
        return Routes(
            kind=kinds, arriving=(inwards, inwards), unit=np.stack(unit, axis=1), latency_s=np.zeros(len(ranks))
        )

    def link_name(self, kind: int, unit: int) -> str:
        if kind in (LEAF_UP, LEAF_DOWN):
            return f"leaf {unit} {KINDS[kind].split()[1]}"
        slot, inside = divmod(unit, self.per_slot(kind))
        what, way = KINDS[kind].split()
        if kind in OF_GPU and what != "gpu":
            return f"slot {slot} gpu {inside} {what} {way}"
        return f"slot {slot} {what} {inside} {way}"

    def link_names(self, routes: Routes, flow: int) -> list[str]:
        """The links of one flow, in order."""
        units = zip(routes.kind, routes.unit[flow].tolist(), strict=True)
        return [self.link_name(kind, unit) for kind, unit in units if unit >= 0]
