"""Networks between nodes as data: the share of a card's line rate that large messages reach, by kind, with its source.

    reached bytes/s = line rate x share of the kind x (1, or HOST_STAGED_NIC_SHARE without GPUDirect)

By message size: latency (of the cluster file) + bytes / reached. Line rates of one card: InfiniBand EDR 100, HDR 200,
NDR 400, XDR 800 Gbit/s; EFA 100 a card (4 of them on p4d, 32 on p5) and 400 on p5en and p6; Slingshot 11 200; Omni-Path
100. Band: right within a tenth on InfiniBand and RoCE, within a third elsewhere. Left out: congestion, and collectives
inside switches (SHARP), which an all-reduce over InfiniBand may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

NetworkKind = Literal["infiniband", "roce", "efa", "slingshot", "omni-path", "tcpx", "ethernet"]
HOST_STAGED_NIC_SHARE = 0.4
"""Rate of a card whose bytes go through host memory over the same with GPUDirect RDMA. Three published runs: 8 V100
nodes on 100 Gbit/s InfiniBand reach 4.3 of 12.5 GB/s (NVIDIA/nccl-tests issue 78: 0.38 of the share below), TCP on AWS
p3dn 4.7 of 12.5 (NVIDIA/nccl issue 398: 0.41), Jean Zay's four Omni-Path cards 135 of 400 Gbit/s (0.40;
stas00/ml-engineering, network/README.md)."""


@dataclass(frozen=True, kw_only=True)
class Network:
    share: float
    source: str


NETWORKS: Mapping[NetworkKind, Network] = MappingProxyType(
    {
        "infiniband": Network(
            share=0.92,
            source="headers and flow control; Vidur's two A100 nodes fit 100 Gbit/s cards at 0.94 (one), 0.90 (four)",
        ),
        "roce": Network(
            share=0.92, source="as InfiniBand; ConnectX-7 at 400 Gbit/s reach 48 GB/s (nccl-tests issue 267)"
        ),
        "efa": Network(
            share=0.85, source="p4d: 340 of 400 Gbit/s in all-reduce tests (stas00/ml-engineering, network)"
        ),
        "slingshot": Network(share=0.88, source="estimate: Ethernet frames, the card's own transport"),
        "omni-path": Network(share=0.85, source="estimate; Jean Zay reaches 0.34, see HOST_STAGED_NIC_SHARE"),
        "tcpx": Network(share=0.8, source="estimate: GPUDirect-TCPX and TCPXO of Google's A3"),
        "ethernet": Network(share=0.92, source="TCP; it has no GPUDirect, so set gpudirect: false"),
    }
)
