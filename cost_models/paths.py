"""What the groups of an axis cross, read off a placement: the few numbers that price any collective over them.

    inside a scale-up domain          measured curve of the link, by group size and bytes
    out of the domain                 bytes x cross_s_per_byte + latency, the most loaded NIC or leaf uplink counting

A phase costs the larger of the two (they run at once): monotone and linear in bytes. `cross_s_per_byte` sums what all
ranks of a NIC (or leaf) send at the same time, per byte of one rank's buffer:

    all_to_all   a rank with b of P members in its domain sends (P - b) / P of its buffer out
    send         1 if the next member is in another domain
    gather       rings through the group: each domain takes in (P - 1) / P of the full buffer over its ranks' NICs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.cluster import Cluster, ScaleUp
from cost_models.collectives import Collectives
from cost_models.curves.samples import Sample
from cost_models.placement import Placement
from cost_models.profile import network
from cost_models.program import Op
from cost_models.strategy import Strategy, rank_groups

NIC_EFFICIENCY = 0.92
"""Share of a NIC's line rate that large messages reach (headers, flow control). Estimate; a profile replaces it."""
LARGE_BYTES = 2**30


def domain_link(scale_up: ScaleUp, samples: Sequence[Sample] = ()) -> Collectives:
    """The measured curves of a domain's link, scaled to the rate that this cluster's link has."""
    return Collectives.of(scale_up.link, samples, scale_up.bytes_per_s)


def link_rates(cluster: Cluster, samples: Sequence[Sample] = ()) -> list[tuple[float, float]]:
    """(scale-up, NIC) bytes/s that large messages really reach, one way, for each run of nodes."""
    rates = []
    for run in cluster.runs:
        inside = domain_link(run.node.scale_up, samples).intra_s("all_to_all", 2, float(LARGE_BYTES))
        rates.append((LARGE_BYTES / float(inside), run.node.nics.bytes_per_s * NIC_EFFICIENCY))
    return rates


PRICED_AXES = ("ulysses", "ring", "context", "shard", "replicate", "tensor", "pipeline")


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


@dataclass(frozen=True, kw_only=True)
class Paths:
    axes: dict[str, Path] = field(default_factory=dict)
    inside: Collectives
    host_bytes_per_s: float
    network_source: str

    def exchange_s(self, axis: str, op: Op, size: Any) -> Any:
        """Seconds of one collective over every group of `axis` at once; `size` as in `program.Exchange`."""
        path = self.axes[axis]
        inside = self.inside_s(op, path, size)
        if op == "all_to_all":
            crossing = size * path.all_to_all_s_per_byte + path.latency_s
        elif op == "send":
            crossing = size * path.send_s_per_byte + path.latency_s
        else:
            rounds = 2 if op == "all_reduce" else 1
            crossing = rounds * (size * path.gather_s_per_byte + path.hops_out * path.latency_s)
        seconds = np.maximum(inside, np.where(np.asarray(path.latency_s) > 0, crossing, 0.0))
        return np.where(np.asarray(path.ranks) > 1, seconds, 0.0)

    def inside_s(self, op: Op, path: Path, size: Any) -> Any:
        """The part between members of one domain, by the measured curve of its link and the group's size there."""
        local = np.asarray(path.local)
        if op == "all_to_all":
            wire = size * (local - 1) / path.ranks
        elif op == "send":
            wire = size * np.ones(local.shape)
        else:
            wire = size * (local - 1) / local * (2 if op == "all_reduce" else 1)
        name = "send_recv" if op == "send" else op
        if local.ndim == 0:
            return self.inside.intra_s(name, int(local), wire if np.ndim(wire) else float(wire))
        seconds = np.zeros(np.broadcast(local, wire).shape)
        wire, local = np.broadcast_to(wire, seconds.shape), np.broadcast_to(local, seconds.shape)
        for members in np.unique(local[local > 1]):
            these = local == members
            seconds[these] = self.inside.intra_s(name, int(members), wire[these])
        return seconds

    def crosses(self, axis: str) -> Any:
        """Whether anything of this axis leaves its scale-up domain (and so shares the NICs)."""
        return np.asarray(self.axes[axis].latency_s) > 0


def paths_of(
    cluster: Cluster,
    strategy: Strategy,
    placement: Placement,
    inside: Collectives,
    samples: tuple[Sample, ...] = (),
) -> Paths:
    """Read every axis off an explicit placement; O(ranks)."""
    place = _Place(cluster, placement, network(samples))
    axes = {axis: place.path(rank_groups(strategy, axis)) for axis in PRICED_AXES}
    host = min(run.node.host_link_bytes_per_s for run in cluster.runs)
    return Paths(axes=axes, inside=inside, host_bytes_per_s=host, network_source=network_source(samples))


def network_source(samples: tuple[Sample, ...]) -> str:
    """Where the rates between nodes come from, in words."""
    if network(samples):
        return "network: rate and latency of one pair of nodes in the profile, extrapolated to all"
    return f"network: {NIC_EFFICIENCY:.0%} of the NICs' line rate and their stated latency, not measured here"


class _Place:
    """Domains, NICs and leaves of all ranks as arrays, and the loads that a pattern puts on them."""

    def __init__(self, cluster: Cluster, placement: Placement, measured: tuple[float, float] | None) -> None:
        slot = placement.slot_of_rank
        self.cluster = cluster
        self.domain = cluster.domain_of_slot[slot]
        self.leaf = cluster.leaf_of_slot[slot]
        most = max(run.node.nics.count for run in cluster.runs)
        self.nic = np.zeros(len(slot), dtype=np.int64)
        self.rate = np.zeros(len(slot))
        latency = 0.0
        for index in np.unique(cluster.run_of_slot[slot]):
            node = cluster.runs[index].node
            mine = cluster.run_of_slot[slot] == index
            nic = node.nic_of_gpu(node.gpus)[placement.gpu_of_rank[mine]]
            self.nic[mine] = slot[mine] * max(most, 1) + nic
            self.rate[mine] = measured[0] if measured else node.nics.bytes_per_s * NIC_EFFICIENCY
            latency = max(latency, measured[1] if measured else node.nics.latency_s)
        fabric = cluster.fabric
        self.latency_s = latency + fabric.hop_latency_s
        self.spine_latency_s = self.latency_s + fabric.spine_hops * fabric.hop_latency_s
        self.uplink = self._uplinks()

    def _uplinks(self) -> NDArray[np.float64]:
        """Rate of each leaf's uplinks: what its nodes can send over the oversubscription."""
        cluster = self.cluster
        rates = np.array(
            [r.node.nics.bytes_per_s * (r.node.nics.count - len(r.node.missing_nics)) for r in cluster.runs]
        )
        per_leaf = np.bincount(cluster.leaf_of_slot, weights=rates[cluster.run_of_slot])
        return per_leaf * NIC_EFFICIENCY / cluster.fabric.oversubscription

    def path(self, groups: NDArray[np.int64]) -> Path:
        """Prices of one axis whose groups (shape groups x members) all act at once."""
        members = groups.shape[1]
        domain = self.domain[groups]
        local = _local_members(domain)
        if members == 1 or bool(np.all(local == members)):
            return Path(ranks=members, local=int(local.max()))
        flat = groups.ravel()
        leaf = self.leaf[groups]
        spine = bool(np.any(leaf != leaf[:, :1]))
        following = np.roll(domain, -1, axis=1) != domain
        ring_up = (np.roll(leaf, -1, axis=1) != leaf) * 1.0
        out = (members - local) / members
        up = (members - _local_members(leaf)) / members
        visits = int(following.sum(axis=1).max())
        return Path(
            ranks=members,
            local=int(local.max()),
            all_to_all_s_per_byte=max(self._nic(flat, out), self._leaf(flat, up)),
            send_s_per_byte=max(self._nic(flat, following * 1.0), self._leaf(flat, ring_up)),
            gather_s_per_byte=self._gather(groups, domain, leaf),
            latency_s=self.spine_latency_s if spine else self.latency_s,
            hops_out=visits,
        )

    def _nic(self, ranks: NDArray[np.int64], share: NDArray[np.float64]) -> float:
        load = np.bincount(self.nic[ranks], weights=share.ravel() / self.rate[ranks])
        return float(load.max())

    def _leaf(self, ranks: NDArray[np.int64], share: NDArray[np.float64]) -> float:
        load = np.bincount(self.leaf[ranks], weights=share.ravel())
        return float((load / self.uplink[: len(load)]).max())

    def _gather(self, groups: NDArray[np.int64], domain: NDArray[np.int64], leaf: NDArray[np.int64]) -> float:
        """Each group enters each domain once with (P-1)/P of the buffer, over all NICs of its members there."""
        members = groups.shape[1]
        flat = groups.ravel()
        row = np.repeat(np.arange(len(groups)), members)
        key = row * (int(self.domain.max()) + 1) + domain.ravel()
        _, piece, count = np.unique(key, return_inverse=True, return_counts=True)
        share = (members - 1) / members / count[piece]
        leaf_key = row * (int(self.leaf.max()) + 1) + leaf.ravel()
        _, leaf_piece, leaf_count = np.unique(leaf_key, return_inverse=True, return_counts=True)
        many = np.any(leaf != leaf[:, :1], axis=1).repeat(members)
        leaf_share = np.where(many, (members - 1) / members / leaf_count[leaf_piece], 0.0)
        return max(self._nic(flat, share), self._leaf(flat, leaf_share))


def _local_members(place: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each member of each group, how many members share its place; shape as the input."""
    groups, members = place.shape
    if members == 1:
        return np.ones_like(place)
    key = np.arange(groups)[:, None] * (int(place.max()) + 1) + place
    _, where, count = np.unique(key, return_inverse=True, return_counts=True)
    return count[where].reshape(place.shape)
