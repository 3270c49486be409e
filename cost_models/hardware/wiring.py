"""A cluster read once into arrays: where each GPU sits, which links its bytes cross, and what those links carry.

    spine > leaf > scale-up domain > slot > socket > PCIe switch > pair > GPU       card = NIC of a slot, on a switch

Every unit has a number that is unique in the cluster: place = slot x gpu_places + GPU, and so on. `Wiring.seats` turns
arrays of slots and GPUs, of any shape, into arrays of units of the same shape. `LinkRates` says what a link carries:
its data sheet's rate (`line`), what large messages reach of it (`reached`), or what a profile measured between nodes
(`measured`). Rates are bytes/s one way, latencies seconds. A leaf's uplinks are sized for its best node, with all its
cards: a broken card takes nothing from its switch; a spine's for all uplinks of its leaves. Where a fabric is
`rail_only`, each leaf and spine stands once for every rail. Left out: links inside a spine or the core.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.links import LINKS, STAGED_SHARES
from cost_models.hardware.networks import FAST_CARD_BYTES_PER_S, NETWORKS
from cost_models.hardware.node import Node

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

KINDS = (
    "gpu out", "gpu in", "pcie out", "pcie in", "host out", "host in",
    "nic out", "nic in", "switch out", "switch in", "socket out", "socket in", "leaf up", "leaf down",
    "spine up", "spine down",
)  # fmt: skip
GPU_OUT, GPU_IN, PCIE_OUT, PCIE_IN, HOST_OUT, HOST_IN, NIC_OUT, NIC_IN = range(8)
SWITCH_OUT, SWITCH_IN, SOCKET_OUT, SOCKET_IN, LEAF_UP, LEAF_DOWN, SPINE_UP, SPINE_DOWN = range(8, len(KINDS))
TRUNKS = frozenset((LEAF_UP, LEAF_DOWN, SPINE_UP, SPINE_DOWN))
"""Links of switches that are in no slot."""
OF_GPU = frozenset((GPU_OUT, GPU_IN, PCIE_OUT, PCIE_IN, HOST_OUT, HOST_IN))
PCIE_SHARE = 0.75
"""Share of a PCIe link's line rate that NCCL reaches between pairs: 24 of 32 GB/s in NCCL's own model (12 of PCIe 3's
16, src/graph/topo.h); rings over two bridged pairs reach 23.7 GB/s on A100 and 48.8 of PCIe 5's 64 on H100 (Vidur)."""


class Wiring:
    """
    >>> wiring = Wiring(Cluster.load("dgx-a100", nodes=2))
    >>> seats = wiring.seats(np.array([0, 1]), np.array([2, 7]))
    >>> seats.place.tolist(), seats.nic.tolist(), seats.domain.tolist()
    ([2, 15], [2, 15], [0, 1])
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes = [run.node for run in cluster.runs]
        self.gpu_places = max(1, *(node.gpus for node in self.nodes))
        self.nic_places = max(1, *(node.nics.count for node in self.nodes))
        self.switch_places = max(max(1, -(-node.gpus // _under_switch(node))) for node in self.nodes)  # sockets: fewer
        self.switch_gpus = np.array([_under_switch(node) for node in self.nodes])  # (runs,)
        self.socket_gpus = np.array([_under_socket(node) for node in self.nodes])  # (runs,)
        self.nic_of = np.zeros((len(self.nodes), self.gpu_places), dtype=np.int64)  # (runs, GPUs)
        self.gpu_of_nic = np.zeros((len(self.nodes), self.nic_places), dtype=np.int64)  # the first: on its switch
        for run, node in enumerate(self.nodes):
            self.nic_of[run, : node.gpus] = np.maximum(node.nic_of_gpu(node.gpus), 0)
            first = -(-np.arange(node.nics.count) * node.gpus // max(node.nics.count, 1))
            self.gpu_of_nic[run, : node.nics.count] = np.minimum(first, max(node.gpus - 1, 0))
        self.card_share = np.ones((len(self.nodes), self.nic_places))
        self.bridged = np.ones((len(self.nodes), self.gpu_places), dtype=bool)
        for run, node in enumerate(self.nodes):
            self.card_share[run, : len(node.nic_shares)] = node.nic_shares
            for pair in node.missing_bridges:
                self.bridged[run, 2 * pair : 2 * pair + 2] = False
        self.rail_only = cluster.fabric.rail_only
        self.rails = self.nic_places if self.rail_only else 1
        self.on_pcie = np.array([node.scale_up.kind in ("pcie", "pairs") for node in self.nodes])
        self.in_pairs = np.array([node.scale_up.kind == "pairs" for node in self.nodes])
        self.through_host = np.array([not node.scale_up.peer_to_peer for node in self.nodes])
        self.joined_by_switch = np.array([node.scale_up.direct_under_switch for node in self.nodes])
        self.crosses_switch = np.array([node.scale_up.cross_bytes_per_s > 0 for node in self.nodes]) & self.on_pcie
        self.crosses_socket = np.array([node.scale_up.socket_bytes_per_s > 0 for node in self.nodes]) & self.on_pcie

    def seats(self, slot: Ints, gpu: Ints) -> Seats:
        """Where ranks on these GPUs sit."""
        return Seats(wiring=self, slot=slot, gpu=gpu)

    def per_slot(self, kind: int) -> int:
        """Units of this kind of link in one slot (those of leaves and spines are in none)."""
        if kind in OF_GPU:
            return self.gpu_places
        return self.nic_places if kind in (NIC_OUT, NIC_IN) else self.switch_places

    @cached_property
    def domain_gpus(self) -> Ints:
        """Free GPUs of each scale-up domain."""
        return np.bincount(self.cluster.domain_of_slot, weights=self.cluster.gpus_of_slot).astype(np.int64)

    @cached_property
    def has_rail(self) -> NDArray[np.bool_]:
        """Whether a run's nodes have a card of this number; (runs, cards)."""
        found = np.zeros((len(self.nodes), self.nic_places), dtype=bool)
        for run, node in enumerate(self.nodes):
            found[run, : node.nics.count] = True
            found[run, list(node.missing_nics)] = False
        return found

    @cached_property
    def relays(self) -> NDArray[np.bool_]:
        """Whether a GPU sits at this card that passes others' bytes on over its scale-up link; (runs, cards)."""
        here = np.take_along_axis(self.nic_of, self.gpu_of_nic, axis=1) == np.arange(self.nic_places)
        return np.asarray(here & self.has_rail & ~self.on_pcie[:, None])

    def rail(self, run: Ints, card: Ints, to_run: Ints, to_card: Ints) -> Ints:
        """The rail of a rail-only fabric that bytes take: the receiver's, else the sender's, else the first of both."""
        found = np.where(self.has_rail[run, to_card], to_card, card)
        neither = ~self.has_rail[run, found] | ~self.has_rail[to_run, found]
        if neither.any():
            both = self.has_rail[run[neither]] & self.has_rail[to_run[neither]]
            found[neither] = both.argmax(axis=-1)
        return found

    @cached_property
    def line(self) -> LinkRates:
        """Every link at its data sheet's rate."""
        scale_up = np.array([node.scale_up.bytes_per_s for node in self.nodes])
        return self.rates("line", scale_up, np.array([node.nics.bytes_per_s for node in self.nodes]))

    def rates(
        self,
        name: RatesName,
        scale_up: Floats,
        nic: Floats,
        nic_latency_s: float | None = None,
        message_s: float = 0.0,
    ) -> LinkRates:
        """Rates of links whose GPUs and cards carry so much, by run; other links at what they reach, or the line's."""
        links = [node.scale_up for node in self.nodes]
        of_run = np.full((len(links), len(KINDS)), np.inf)
        for run, link in enumerate(links):
            pcie = scale_up[run]
            if link.kind == "pairs":
                pcie = link.pcie_bytes_per_s * (1.0 if name == "line" else PCIE_SHARE * link.message_share)
            of_run[run, [PCIE_OUT, PCIE_IN]] = pcie
            of_run[run, [SWITCH_OUT, SWITCH_IN]] = link.cross_bytes_per_s or np.inf
            of_run[run, [SOCKET_OUT, SOCKET_IN]] = link.socket_bytes_per_s or np.inf
        of_run[:, [GPU_OUT, GPU_IN]] = scale_up[:, None]
        of_run[:, [HOST_OUT, HOST_IN]] = np.array([node.host_link_bytes_per_s for node in self.nodes])[:, None]
        of_run[:, [NIC_OUT, NIC_IN]] = nic[:, None]
        latency = [node.nics.latency_s if nic_latency_s is None else nic_latency_s for node in self.nodes]
        return LinkRates(name=name, wiring=self, of_run=of_run, nic_latency_s=np.array(latency), message_s=message_s)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seats:
    """The units that ranks belong to; every array has the shape of `slot` and `gpu`."""

    wiring: Wiring
    slot: Ints
    gpu: Ints

    @cached_property
    def run(self) -> Ints:
        """Run of equal nodes."""
        return self.wiring.cluster.run_of_slot[self.slot]

    @cached_property
    def domain(self) -> Ints:
        return self.wiring.cluster.domain_of_slot[self.slot]

    @cached_property
    def leaf(self) -> Ints:
        return self.wiring.cluster.leaf_of_slot[self.slot]

    @cached_property
    def spine(self) -> Ints:
        return self.wiring.cluster.spine_of_slot[self.slot]

    @cached_property
    def place(self) -> Ints:
        return self.slot * self.wiring.gpu_places + self.gpu

    @cached_property
    def pair(self) -> Ints:
        """The first place of a bridged pair; elsewhere the GPU's own."""
        return np.asarray(np.where(self.bridged, self.place - self.gpu % 2, self.place))

    @cached_property
    def bridged(self) -> NDArray[np.bool_]:
        """Whether a bridge joins the GPU to its pair's other one."""
        return np.asarray(self.wiring.in_pairs[self.run] & self.wiring.bridged[self.run, self.gpu])

    @cached_property
    def card(self) -> Ints:
        """The card's number in its slot: its rail."""
        return np.asarray(self.wiring.nic_of[self.run, self.gpu])

    @cached_property
    def nic(self) -> Ints:
        return np.asarray(self.slot * self.wiring.nic_places + self.card)

    @cached_property
    def switch(self) -> Ints:
        return np.asarray(self.slot * self.wiring.switch_places + self.gpu // self.wiring.switch_gpus[self.run])

    @cached_property
    def socket(self) -> Ints:
        """Numbered as switches are: a slot has as many places for either."""
        return np.asarray(self.slot * self.wiring.switch_places + self.gpu // self.wiring.socket_gpus[self.run])

    @cached_property
    def at_nic(self) -> Seats:
        """The seats of the first GPU of each rank's card: the card hangs on their switch and socket."""
        return self.at_rail(self.card)

    def at_rail(self, card: Ints) -> Seats:
        """The seats of the first GPU of card `card` of each rank's slot."""
        return Seats(wiring=self.wiring, slot=self.slot, gpu=self.wiring.gpu_of_nic[self.run, card])

    @property
    def nic_switch(self) -> Ints:
        """The PCIe switch that the rank's card hangs on."""
        return self.at_nic.switch


RatesName = Literal["line", "reached", "measured"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkRates:
    """What every link of a wiring carries, and how long cards need before the first byte."""

    name: RatesName
    wiring: Wiring
    of_run: Floats  # (runs, KINDS), infinite where there is no such link; leaves are in `of_leaf`
    nic_latency_s: Floats  # (runs,)
    message_s: float = 0.0  # of a rank's processor, for each message beyond an all-to-all's first: sockets (`reached`)

    @cached_property
    def ring_share(self) -> Floats:
        """Of what a card reaches, what one ring or send gets; by run. One queue pair fills any card that is slower than
        what it gets of the slowest fast one, and of faster cards as much as of that, or its share."""
        shares = [(NETWORKS[node.nics.kind].ring_share, node.nics.bytes_per_s) for node in self.wiring.nodes]
        found = [max(share, min(1.0, share * FAST_CARD_BYTES_PER_S / rate)) for share, rate in shares]
        return np.where(self.has_protocols, found, 1.0)

    @cached_property
    def all_to_all_share(self) -> Floats:
        """The same of an all-to-all; by run."""
        shares = [NETWORKS[node.nics.kind].all_to_all_share for node in self.wiring.nodes]
        return np.where(self.has_protocols, shares, 1.0)

    @cached_property
    def card_line(self) -> Floats:
        """Line rate of a card; by run."""
        return np.array([node.nics.bytes_per_s for node in self.wiring.nodes])

    @cached_property
    def channel(self) -> Floats:
        """Of sends on one of NCCL's channels; by run."""
        return np.array([node.nics.channel_bytes_per_s for node in self.wiring.nodes])

    @cached_property
    def doubled(self) -> Bools:
        """Whether GPUs are such as NCCL doubles few channels for: Hopper and later on NVSwitch; by run."""
        return np.array([LINKS[node.scale_up.link].sums_in_switch for node in self.wiring.nodes])

    def staged_share(self, pattern: str) -> Floats:
        """Of what a switch or socket passes on through host memory, what a pattern of traffic gets; by run."""
        counts = self.wiring.through_host & (self.name != "line")
        return np.where(counts, STAGED_SHARES[pattern], 1.0)

    @property
    def has_protocols(self) -> bool:
        """Whether NCCL's protocols add to the cards' latency: not to that of a data sheet or a profile."""
        return self.name == "reached"

    @cached_property
    def slower(self) -> float:
        """`Network.slower`: which protocols run is a setting of the whole job, which one network may need."""
        return min(NETWORKS[node.nics.kind].slower for node in self.wiring.nodes)

    @cached_property
    def scale_up_latency_s(self) -> Floats:
        return np.array([node.scale_up.latency_s for node in self.wiring.nodes])

    @cached_property
    def tree_bytes_per_s(self) -> Floats:
        """Of an all-reduce's buffer, what a tree inside the domain passes on; by run."""
        return np.array([LINKS[node.scale_up.link].tree_bytes_per_s for node in self.wiring.nodes])

    def cards(self, seats: Seats) -> Floats:
        """Of the card that each of these ranks sends through."""
        return np.asarray(self.of_run[seats.run, NIC_OUT] * self.wiring.card_share[seats.run, seats.card])

    @cached_property
    def _uplinks(self) -> tuple[Floats, Floats]:
        """(a leaf's uplinks as they were sized, what is left of them), by leaf: as many of one card's rate as its nodes
        have cards, over the oversubscription, without the dead ones. Of unlike nodes the one whose cards make most."""
        cluster = self.wiring.cluster
        leaves, card = cluster.leaf_of_slot, self.of_run[cluster.run_of_slot, NIC_OUT]
        cards = np.array([node.nics.count for node in self.wiring.nodes])[cluster.run_of_slot]
        uplinks = cards * np.bincount(leaves)[leaves] / cluster.fabric.oversubscription
        dead = np.bincount(cluster.fabric.missing_uplinks, minlength=int(leaves[-1]) + 1)[leaves]
        sized, left = np.zeros(int(leaves[-1]) + 1), np.zeros(int(leaves[-1]) + 1)
        np.maximum.at(sized, leaves, uplinks * card)
        np.maximum.at(left, leaves, (uplinks - dead) * card)
        return sized, left

    @cached_property
    def of_leaf(self) -> Floats:
        """Uplinks of each leaf without the dead ones; in a rail-only fabric of each (leaf, rail)."""
        return np.repeat(self._uplinks[1] / self.wiring.rails, self.wiring.rails)

    @cached_property
    def of_spine(self) -> Floats:
        """Uplinks of each spine to the core: as many as its leaves have, over its oversubscription; as `of_leaf`."""
        cluster = self.wiring.cluster
        first = np.unique(cluster.leaf_of_slot, return_index=True)[1]
        sized = (
            np.bincount(cluster.spine_of_slot[first], weights=self._uplinks[0]) / cluster.fabric.spine_oversubscription
        )
        return np.repeat(sized / self.wiring.rails, self.wiring.rails)

    def of(self, kind: int, unit: Ints) -> Floats:
        """Bytes/s of links of one kind."""
        if kind in TRUNKS:
            trunk = self.of_leaf if kind in (LEAF_UP, LEAF_DOWN) else self.of_spine
            return np.asarray(trunk[unit], dtype=np.float64)
        slot, inside = np.divmod(unit, self.wiring.per_slot(kind))
        run = self.wiring.cluster.run_of_slot[slot]
        rate = self.of_run[run, kind]
        if kind in (NIC_OUT, NIC_IN):
            rate = rate * self.wiring.card_share[run, inside]
        return np.asarray(rate, dtype=np.float64)


def _under_switch(node: Node) -> int:
    """GPUs under one PCIe switch or socket."""
    return node.scale_up.gpus_per_switch or max(node.gpus, 1)


def _under_socket(node: Node) -> int:
    """GPUs of one socket, where switches and sockets are two tiers."""
    return node.scale_up.gpus_per_socket or max(node.gpus, 1)
