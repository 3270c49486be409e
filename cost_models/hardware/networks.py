"""Networks between nodes as data: the share of a card's line rate that large messages reach, by kind, with its source.

    reached bytes/s = line rate x share of the kind x (1, or HOST_STAGED_NIC_SHARE without GPUDirect)
    a ring or a send    the same x ring_share on cards of 400 Gbit/s: one queue pair fills a slower card
    an all-to-all       the same x all_to_all_share: senders meet at receivers

By message size: `timing/protocols.py`, from the latency that the cluster file states. Line rates of one card:
InfiniBand EDR 100, HDR 200, NDR 400, XDR 800 Gbit/s; EFA 100 (4 cards on p4d, 32 on p5), 400 on p5en and p6; Slingshot
11 200; Omni-Path 100. Shares of InfiniBand, RoCE, EFA, Slingshot and TCPX: `kernels_comm_multinode.csv`. Band: within a
tenth by default settings; tuned ones (24 channels, two queue pairs) reach 0.97 also by rings. Left out: congestion, and
collectives inside switches (SHARP), which an all-reduce over InfiniBand may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

NetworkKind = Literal[
    "infiniband", "roce", "efa", "efa-v1", "slingshot", "omni-path", "tcpx", "tcpxo", "ethernet"
]  # fmt: skip
Protocol = Literal["LL", "LL128", "Simple"]
HOST_STAGED_NIC_SHARE = 0.4
"""Rate of a card whose bytes go through host memory over the same with GPUDirect RDMA. Three published runs: 8 V100
nodes on 100 Gbit/s InfiniBand reach 4.3 of 12.5 GB/s (NVIDIA/nccl-tests issue 78: 0.38 of the share below), TCP on AWS
p3dn 4.7 of 12.5 (NVIDIA/nccl issue 398: 0.41), Jean Zay's four Omni-Path cards 135 of 400 Gbit/s (0.40;
stas00/ml-engineering, network/README.md)."""

CHANNEL_BYTES_PER_S = 14e9
"""Of one channel between nodes, as NCCL reckons (src/graph/paths.cc, P2P_PER_CHANNEL_NET_BW); sends on one reach 14.7
over B200's ConnectX-7. From 32 ranks on GH200 (NCCL 2.20, one channel to a peer, NVIDIA/nccl issue 1272) reaches 18.3
of the 24.2 GB/s that it has with more."""
FAST_CARD_BYTES_PER_S = 40e9
"""From this line rate on a ring by NCCL's default settings does not fill the card."""


HOP_US: Mapping[Protocol, tuple[float, float]] = MappingProxyType(
    {"LL": (5.0, 0.7), "LL128": (8.5, 1.3), "Simple": (14.0, 3.4)}
)
"""That NCCL reckons with for a hop between nodes, and for one inside (src/graph/tuning.cc)."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Shares of a card's line rate that large messages reach on a kind of network, and who measured them."""

    share: float
    source: str
    ring_share: float = 1.0  # on FAST_CARD or more
    all_to_all_share: float = 1.0
    fastest: Protocol = "LL"  # of NCCL's protocols that the network's own set-up allows

    @property
    def slower(self) -> float:
        """What large messages wait longer than small ones, over that where all protocols run: rings over nodes of eight
        go from the fastest one's hops to Simple's.

        >>> [round(Network(share=1.0, source="", fastest=one).slower, 2) for one in HOP_US]
        [1.0, 0.41, 0.0]
        """
        waits = {name: out_us + 7 * inside_us for name, (out_us, inside_us) in HOP_US.items()}
        longer = {name: waits["Simple"] / wait - 1 for name, wait in waits.items()}
        return longer[self.fastest] / longer["LL"]


NETWORKS: Mapping[NetworkKind, Network] = MappingProxyType(
    {
        "infiniband": Network(
            share=0.92,
            ring_share=0.92,
            all_to_all_share=0.93,
            source="rings 0.94 (HDR), trees 0.94 and 0.95; rings over NDR 0.79 to 0.91; all-to-alls 0.78 to 0.95",
        ),
        "roce": Network(
            share=0.92,
            ring_share=0.96,
            all_to_all_share=0.97,
            source="all-to-alls 0.79 to 0.96 (MI355X, B300), gathers of H200 0.84, of MI355X 0.92; a ConnectX-7 at 400 "
            "Gbit/s reaches 48 GB/s (NVIDIA/nccl-tests issue 267)",
        ),
        "efa": Network(share=0.91, source="p5en: all-to-alls 0.91, sends 0.90, rings 0.92"),
        "efa-v1": Network(
            share=0.85,
            source="p4d: 340 of 400 Gbit/s (stas00/ml-engineering, network), p4de 0.84 (awsome-distributed-training)",
        ),
        "slingshot": Network(share=0.91, source="Alps, one card a node: 22.9 of 25 GB/s (eth-cscs/cscs-docs)"),
        "omni-path": Network(share=0.85, source="estimate; Jean Zay reaches 0.34, see HOST_STAGED_NIC_SHARE"),
        "tcpx": Network(
            share=0.75,
            fastest="Simple",
            source="a3-highgpu: 71 of 100 GB/s a node at 512 MiB (cluster-toolkit, Google's documentation); NCCL_PROTO="
            "Simple, as its documentation asks",
        ),
        "tcpxo": Network(
            share=0.94,
            fastest="LL128",
            source="a3-megagpu: 189 of 200 GB/s a node (cluster-toolkit); its plugin refuses a job without NCCL_PROTO="
            "Simple,LL128 (a3plus_guest_config.textproto)",
        ),
        "ethernet": Network(share=0.92, source="TCP; it has no GPUDirect, so set gpudirect: false"),
    }
)
