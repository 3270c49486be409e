"""The links of a cluster and the route between any two ranks, as arrays over all ranks at once.

    inside a domain   switch: gpu out > gpu in · pairs: the bridge, else PCIe · pcie: pcie out > [switch out > switch
                      in] > pcie in, through host memory without peer-to-peer (host out > host in of the two GPUs)
    between domains   [pcie out > switch out > switch in >] nic out > [leaf up > leaf down >] nic in [> … > pcie in]
    offload           [pcie out >] host out, and the same inwards

A link is (kind, unit): a unit is a GPU place, a NIC, a PCIe switch of a slot, or a leaf. Rates are bytes/s one way.
A NIC hangs on the PCIe switch of the first GPU that uses it. A leaf's uplink is its nodes' NIC rate divided by the
oversubscription, whatever is broken in them; without oversubscription it can never be what limits (its NICs do) and is
not on any route. Left out: rail-only wiring, and links inside the spine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.hardware.cluster import Cluster, Node
from cost_models.hardware.placement import Placement

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

KINDS = (
    "gpu out", "gpu in", "pcie out", "pcie in", "host out", "host in",
    "nic out", "nic in", "switch out", "switch in", "leaf up", "leaf down",
)  # fmt: skip
GPU_OUT, GPU_IN, PCIE_OUT, PCIE_IN, HOST_OUT, HOST_IN, NIC_OUT, NIC_IN, SWITCH_OUT, SWITCH_IN, LEAF_UP, LEAF_DOWN = (
    range(len(KINDS))
)
LEAVING_STEPS = 7
"""Steps of a route on the sender's side, up to its leaf; the rest belong to the receiver."""
OF_GPU = frozenset((GPU_OUT, GPU_IN, PCIE_OUT, PCIE_IN, HOST_OUT, HOST_IN))


@dataclass(frozen=True, kw_only=True, eq=False)
class Routes:
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

    def __init__(self, cluster: Cluster, placement: Placement) -> None:
        self.cluster = cluster
        self.ranks = len(placement.slot_of_rank)
        self.slot: Ints = np.asarray(placement.slot_of_rank, dtype=np.int64)
        self.gpu: Ints = np.asarray(placement.gpu_of_rank, dtype=np.int64)
        self.run: Ints = cluster.run_of_slot[self.slot]
        self.domain: Ints = cluster.domain_of_slot[self.slot]
        self.leaf: Ints = cluster.leaf_of_slot[self.slot]
        self.nodes = [run.node for run in cluster.runs]
        self.gpu_places = max(max(node.gpus for node in self.nodes), int(self.gpu.max()) + 1)
        self.nic_places = max(1, max(node.nics.count for node in self.nodes))
        self.switches = max(_switches(node) for node in self.nodes)
        self._units()
        self._rates()

    def _units(self) -> None:
        """Number the unit of each rank: its place, NIC, PCIe switch, the switch of its NIC, its NVLink pair."""
        nic = np.zeros((len(self.nodes), self.gpu_places), dtype=np.int64)
        nic_switch = np.zeros((len(self.nodes), self.nic_places), dtype=np.int64)
        for i, node in enumerate(self.nodes):
            nic[i, : max(node.gpus, 1)] = np.maximum(node.nic_of_gpu(max(node.gpus, 1)), 0)
            first = -(-np.arange(node.nics.count) * node.gpus // max(node.nics.count, 1))
            nic_switch[i, : node.nics.count] = first // _under_switch(node)
        under = np.array([_under_switch(node) for node in self.nodes])[self.run]
        own_nic = nic[self.run, self.gpu]
        self.place = self.slot * self.gpu_places + self.gpu
        self.nic = self.slot * self.nic_places + own_nic
        self.switch = self.slot * self.switches + self.gpu // under
        self.nic_switch = self.slot * self.switches + nic_switch[self.run, own_nic]

    def _rates(self) -> None:
        """Rates by run and kind (GPU, NIC and switch links), and by leaf."""
        self.run_rate = np.full((len(self.nodes), len(KINDS)), np.inf)
        for i, node in enumerate(self.nodes):
            link = node.scale_up
            pcie = link.pcie_bytes_per_s if link.kind == "pairs" else link.bytes_per_s
            self.run_rate[i, [GPU_OUT, GPU_IN]] = link.bytes_per_s
            self.run_rate[i, [PCIE_OUT, PCIE_IN]] = pcie
            self.run_rate[i, [HOST_OUT, HOST_IN]] = node.host_link_bytes_per_s
            self.run_rate[i, [NIC_OUT, NIC_IN]] = node.nics.bytes_per_s
            self.run_rate[i, [SWITCH_OUT, SWITCH_IN]] = link.cross_bytes_per_s or np.inf
        runs = self.cluster.run_of_slot
        self.leaves_limit = self.cluster.fabric.oversubscription > 1
        full = np.array([node.nics.count * node.nics.bytes_per_s for node in self.nodes])[runs]
        leaf = self.cluster.leaf_of_slot
        best = np.zeros(int(leaf[-1]) + 1)
        np.maximum.at(best, leaf, full)
        self.leaf_rate = np.bincount(leaf) * best / self.cluster.fabric.oversubscription

        def feature(of: list[float]) -> Floats:
            return np.array(of, dtype=np.float64)[self.run]

        self.scale_up_latency_s = feature([node.scale_up.latency_s for node in self.nodes])
        self.nic_latency_s = feature([node.nics.latency_s for node in self.nodes])
        self.on_pcie = feature([node.scale_up.kind in ("pcie", "pairs") for node in self.nodes]) > 0
        self.in_pairs = feature([node.scale_up.kind == "pairs" for node in self.nodes]) > 0
        self.pair = np.where(self.in_pairs, self.place - self.gpu % 2, self.place)
        self.through_host = feature([not node.scale_up.peer_to_peer for node in self.nodes]) > 0
        self.crosses_switch = feature([node.scale_up.cross_bytes_per_s for node in self.nodes]) > 0
        several = bool((self.domain != self.domain[0]).any())
        self.reaches_nic_across = self.crosses_switch & (self.switch != self.nic_switch) & several

    def rate(self, kind: int, unit: Ints) -> Floats:
        """Bytes/s of links of one kind."""
        if kind in (LEAF_UP, LEAF_DOWN):
            return np.asarray(self.leaf_rate[unit], dtype=np.float64)
        return np.asarray(self.run_rate[self.cluster.run_of_slot[unit // self.per_slot(kind)], kind], dtype=np.float64)

    def per_slot(self, kind: int) -> int:
        """Units of this kind in one slot (leaves: not in a slot)."""
        if kind in OF_GPU:
            return self.gpu_places
        return self.nic_places if kind in (NIC_OUT, NIC_IN) else self.switches

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
        steps = (
            (GPU_OUT, ~network & ~pcie, self.place[source]),
            (PCIE_OUT, pcie | out_bus, self.place[source]),
            (HOST_OUT, host, self.place[source]),
            (SWITCH_OUT, cross | out_cross, self.switch[source]),
            (SWITCH_IN, out_cross, self.nic_switch[source]),
            (NIC_OUT, network, self.nic[source]),
            (LEAF_UP, up, self.leaf[source]),
            (SWITCH_IN, cross, self.switch[to]),
            (LEAF_DOWN, up, self.leaf[to]),
            (NIC_IN, network, self.nic[to]),
            (SWITCH_OUT, in_cross, self.nic_switch[to]),
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
        levels = [self.pair, self.switch, self.slot, self.domain, self.leaf]
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


def _under_switch(node: Node) -> int:
    """GPUs under one PCIe switch or socket."""
    return node.scale_up.gpus_per_switch or max(node.gpus, 1)


def _switches(node: Node) -> int:
    return max(1, -(-node.gpus // _under_switch(node)))
