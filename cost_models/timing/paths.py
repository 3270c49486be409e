"""What the groups of an axis cross, read off a placement: the few numbers that price any collective over them.

    inside a scale-up domain          measured curve of the link, by group size and bytes
    out of the domain                 bytes x cross_s_per_byte + latency, the most loaded NIC or leaf uplink counting

A phase costs the larger of the two (they run at once): monotone and linear in bytes. `cross_s_per_byte` sums what all
ranks of a NIC (or leaf) send at the same time, per byte of one rank's buffer:

    all_to_all   a rank with b of P members in its domain sends (P - b) / P of its buffer out
    send         1 if the next member is in another domain
    gather       rings through the group: each domain takes in (P - 1) / P of the full buffer over its ranks' NICs

A ring of P ranks waits for P - 1 steps, one hop each, however small the buffer: at 1,000 ranks that is milliseconds.
An all-reduce may take trees instead, along the domain's ranks and then log2(domains) hops deep (NCCL: src/graph/
tuning.cc); they carry as many bytes, so the shorter wait counts. But over two domains: there a tree sends the sums of a
domain once each way, B bytes where rings of P ranks send 2 B (P - 1) / P. On 2 nodes 134 against 268 ms
(NVIDIA/nccl-tests issue 22); 2 x 8 H100 with four cards of 400 Gbit/s reach 189 of 200 GB/s so, rings at most 104.
Left out: protocols that trade rate for latency, trees that are cut from three domains on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.curves.samples import Sample
from cost_models.either import larger, pick, smaller
from cost_models.hardware.buses import Buses
from cost_models.hardware.cluster import Cluster, Node, ScaleUp
from cost_models.hardware.placement import Placement
from cost_models.hardware.wiring import LinkRates, Wiring
from cost_models.profile import network
from cost_models.program import Op
from cost_models.strategy import Strategy, rank_groups
from cost_models.timing.collectives import Collectives

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
    return wiring.rates("measured" if measured else "reached", np.array(scale_up), nic, latency_s)


HOST_MEMORY_BYTES_PER_S = 150e9
"""That a CPU's update of weights reaches on a node of two sockets. Estimate: half of 16 channels of DDR4-2400."""


def host_rates(nodes: Iterable[Node]) -> tuple[float, float]:
    """(a GPU's link to host memory, its share of what the CPU's update reaches), bytes/s, where both are least."""
    there = [node for node in nodes if node.gpus]
    return min(node.host_link_bytes_per_s for node in there), HOST_MEMORY_BYTES_PER_S / max(n.gpus for n in there)


AXIS_PATTERNS = {
    "ulysses": ("all_to_all",),
    "ring": ("send", "gather", "all_to_all"),
    "context": ("all_to_all", "gather"),
    "shard": ("gather",),
    "replicate": ("gather",),
    "tensor": ("gather",),
    "pipeline": ("send",),
}
"""The axes that are priced, with the patterns that a step sends over them; the others of a path stay unread (nan)."""
EXPERT_PATTERNS = {"expert": ("all_to_all",), "expert_shard": ("gather",), "expert_replicate": ("gather",)}
"""Axes that are priced beside them where experts are shared."""


def priced_patterns(strategy: Strategy) -> dict[str, tuple[str, ...]]:
    """Every axis that a step of `strategy` sends over, with its patterns."""
    return AXIS_PATTERNS if strategy.expert == 1 else {**AXIS_PATTERNS, **EXPERT_PATTERNS}


@dataclass(frozen=True, kw_only=True)
class Path:
    """One axis: group size, members that share a domain, and the price of what leaves it. Numbers or arrays."""

    ranks: Any
    local: Any  # the most members of a group in one domain: they talk over its link
    all_to_all_s_per_byte: Any = 0.0
    send_s_per_byte: Any = 0.0
    gather_s_per_byte: Any = 0.0
    latency_s: Any = 0.0  # of one message out of the domain; 0 if nothing leaves
    hops_out: Any = 0  # domains that a ring through the group visits
    ring_latency_s: Any = 0.0  # of all hops of that ring, inside domains and between them
    tree_latency_s: Any = 0.0  # of the hops of one tree from its leaves to its root
    bus_all_to_all_s_per_byte: Any = 0.0  # between switches, sockets or bridged pairs of a node (`buses.py`)
    bus_send_s_per_byte: Any = 0.0
    bus_gather_s_per_byte: Any = 0.0


@dataclass(frozen=True, kw_only=True)
class Paths:
    axes: dict[str, Path] = field(default_factory=dict)
    inside: Collectives
    host_bytes_per_s: float
    network_source: str
    host_memory_bytes_per_s: float  # a GPU's share of its node's: what the CPU's update reaches

    def exchange_s(self, axis: str, op: Op, size: Any) -> Any:
        """Seconds of one collective over every group of `axis` at once; `size` as in `program.Exchange`."""
        path = self.axes[axis]
        bus = {"all_to_all": path.bus_all_to_all_s_per_byte, "send": path.bus_send_s_per_byte}.get(op)
        if bus is None:
            bus = path.bus_gather_s_per_byte * (2 if op == "all_reduce" else 1)
        inside = larger(self.inside_s(op, path, size), size * bus)
        crossing = crossing_s(op, path, size, self.inside.link.tree_bytes_per_s)
        seconds = larger(inside, pick(path.hops_out > 0, crossing, 0.0))
        return pick(path.ranks > 1, seconds, 0.0)

    def inside_s(self, op: Op, path: Path, size: Any) -> Any:
        """The part between members of one domain, by the measured curve of its link and the group's size there."""
        local = path.local
        if op == "all_to_all":
            wire = size * (local - 1) / path.ranks
        elif op == "send":
            wire = size * 1.0
        else:
            wire = size * (local - 1) / local * (2 if op == "all_reduce" else 1)
        name = "send_recv" if op == "send" else op
        if np.ndim(local) == 0:
            return self.inside.intra_s(name, int(local), wire)
        seconds = np.zeros(np.broadcast(local, wire).shape)
        wire, local = np.broadcast_to(wire, seconds.shape), np.broadcast_to(local, seconds.shape)
        for members in np.unique(local[local > 1]):
            these = local == members
            sizes, where = np.unique(wire[these], return_inverse=True)  # layouts side by side share many sizes
            seconds[these] = self.inside.intra_s(name, int(members), sizes)[where]
        return seconds

    def outward_s(self, axis: str, size: Any) -> Any:
        """Every rank at once sends `size` bytes to its counterpart in the next domain; 0 where nothing leaves one.

        An all-to-all of a buffer of one byte sends (ranks - local) / ranks of it out, over the same NICs and leaves.
        """
        path = self.axes[axis]
        away = larger(path.ranks - path.local, 1)
        return pick(path.hops_out > 0, size * path.all_to_all_s_per_byte * path.ranks / away + path.latency_s, 0.0)

    def crosses(self, axis: str) -> Any:
        """Whether anything of this axis leaves its scale-up domain (and so shares the NICs)."""
        return self.axes[axis].hops_out > 0


def crossing_s(op: Op, path: Path, size: Any, tree_bytes_per_s: float = math.inf) -> Any:
    """The part that leaves the domain, over NICs and leaf uplinks; trees pass on no more than `tree_bytes_per_s`."""
    if op == "all_to_all":
        return size * path.all_to_all_s_per_byte + path.latency_s
    if op == "send":
        return size * path.send_s_per_byte + path.latency_s
    return gather_s(path, op, size, tree_bytes_per_s)


def gather_s(path: Path, op: Op, size: Any, tree_bytes_per_s: float = math.inf) -> Any:
    """An all-gather or reduce-scatter of `size` bytes across domains by rings; an all-reduce is both, or trees."""
    once, wait = size * path.gather_s_per_byte, (path.ranks - 1) / path.ranks * path.ring_latency_s
    if op == "all_reduce":
        tree = larger(once * path.ranks / larger(path.ranks - 1, 1), size / tree_bytes_per_s)
        moved = pick(path.hops_out == 2, smaller(2 * once, tree), 2 * once)
        return moved + 2 * smaller(wait, path.tree_latency_s)
    return once + wait


def paths_of(
    cluster: Cluster,
    strategy: Strategy,
    placement: Placement,
    inside: Collectives,
    samples: tuple[Sample, ...] = (),
) -> Paths:
    """Read every axis off an explicit placement; O(ranks)."""
    slots, gpus = placement.slot_of_rank[None, :], placement.gpu_of_rank[None, :]
    several = axis_paths(cluster, strategy, slots, gpus, samples, tuple(priced_patterns(strategy)))
    axes = {name: _first(path) for name, path in several}
    host, memory = host_rates(cluster.runs[run].node for run in np.unique(cluster.run_of_slot[placement.slot_of_rank]))
    return Paths(
        axes=axes,
        inside=inside,
        host_bytes_per_s=host,
        network_source=network_source(cluster, samples),
        host_memory_bytes_per_s=memory,
    )


def axis_paths(
    cluster: Cluster,
    strategy: Strategy,
    slots: NDArray[np.int64],
    gpus: NDArray[np.int64],
    samples: tuple[Sample, ...] = (),
    axes: Sequence[str] = tuple(AXIS_PATTERNS),
) -> list[tuple[str, Path]]:
    """Axes of several placements of one strategy: slots and GPUs (placements, ranks) -> arrays (placements,)."""
    place = _Place(cluster, slots, gpus, network(samples))
    patterns = {**AXIS_PATTERNS, **EXPERT_PATTERNS}
    return [(axis, place.path(rank_groups(strategy, axis), patterns[axis])) for axis in axes]


def group_paths(
    cluster: Cluster,
    placement: Placement,
    groups: NDArray[np.int64],
    patterns: Sequence[str],
    samples: tuple[Sample, ...] = (),
) -> Path:
    """The path of one axis from the ranks of its groups, shape (groups, members)."""
    place = _Place(cluster, placement.slot_of_rank[None, :], placement.gpu_of_rank[None, :], network(samples))
    return _first(place.path(groups, patterns))


def _first(several: Path) -> Path:
    """The path of the first of several placements, as plain numbers."""
    return Path(**{one.name: getattr(several, one.name)[0].item() for one in fields(Path)})


def network_source(cluster: Cluster, samples: tuple[Sample, ...]) -> str:
    """Where the rates between nodes come from, in words."""
    if network(samples):
        return "network: rate and latency of one pair of nodes in the profile, extrapolated to all"
    cards = dict.fromkeys(run.node.nics for run in cluster.runs)
    shares = dict.fromkeys(
        f"{nics.reached_bytes_per_s / nics.bytes_per_s:.0%} of the line rate of {nics.kind}"
        + ("" if nics.gpudirect else " through host memory")
        for nics in cards
    )
    return f"network: {', '.join(shares)} and the stated latency, not measured here"


class _Place:
    """Domains, NICs and leaves of all ranks of several placements (first axis), and the loads of a pattern on them."""

    def __init__(
        self,
        cluster: Cluster,
        slot: NDArray[np.int64],
        gpu: NDArray[np.int64],
        measured: tuple[float, float] | None,
    ) -> None:
        self.cluster, self.several = cluster, len(slot)
        self.domain, self.leaf = cluster.domain_of_slot[slot], cluster.leaf_of_slot[slot]
        runs = cluster.runs
        most_gpus, most_nics = max(r.node.gpus for r in runs), max(1, *(r.node.nics.count for r in runs))
        nic = np.zeros((len(runs), most_gpus), dtype=np.int64)
        for index, run in enumerate(runs):
            nic[index, : run.node.gpus] = np.maximum(run.node.nic_of_gpu(run.node.gpus), 0)
        rate = np.array([measured[0] if measured else r.node.nics.reached_bytes_per_s for r in runs])
        latency = np.array([measured[1] if measured else r.node.nics.latency_s for r in runs])
        run_of_rank = cluster.run_of_slot[slot]
        self.nic = slot * most_nics + nic[run_of_rank, gpu]
        self.nics = int(self.nic.max()) + 1
        self.rate = rate[run_of_rank]
        fabric = cluster.fabric
        self.latency_s = latency[run_of_rank].max(axis=1) + fabric.hop_latency_s
        self.spine_latency_s = self.latency_s + fabric.spine_hops * fabric.hop_latency_s
        inside = np.array([r.node.scale_up.latency_s for r in runs])
        self.inside_latency_s = inside[run_of_rank].max(axis=1)
        self.uplink = uplinks(cluster)
        self.buses = Buses(cluster, slot, gpu)

    def path(self, groups: NDArray[np.int64], patterns: Sequence[str]) -> Path:
        """Prices of one axis whose groups (shape groups x members) all act at once, for `patterns` of traffic."""
        members = groups.shape[1]
        ones, zeros = np.ones(self.several, dtype=np.int64), np.zeros(self.several)
        costs = {f"{pattern}_s_per_byte": zeros for pattern in ("all_to_all", "send", "gather")}
        costs |= {"ring_latency_s": zeros, "tree_latency_s": zeros, "latency_s": zeros}
        costs |= self.buses.costs(groups, patterns)
        if members == 1:
            return Path(ranks=ones, local=ones, hops_out=0 * ones, **costs)
        domain, leaf = self.domain[:, groups], self.leaf[:, groups]
        following = np.roll(domain, -1, axis=2) != domain
        if not following.any():
            return Path(ranks=members * ones, local=members * ones, hops_out=0 * ones, **costs)
        local = _local_members(domain)
        near = np.maximum(local, _local_members(leaf))
        hops_out = following.sum(axis=2).max(axis=1)
        spine = (near < members).any(axis=(1, 2))
        for pattern in ("all_to_all", "send", "gather"):
            name, read = f"{pattern}_s_per_byte", pattern in patterns
            costs[name] = (
                self._most(groups, *_shares(pattern, local, near, following, leaf)) if read else zeros + np.nan
            )
        most, latency_s = local.max(axis=(1, 2)), np.where(spine, self.spine_latency_s, self.latency_s)
        crosses = hops_out > 0
        visits = np.maximum(hops_out, 1)
        ring_s = hops_out * latency_s + (members - hops_out) * self.inside_latency_s
        tree_s = np.log2(visits) * latency_s + (most - 1) * self.inside_latency_s
        waits = {"latency_s": latency_s, "ring_latency_s": ring_s, "tree_latency_s": tree_s}
        costs |= {name: np.where(crosses, wait, 0.0) for name, wait in waits.items()}
        return Path(ranks=members * ones, local=most, hops_out=hops_out, **costs)

    def _most(self, groups: NDArray[np.int64], out: NDArray[Any], up: NDArray[Any]) -> NDArray[np.float64]:
        """Seconds per byte on the busiest NIC or leaf uplink: `out`, `up` = share of a buffer that a member sends."""
        flat = groups.ravel()
        shape = (self.several, flat.size)
        busiest: NDArray[np.float64]
        busiest = self._sum(self.nic[:, flat], out.reshape(shape) / self.rate[:, flat], self.nics).max(axis=1)
        if up.any():
            leaf = self._sum(self.leaf[:, flat], up.reshape(shape) * 1.0, len(self.uplink)) / self.uplink
            busiest = np.maximum(busiest, leaf.max(axis=1))
        return busiest

    def _sum(self, where: NDArray[np.int64], what: NDArray[Any], bins: int) -> NDArray[Any]:
        key = where + np.arange(self.several)[:, None] * bins
        return np.bincount(key.ravel(), weights=what.ravel(), minlength=self.several * bins).reshape(-1, bins)


def _shares(
    pattern: str, local: NDArray[Any], near: NDArray[Any], following: NDArray[Any], leaf: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Shares of a buffer that each member sends out of its domain and out of its leaf."""
    members = local.shape[-1]
    if pattern == "all_to_all":
        return (members - local) / members, (members - near) / members
    if pattern == "send":
        return following, following & (np.roll(leaf, -1, axis=2) != leaf)
    passed = (members - 1) / members
    return passed * (local < members) / local, passed * (near < members) / near


def uplinks(cluster: Cluster) -> NDArray[np.float64]:
    """Rate of each leaf's uplinks: what its nodes can send over the oversubscription."""
    alive = np.array([r.node.nics.count - len(r.node.missing_nics) for r in cluster.runs])
    rates = alive * np.array([r.node.nics.reached_bytes_per_s for r in cluster.runs])
    per_leaf: Any = np.bincount(cluster.leaf_of_slot, weights=rates[cluster.run_of_slot])
    rate: NDArray[np.float64] = per_leaf / cluster.fabric.oversubscription
    return rate


def _local_members(place: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each member (last axis) of each group, how many members of its group share its place; shape as the input."""
    if np.any(place[..., 1:] < place[..., :-1]):
        order = np.argsort(place, axis=-1, kind="stable")
        counted = _run_lengths(np.take_along_axis(place, order, axis=-1))
        back = np.empty_like(counted)
        np.put_along_axis(back, order, counted, axis=-1)
        return back
    return _run_lengths(place)


def _run_lengths(place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Length of the run of equal neighbours (last axis) that each entry is in."""
    starts = np.ones(place.shape, dtype=bool)
    np.not_equal(place[..., 1:], place[..., :-1], out=starts[..., 1:])
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=place.size)
    return np.repeat(lengths, lengths).reshape(place.shape)
