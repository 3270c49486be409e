"""What the groups of an axis cross, read off a placement: the few numbers that price any collective over them.

    inside a scale-up domain          measured curve of the link, by group size and bytes
    out of the domain                 bytes x seconds per byte + latency, the most loaded card or leaf uplink counting

A phase costs the larger of the two (they run at once): monotone and linear in bytes. `loads.py` counts seconds per byte
of one rank's buffer on the most loaded card or uplink.

A ring of P ranks waits for P - 1 steps, one hop each, however small the buffer: at 1,000 ranks that is milliseconds.
An all-reduce may take trees instead, along the domain's ranks and then log2(domains) hops deep (NCCL: src/graph/
tuning.cc); they carry as many bytes, so the shorter wait counts. But over two domains: there a tree sends the sums of a
domain once each way, B bytes where rings of P ranks send 2 B (P - 1) / P. On 2 nodes 134 against 268 ms
(NVIDIA/nccl-tests issue 22); 2 x 8 H100 with four cards of 400 Gbit/s reach 189 of 200 GB/s so, rings at most 104.
Protocols of larger messages add to both (`protocols.py`). Left out: trees that are cut from three domains on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct

from cost_models.curves.samples import Sample
from cost_models.hardware.node import Node, ScaleUp
from cost_models.hardware.wiring import LinkRates, RatesName, Wiring
from cost_models.number import Number, distinct, larger, pick, smaller, somewhere
from cost_models.profile import network
from cost_models.program import Op
from cost_models.strategy import Axis
from cost_models.timing.collectives import Collectives
from cost_models.timing.protocols import PEER_S, START_S, slower_s
from cost_models.timing.slowest import Memo

LARGE_BYTES = 2**30


def domain_link(scale_up: ScaleUp, samples: Sequence[Sample] = ()) -> Collectives:
    """The measured curves of a domain's link, scaled to the rate that this cluster's link has."""
    return Collectives.of(scale_up.link, samples, scale_up.reached_bytes_per_s)


def reached(wiring: Wiring, samples: tuple[Sample, ...] = ()) -> LinkRates:
    """What large messages really reach on every link; between nodes what the samples measured, if they did."""
    scale_up, measured = [], network(samples)
    for node in wiring.nodes:
        link = domain_link(node.scale_up, samples)
        ranks = 2 if link.link.pair_bytes_per_s is None else max(node.gpus, 2)  # a mesh: all neighbours at once
        scale_up.append(LARGE_BYTES / float(link.intra_s("all_to_all", ranks, float(LARGE_BYTES))))
    nic = np.array([measured[0] if measured else node.nics.reached_bytes_per_s for node in wiring.nodes])
    latency_s = measured[1] if measured else None
    name: RatesName = "measured" if measured else "reached"
    return wiring.rates(name, np.array(scale_up), nic, latency_s, _message_s(wiring, samples))


def _message_s(wiring: Wiring, samples: tuple[Sample, ...]) -> float:
    """Seconds that a processor takes to send a message and to receive one, whatever their size: over sockets a rank
    starts one with each peer, one after another. What a profile measured of its smallest inside a node, where no wire
    is waited for; 0 where it measured no network, and for GPUs, whose network cards and kernels send."""
    if any(node.device.architecture != "cpu" for node in wiring.nodes) or network(samples) is None:
        return 0.0
    return min((one.median_s for one in samples if one.op == "send_recv" and one.path != "network"), default=0.0)


HOST_MEMORY_BYTES_PER_S = 150e9
"""That a CPU's update of weights reaches on a node of two sockets. Estimate: half of 16 channels of DDR4-2400."""


CHANNELS_BYTES_PER_S = 184e9
"""That leaves a domain where as many of NCCL's channels are busy, each on an SM of its own, as inside a domain of
NVSwitches: 16 ("NVLS should not need more than 16 channels", NVIDIA/nccl issue 1041). They are those of the eight cards
of 200 Gbit/s of a DGX A100, two channels a card (issue 438), which reach 0.92 of that."""


def host_rates(nodes: Iterable[Node]) -> tuple[float, float]:
    """(a GPU's link to host memory, its share of what the CPU's update reaches), bytes/s, where both are least."""
    there = [node for node in nodes if node.gpus]
    return min(node.host_link_bytes_per_s for node in there), HOST_MEMORY_BYTES_PER_S / max(n.gpus for n in there)


class Path(Struct, frozen=True, kw_only=True):
    """One axis: group size, members that share a domain, and the price of what leaves it. Numbers or arrays."""

    ranks: Number
    local: Number  # the most members of a group in one domain: they talk over its link
    all_to_all_s_per_byte: Number = 0.0
    send_s_per_byte: Number = 0.0
    gather_s_per_byte: Number = 0.0
    all_reduce_s_per_byte: Number = 0.0
    latency_s: Number = 0.0  # of one message out of the domain; 0 if nothing leaves
    protocols: Number = 0.0  # 1 where NCCL's protocols add to that (`protocols.py`); 0 where a profile measured it
    message_s: Number = 0.0  # of a rank's processor, for each peer beyond an all-to-all's first (`LinkRates`)
    slower: Number = 0.0  # how much longer larger messages wait, over what they do where all protocols run
    hops_out: Number = 0  # domains of a group: a ring leaves each once; 0 if it is inside one
    ring_latency_s: Number = 0.0  # of all hops of that ring, inside domains and between them
    tree_latency_s: Number = 0.0  # of the hops of one tree from its leaves to its root
    chain_latency_s: Number = 0.0  # of a broadcast that every rank of the group passes on
    bus_all_to_all_s_per_byte: Number = 0.0  # between switches, sockets or bridged pairs of a node (`loads.py`)
    bus_send_s_per_byte: Number = 0.0
    bus_gather_s_per_byte: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The way of each axis through the cluster, and the seconds of what goes over it."""

    axes: Mapping[Axis, Path] = field(default_factory=dict)
    inside: Collectives
    host_bytes_per_s: float
    network_source: str
    host_memory_bytes_per_s: float  # a GPU's share of its node's: what the CPU's update reaches
    pace: Number = 1.0  # seconds of the slowest board over the median one's
    copies_share: bool = False  # whether copies to host memory take the links of collectives inside a node
    memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    taken: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    passed: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)  # seconds of `program.Passed`

    def exchange_s(self, axis: Axis, op: Op, size: Number) -> Number:
        """Seconds of one collective over every group of `axis` at once; `size` as in `program.Exchange`."""
        seconds: Number = self.memo.recall(self._exchange_s, (axis, op, size))
        return seconds

    def _exchange_s(self, axis: Axis, op: Op, size: Number) -> Number:
        path = self.axes[axis]
        bus = {"all_to_all": path.bus_all_to_all_s_per_byte, "send": path.bus_send_s_per_byte}.get(op)
        if bus is None:
            bus = path.bus_gather_s_per_byte * (2 if op == "all_reduce" else 1)
        inside = larger(self.inside_s(op, path, size), size * bus)
        crossing = crossing_s(op, path, size)
        either = larger(inside, pick(path.hops_out > 0, crossing, 0.0))
        either = either + pick(path.hops_out > 0, grown_s(op, path, size), 0.0)
        seconds: Number = pick(path.ranks > 1, either, 0.0)
        return seconds

    def dispatch_s(self, axis: Axis, size: Number, copies: int, beside: Number = 0) -> Number:
        """An all-to-all of `copies` of each value to ranks chosen at random, or to so many `beside` each other. A value
        goes once to each domain with some of them and from there once to each of those ranks, both at the same time
        (DeepEP, HybridEP)."""
        path, domains = self.axes[axis], larger(self.axes[axis].hops_out, 1)
        to_ranks, to_domains = met(path.ranks, copies), met(domains, copies)
        if somewhere(beside > 0):
            to_ranks, to_domains = beside / copies, larger(1.0, beside * domains / path.ranks) / copies
        inside = self.inside_s("all_to_all", path, size * to_ranks)
        left = size * to_domains
        crossing = crossing_s("all_to_all", path, left)
        either = larger(inside, pick(path.hops_out > 0, crossing, 0.0))
        either = either + pick(path.hops_out > 0, grown_s("all_to_all", path, left), 0.0)
        seconds: Number = pick(path.ranks > 1, either, 0.0)
        return seconds

    def inside_s(self, op: Op, path: Path, size: Number) -> Number:
        """The part between members of one domain, by the measured curve of its link and the group's size there."""
        local = path.local
        if op == "all_to_all":
            wire = size * (local - 1) / path.ranks
        elif op == "send":
            wire = size * 1.0
        else:
            wire = size * (local - 1) / local * (2 if op == "all_reduce" else 1)
        name = "send_recv" if op == "send" else op
        if not isinstance(local, np.ndarray):
            return self.inside.intra_s(name, int(local), wire)
        seconds = np.zeros(np.broadcast(local, wire).shape)
        several = distinct(local[local > 1]).tolist()
        wire, local = np.broadcast_to(wire, seconds.shape), np.broadcast_to(local, seconds.shape)
        for members in several:
            these = local == members
            seconds[these] = self.inside.intra_s(name, members, wire[these])
        return seconds

    def outward_s(self, axis: Axis, size: Number) -> Number:
        """Every rank at once sends `size` bytes to its counterpart in the next domain; 0 where nothing leaves one.

        An all-to-all of a buffer of one byte sends (ranks - local) / ranks of it out, over the same NICs and leaves.
        """
        path = self.axes[axis]
        away = larger(path.ranks - path.local, 1)
        sent_s = size * path.all_to_all_s_per_byte * path.ranks / away + start_s("send", path)
        seconds: Number = pick(path.hops_out > 0, sent_s, 0.0)
        return seconds

    def taken_s(self, axis: Axis, op: Op, size: Number) -> Number:
        """Seconds that a collective would take from computation as much as one inside a domain does."""
        seconds: Number = self.taken.recall(self._taken_s, (axis, op, size))
        return seconds

    def _taken_s(self, axis: Axis, op: Op, size: Number) -> Number:
        seconds, path = self.exchange_s(axis, op, size), self.axes[axis]
        busy = carried_s(op, path, size)
        if self.inside.many_channels:  # over bridged pairs PCIe may decide
            busy = larger(busy, self.inside_s(op, path, size))
        inside = smaller(seconds, busy)
        return pick(self.crosses(axis), smaller(seconds, busy_s(op, path, size)), inside)

    def crosses(self, axis: Axis) -> Number:
        """Whether anything of this axis leaves its scale-up domain (and so shares the NICs)."""
        return self.axes[axis].hops_out > 0

    def shares_links(self, axis: Axis, other: Axis) -> Number:
        """Whether what both axes send goes over the same links: both leave their domains, or neither does.

        Left out: inside a PCIe box one axis may stay under a switch while the other waits for the way between sockets;
        they share a GPU's own link alone. As both are counted one after the other, a step of 16,384 tokens is up to 17%
        dearer than simulated (8 L40S, Ulysses 2 x tensor 2). What an exchange that does share loses to a gather under
        way is not counted: others are up to 10% cheaper. Both need seconds by link, here and in the planner's bounds.
        """
        return self.crosses(axis) == self.crosses(other)


def met(places: Number, copies: int) -> Number:
    """Of `copies` that choose among so many places at random, the share that is left of one to each place chosen.

    >>> met(1, 8), met(4, 1), round(met(4, 8), 3)
    (0.125, 1.0, 0.45)
    """
    return places * (1.0 - (1.0 - 1.0 / places) ** copies) / copies


def busy_s(op: Op, path: Path, size: Number) -> Number:
    """Seconds of all channels for what leaves a domain: while they wait for hops and protocols, all are taken."""
    return carried_s(op, path, size) + start_s(op, path) + grown_s(op, path, size)


def carried_s(op: Op, path: Path, size: Number) -> Number:
    """Seconds in which all channels would carry so much: slower cards, uplinks and PCIe keep fewer of them busy."""
    return size * (path.ranks - 1) / path.ranks * (2 if op == "all_reduce" else 1) / CHANNELS_BYTES_PER_S


def crossing_s(op: Op, path: Path, size: Number) -> Number:
    """The part that leaves the domain, over cards and leaf uplinks, by the protocols of small messages."""
    return _sent_s(op, path, size) + start_s(op, path)


def grown_s(op: Op, path: Path, size: Number) -> Number:
    """What the protocols of larger messages add to that, also where the links inside domains decide."""
    ring_s = (path.ranks - 1) / path.ranks * path.ring_latency_s
    sent_s, wait_s = _sent_s(op, path, size), start_s(op, path)
    return path.protocols * slower_s(op, wait_s, sent_s, ring_s, path.hops_out, path.slower)


def _sent_s(op: Op, path: Path, size: Number) -> Number:
    per_byte = {
        "all_to_all": path.all_to_all_s_per_byte,
        "send": path.send_s_per_byte,
        "all_reduce": path.all_reduce_s_per_byte,
    }
    return size * per_byte.get(op, path.gather_s_per_byte)


def start_s(op: Op, path: Path) -> Number:
    """Latency of the hops that a collective waits for, one after the other."""
    if op in ("all_to_all", "send"):
        peers = path.ranks - 1 if op == "all_to_all" else 0
        further_s = path.message_s * larger(peers - 1, 0)
        return path.latency_s + path.protocols * (START_S + PEER_S * peers) + further_s
    wait: Number = (path.ranks - 1) / path.ranks * path.ring_latency_s
    return 2 * smaller(wait, path.tree_latency_s) if op == "all_reduce" else wait
