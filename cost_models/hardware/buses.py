"""What traffic inside a node costs where its GPUs are not all alike: NVLink pairs, PCIe switches, sockets.

    pairs    a pair's two PCIe links carry what leaves it: 2 x pcie_bytes_per_s x PCIE_SHARE
    switch   gpus_per_switch GPUs share one way out, to the other switch or socket: cross_bytes_per_s

Seconds = bytes that all groups together send out of the busiest unit / its rate, beside the time of the link's curve
(`collectives.py`), the larger of the two: it can only add, so bounds hold. Of one rank's buffer leave, with P members
in the group, b of them in its domain, c in its unit:

    all_to_all   (b - c) / P          send   1 if the next member is in another unit of the domain
    gather       rings pass each unit once: (P - 1) / P over the c members

Left out: the way to a NIC under another switch, and traffic inside a unit that goes through its host bridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.hardware.cluster import Cluster, Node
from cost_models.hardware.links import HOST_STAGED_SHARE

PCIE_SHARE = 0.75
"""Share of a PCIe link's line rate that NCCL reaches between pairs: 24 of 32 GB/s in NCCL's own model (12 of PCIe 3's
16, src/graph/topo.h), 23.7 in Vidur's all-reduce over two bridged pairs of A100s."""
PATTERNS = ("all_to_all", "send", "gather")

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


class Buses:
    """The units of all ranks of several placements (first axis of `slot` and `gpu`), level by level."""

    def __init__(self, cluster: Cluster, slot: _Ints, gpu: _Ints) -> None:
        self.several, self.domain = len(slot), cluster.domain_of_slot[slot]
        self.levels: list[tuple[_Ints, _Floats]] = []  # unit and its rate, by placement and rank
        run = cluster.run_of_slot[slot]
        for level in (_pair, _switch):
            found = [level(one.node) for one in cluster.runs]
            if any(rate < np.inf for _, rate in found):
                sizes, rates = (np.array(column) for column in zip(*found, strict=True))
                places = max(one.node.gpus for one in cluster.runs)
                self.levels.append((slot * places + gpu // sizes[run], rates[run].astype(np.float64)))

    def costs(self, groups: _Ints, patterns: Sequence[str]) -> dict[str, _Floats]:
        """Seconds per byte of a buffer on the busiest unit, by pattern, when all `groups` act at once."""
        zeros = np.zeros(self.several)
        costs = {f"bus_{pattern}_s_per_byte": zeros for pattern in PATTERNS}
        if groups.shape[1] == 1:
            return costs
        for unit, rate in self.levels:
            for pattern in patterns:
                name = f"bus_{pattern}_s_per_byte"
                share = _leaving(pattern, self.domain[:, groups], unit[:, groups])
                costs[name] = np.maximum(costs[name], self._busiest(unit, rate, groups, share))
        return costs

    def _busiest(self, unit: _Ints, rate: _Floats, groups: _Ints, share: _Floats) -> _Floats:
        flat = groups.ravel()
        seconds = share.reshape(self.several, flat.size) / rate[:, flat]
        bins = int(unit.max()) + 1
        key = unit[:, flat] + np.arange(self.several)[:, None] * bins
        loads = np.bincount(key.ravel(), weights=seconds.ravel(), minlength=self.several * bins)
        busiest: _Floats = loads.reshape(self.several, bins).max(axis=1)
        return busiest


def _leaving(pattern: str, domain: _Ints, unit: _Ints) -> _Floats:
    """Share of its buffer that each member sends to other units of its domain."""
    members = domain.shape[-1]
    if pattern == "send":
        same = np.roll(domain, -1, axis=-1) == domain
        return np.asarray(same & (np.roll(unit, -1, axis=-1) != unit), dtype=np.float64)
    near, local = _alike(domain), _alike(unit)
    if pattern == "all_to_all":
        return np.asarray((near - local) / members)
    return np.where(local < near, (members - 1) / members / local, 0.0)


def _alike(place: _Ints) -> _Floats:
    """For each member (last axis) of each group, how many members of its group share its place."""
    rows = np.arange(place.size) // place.shape[-1]
    key = rows * (int(place.max()) + 1) + place.ravel()
    _, where, counts = np.unique(key, return_inverse=True, return_counts=True)
    return counts[where].reshape(place.shape).astype(np.float64)


def _pair(node: Node) -> tuple[int, float]:
    """GPUs of a bridged pair and what leaves it, one way."""
    link = node.scale_up
    if link.kind != "pairs":
        return 1, np.inf
    staged = 1.0 if link.peer_to_peer else HOST_STAGED_SHARE
    return 2, 2 * link.pcie_bytes_per_s * PCIE_SHARE * staged


def _switch(node: Node) -> tuple[int, float]:
    """GPUs under a PCIe switch or socket and what leaves it, one way."""
    link: Any = node.scale_up
    if link.kind not in ("pcie", "pairs") or not link.cross_bytes_per_s or not link.gpus_per_switch:
        return 1, np.inf
    return link.gpus_per_switch, link.cross_bytes_per_s
