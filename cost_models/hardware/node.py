"""One node (a host) as data: its GPUs, what joins them inside, and its cards to the network.

    node: [NIC per rail] ── [GPU …] joined by NVSwitch, NVLink pairs or PCIe

All rates are one way, per GPU or per NIC. Left out: the fabric (`cluster`), storage, and NUMA other than as part of a
PCIe tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.device import Device
from cost_models.hardware.links import HOST_STAGED_SHARE, LINKS
from cost_models.hardware.networks import CHANNEL_BYTES_PER_S, HOST_STAGED_NIC_SHARE, NETWORKS, NetworkKind

MOST_NICS = 1024
MOST_GPUS_PER_NODE = 1024
LEAST_SHARE = 1e-3
MOST_BYTES_PER_S = 1e15
"""Of one link: a thousand times the fastest there is; larger numbers only overflow."""


@dataclass(frozen=True, kw_only=True)
class ScaleUp:
    """What joins the GPUs of one domain.

    switch: any pair at the full rate · pairs: NVLink bridges between neighbours 2i and 2i+1, PCIe otherwise ·
    pcie: one tree; without peer-to-peer bytes go through host memory: all, as of GeForce cards, or those that leave a
    switch (`direct_under_switch`), as of L40S · memory: processes of one host
    """

    kind: Literal["switch", "pairs", "pcie", "memory"]
    link: str  # one of `links.LINKS`: its measured curve, scaled to bytes_per_s
    bytes_per_s: float  # of one GPU, one way
    latency_s: float
    pcie_bytes_per_s: float = 0.0  # beyond the pair, for kind = pairs
    peer_to_peer: bool = True
    direct_under_switch: bool = field(default=False, metadata=strict.OPTIONAL)  # without peer_to_peer: there alone
    gpus_per_switch: int = 0  # GPUs under one PCIe switch or socket; 0 = all
    cross_bytes_per_s: float = 0.0  # out of one of those groups, all its GPUs together, one way; 0 = not limited
    gpus_per_socket: int = field(default=0, metadata=strict.OPTIONAL)  # GPUs of several switches; 0 = all
    socket_bytes_per_s: float = field(default=0.0, metadata=strict.OPTIONAL)  # out of one socket; 0 = not limited

    @property
    def reached_bytes_per_s(self) -> float:
        """The rate to read the link's curve at: through host memory where PCIe has no peer-to-peer."""
        return self.bytes_per_s * (self.message_share if self.kind == "pcie" else 1.0)

    @property
    def message_share(self) -> float:
        """Of what PCIe carries peer to peer, what a message between two GPUs gets inside a switch."""
        return 1.0 if self.peer_to_peer or self.direct_under_switch else HOST_STAGED_SHARE

    @property
    def copies_share(self) -> bool:
        """Whether copies to host memory take what messages between GPUs reach: of PCIe, which these fill peer to peer
        and not through host memory."""
        return self.kind in ("pcie", "pairs") and self.peer_to_peer

    def __post_init__(self) -> None:
        for name in ("bytes_per_s", "cross_bytes_per_s", "socket_bytes_per_s", "pcie_bytes_per_s"):
            rate, least = getattr(self, name), 1.0 if name == "bytes_per_s" else 0.0
            if not (rate == least == 0.0 or 1.0 <= rate <= MOST_BYTES_PER_S):
                legal = f"from 1 to {MOST_BYTES_PER_S:g} bytes/s" + (" (0: not limited)" if least == 0.0 else "")
                raise InputError(f"scale_up: {name}={rate:g}; {legal}")
        if not self.latency_s >= 0 or not 0 <= self.gpus_per_switch <= MOST_GPUS_PER_NODE:
            raise InputError(
                f"scale_up: latency_s={self.latency_s:g}, gpus_per_switch={self.gpus_per_switch}; latency_s must be at "
                f"least 0, gpus_per_switch 0 (all) to {MOST_GPUS_PER_NODE}"
            )
        if self.link not in LINKS:
            raise InputError(f"scale_up.link={self.link!r} is unknown; {strict.nearest(self.link, LINKS)}")
        if self.cross_bytes_per_s and not self.gpus_per_switch:
            raise InputError("scale_up.cross_bytes_per_s needs gpus_per_switch: between which GPUs does it lie?")
        if self.direct_under_switch and (self.peer_to_peer or not self.cross_bytes_per_s):
            raise InputError(
                "scale_up.direct_under_switch needs peer_to_peer: false, gpus_per_switch and cross_bytes_per_s"
            )
        if self.gpus_per_socket or self.socket_bytes_per_s:
            nested = self.gpus_per_switch and self.gpus_per_socket and not self.gpus_per_socket % self.gpus_per_switch
            if not nested or not self.cross_bytes_per_s or not self.socket_bytes_per_s:
                raise InputError(
                    f"scale_up: gpus_per_socket={self.gpus_per_socket}, socket_bytes_per_s={self.socket_bytes_per_s:g} "
                    "need each other, gpus_per_switch (a divisor of gpus_per_socket) and cross_bytes_per_s"
                )
        if self.kind == "pairs" and self.pcie_bytes_per_s <= 0:
            raise InputError("scale_up.kind=pairs needs pcie_bytes_per_s")


@dataclass(frozen=True, kw_only=True)
class Nics:
    """Network cards of a node; GPU i uses card i * count // gpus (its rail)."""

    count: int
    bytes_per_s: float  # of one card, one way
    latency_s: float
    kind: NetworkKind = field(default="infiniband", metadata={"optional": True})
    gpudirect: bool = field(
        default=True, metadata={"optional": True}
    )  # cards read GPU memory; else every byte goes through the host's
    channel_bytes_per_s: float = field(default=CHANNEL_BYTES_PER_S, metadata=strict.OPTIONAL)
    """Of sends on one of NCCL's channels, as `sendrecv_perf` reaches with NCCL_NCHANNELS_PER_NET_PEER=1."""

    def __post_init__(self) -> None:
        rate_is_legal = 1 <= self.bytes_per_s <= MOST_BYTES_PER_S
        if not 0 <= self.count <= MOST_NICS or not rate_is_legal or not self.latency_s >= 0:
            raise InputError(
                f"nics: count={self.count}, bytes_per_s={self.bytes_per_s:g}, latency_s={self.latency_s:g}; "
                f"count from 0 to {MOST_NICS}, latency_s at least 0, bytes_per_s from 1 to {MOST_BYTES_PER_S:g}"
            )
        if not 1 <= self.channel_bytes_per_s <= MOST_BYTES_PER_S:
            raise InputError(
                f"nics: channel_bytes_per_s={self.channel_bytes_per_s:g}; from 1 to {MOST_BYTES_PER_S:g} bytes/s"
            )
        if self.kind == "ethernet" and self.gpudirect:
            raise InputError("nics: kind=ethernet (TCP) has no GPUDirect; add gpudirect: false, or give kind: roce")

    @property
    def reached_bytes_per_s(self) -> float:
        """What large messages reach on one card, one way (`networks.py`).

        >>> round(Nics(count=1, bytes_per_s=50e9, latency_s=3e-6).reached_bytes_per_s / 1e9)
        46
        """
        staged = 1.0 if self.gpudirect else HOST_STAGED_NIC_SHARE
        return self.bytes_per_s * NETWORKS[self.kind].share * staged


@dataclass(frozen=True, kw_only=True)
class Node:
    """One kind of host. `gpus` are the free ones; `missing_nics` are cards that are broken or not there."""

    device: Device
    gpus: int
    scale_up: ScaleUp
    nics: Nics
    host_memory_bytes: int
    host_link_bytes_per_s: float  # GPU to host memory, one way, per GPU (offload)
    cpus: int = 0
    missing_nics: tuple[int, ...] = ()
    missing_bridges: tuple[int, ...] = field(default=(), metadata=strict.OPTIONAL)
    """Of kind `pairs`: pairs i (GPUs 2i and 2i + 1) whose bridge is dead: they have PCIe alone."""
    nic_shares: tuple[float, ...] = field(default=(), metadata=strict.OPTIONAL)
    """What each card, in order, still has of its rate; () means all of it."""

    def __post_init__(self) -> None:
        self._check_links()
        if not 0 <= self.gpus <= MOST_GPUS_PER_NODE or self.host_memory_bytes < 0 or self.host_link_bytes_per_s <= 0:
            raise InputError("a node needs 0 to 1024 gpus, host_memory_bytes >= 0 and a positive host_link_bytes_per_s")
        if any(not 0 <= nic < self.nics.count for nic in self.missing_nics):
            raise InputError(f"missing_nics={list(self.missing_nics)}: the node has NICs 0 to {self.nics.count - 1}")

    def _check_links(self) -> None:
        shares, pairs = self.nic_shares, self.gpus // 2 if self.scale_up.kind == "pairs" else 0
        if shares and (len(shares) != self.nics.count or not all(LEAST_SHARE <= share <= 1 for share in shares)):
            raise InputError(
                f"nic_shares={list(shares)[:8]}: a share from {LEAST_SHARE:g} to 1 for each of {self.nics.count} NICs "
                "(missing_nics are those that are gone)"
            )
        if any(not 0 <= pair < pairs for pair in self.missing_bridges):
            legal = f"pairs 0 to {pairs - 1}" if pairs else "none: its GPUs are not joined in pairs"
            raise InputError(f"missing_bridges={list(self.missing_bridges)[:8]}; legal: {legal}")

    def nic_of_gpu(self, slots: int) -> NDArray[np.int64]:
        """The card that each of `slots` GPU places sends through; users of a missing card share the next one."""
        alive = [nic for nic in range(self.nics.count) if nic not in self.missing_nics]
        if not alive:
            return np.full(slots, -1, dtype=np.int64)
        wanted = np.arange(slots) * self.nics.count // max(slots, 1)
        return np.array([min(alive, key=lambda nic: (nic - want) % self.nics.count) for want in wanted])
