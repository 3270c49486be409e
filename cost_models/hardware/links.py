"""Links inside a node as data: one-way rate of a GPU by data sheet, and which measured table each is scaled from.

    switch   any pair at the whole rate            n ranks reach it whatever n is
    mesh     each pair has links of its own        n ranks reach min(whole rate, (n − 1) · pair); one message the pair's
    bridge   two cards (`ScaleUp.kind = pairs`)    beyond them PCIe, see `timing/loads.py`

How much of a rate a collective reaches is the measured link's (NCCL itself reckons with 20 of 25, 20.6 of 25 and 40.1
of 50 GB/s of a link on A100, H100 and B200: src/graph/topo.h). H100's and B200's tables hold NVLink SHARP: what has no
NVSwitch is scaled from A100's. Band of a link that nobody here measured, from the checks in test_links.py: right within
a third on NVLink and xGMI, within half to twice on PCIe, whose boxes differ most; one pair of bridged H100 PCIe cards
(NVIDIA/nccl issue 1161) is 1.7 times slower than predicted, another (Vidur) a tenth faster. Left out: links of unequal
width in one mesh (the narrowest is taken).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Link:
    """One kind of scale-up link; `bytes_per_s` is one-way per GPU, by data sheet."""

    bytes_per_s: float
    measured_as: str  # the link whose packed table is read
    source: str
    pair_bytes_per_s: float | None = None  # between two GPUs where no switch joins them; None = the whole rate

    def reach(self, op: str, ranks: int) -> float:
        """One-way bytes/s of a GPU in a group of `ranks`, by data sheet.

        >>> LINKS["xgmi-mi300x"].reach("all_reduce", 2) / 1e9, LINKS["xgmi-mi300x"].reach("all_reduce", 8) / 1e9
        (64.0, 448.0)
        """
        if self.pair_bytes_per_s is None:
            return self.bytes_per_s
        neighbours = 1 if op == "send_recv" else max(ranks - 1, 1)
        return min(self.bytes_per_s, neighbours * self.pair_bytes_per_s)

    @property
    def sums_in_switch(self) -> bool:
        """Whether the switch adds up, so that an all-reduce sends and receives its buffer once."""
        return self.measured_as in SUMS_IN_SWITCH

    @property
    def tree_bytes_per_s(self) -> float:
        """Of an all-reduce's buffer over two domains of such links, where a tree sends it; infinite: cards decide."""
        return math.inf if self.sums_in_switch else TREE_BYTES_PER_S


def bridge(device: str, links: int) -> tuple[str, float] | None:
    """The link that so many NVLinks of a pair of these cards are, and its one-way rate; None: they take no bridge.

    >>> bridge("a40", 4), bridge("a100-pcie-80gb", 4), bridge("l40s", 4)
    (('nvlink3-bridge4', 56250000000.0), ('nvlink3-bridge', 100000000000.0), None)
    """
    found = next((one for name, one in BRIDGES.items() if device.startswith(name)), None)
    if found is None:
        return None
    name, most = found
    return name, LINKS[name].bytes_per_s * min(links / most, 1.0)


SUMS_IN_SWITCH = ("nvlink4", "nvlink5")
"""Measured tables that hold NVLink SHARP."""
TREE_BYTES_PER_S = 65e9
"""Of an all-reduce's buffer that trees over two domains pass on where no switch sums (NVLink SHARP): half of the 130
GB/s that NCCL reckons with on Ampere (src/graph/tuning.cc, maxTreeBw). With eight cards a node rings are faster."""
LINKS_OF_GPU: Mapping[str, int] = MappingProxyType({"nvlink2": 6, "nvlink3": 12, "nvlink4": 18, "nvlink5": 18})
"""NVLinks of a GPU, by the generation that a link's name begins with (data sheets of V100, A100, H100, B200)."""
BRIDGES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "a40": ("nvlink3-bridge4", 4),
        "rtx3090": ("nvlink3-bridge4", 4),
        "rtxa6000": ("nvlink3-bridge4", 4),
        "a30": ("nvlink3-bridge-a30", 4),
        "a100-pcie": ("nvlink3-bridge", 12),
        "a800-pcie": ("nvlink3-bridge", 12),
        "h100-pcie": ("nvlink4-bridge", 12),
        "h800-pcie": ("nvlink4-bridge", 12),
        "h100-nvl": ("nvlink4-bridge", 12),
    }
)
"""PCIe cards that bridges join in pairs, by the beginning of their name: the link, and how many NVLinks all its bridges
are (data sheets, from memory)."""
HOST_STAGED_SHARE = 0.25
"""Rate of one message through host memory over the peer-to-peer rate of the same PCIe link: the sender writes to a
buffer in the host and the receiver reads it. 4.0 GB/s (Vidur's send/recv between A40s that no bridge joins) of 16.1 (15
GiB/s: SimuMax's A100); 4.7 of 19.6 a hop of a ring over four L40S (AIConfigurator)."""
STAGED_SHARES: Mapping[str, float] = MappingProxyType({"all_to_all": 0.47, "gather": 0.28, "send": 1.0})
"""Where switches or sockets pass bytes on through host memory, what collectives get of the rate that single messages to
one neighbour have there. Eight L40S: all-to-all 1.1 to 2.0 GB/s of bus rate, gathers 1.2 to 1.7; four: 4.6 and 4.8
(AIConfigurator). Eight L20: an all-to-all 1.2, of four 4.2; a ring's hops 6.9 or more (long-context-attention)."""

M = "(from memory)"
LINKS: Mapping[str, Link] = MappingProxyType(
    {  # one-way bytes/s of a GPU, the table that is read, where the rate is from
        "nvlink3": Link(300e9, "nvlink3", "A100 SXM4, NCCL 2.27, NVSwitch"),
        "nvlink4": Link(450e9, "nvlink4", "H100 SXM, NCCL 2.27 and 2.29, NVSwitch"),
        "nvlink5": Link(900e9, "nvlink5", "B200 SXM, NCCL 2.28 and 2.29, NVSwitch"),
        "pcie4": Link(32e9, "pcie4", "A100 PCIe, SimuMax's fit of latency and rate"),
        "pcie3": Link(16e9, "pcie4", "PCIe 3.0 x16"),
        "pcie5": Link(64e9, "pcie4", "PCIe 5.0 x16"),
        "nvlink1": Link(80e9, "nvlink3", "P100, 4 links of 20 GB/s", pair_bytes_per_s=20e9),
        "nvlink2": Link(150e9, "nvlink3", "V100 on NVSwitch (DGX-2), 6 links of 25 GB/s"),
        "nvlink2-cube": Link(150e9, "nvlink3", "8 V100 in a cube mesh, 1-2 links a pair", pair_bytes_per_s=25e9),
        "nvlink2-quad": Link(150e9, "nvlink3", "4 V100, 2 links a pair", pair_bytes_per_s=50e9),
        "nvlink3-quad": Link(300e9, "nvlink3", "4 A100 without switch, 4 links a pair", pair_bytes_per_s=100e9),
        "nvlink4-quad": Link(450e9, "nvlink3", "4 H100 or GH200, 6 links a pair", pair_bytes_per_s=150e9),
        "nvlink3-a800": Link(200e9, "nvlink3", "A800: NVLink cut to 400 GB/s both ways"),
        "nvlink4-h800": Link(200e9, "nvlink4", "H800: NVLink cut to 400 GB/s both ways"),
        "nvlink3-bridge": Link(300e9, "nvlink3", f"A100 PCIe bridge, pairs {M}"),
        "nvlink3-bridge4": Link(56.25e9, "nvlink3", f"A40, RTX A6000, RTX 3090: bridge of 4 links, pairs {M}"),
        "nvlink3-bridge-a30": Link(100e9, "nvlink3", f"A30 bridge, pairs {M}"),
        "nvlink4-bridge": Link(300e9, "nvlink3", f"H100 PCIe and NVL bridge, pairs {M}"),
        "xgmi-mi250x": Link(200e9, "nvlink3", f"MI250X dies: 50 to 200 GB/s a pair {M}", pair_bytes_per_s=50e9),
        "xgmi-mi300a": Link(384e9, "nvlink3", f"4 MI300A: 2 links of 64 GB/s a pair {M}", pair_bytes_per_s=128e9),
        "xgmi-mi300x": Link(448e9, "nvlink3", "MI300X: 7 links of 64 GB/s one way", pair_bytes_per_s=64e9),
        "xgmi-mi355x": Link(537.6e9, "nvlink3", f"MI355X: 7 links of 76.8 GB/s {M}", pair_bytes_per_s=76.8e9),
        "gaudi2-mesh": Link(262.5e9, "nvlink3", f"Gaudi 2: 21 ports of 100 Gbit/s {M}", pair_bytes_per_s=37.5e9),
        "gaudi3-mesh": Link(525e9, "nvlink3", f"Gaudi 3: 21 ports of 200 Gbit/s {M}", pair_bytes_per_s=75e9),
        "shared-memory": Link(1e9, "pcie4", "gloo on one host: order of magnitude only"),
    }
)
